"""Make the log entries of intervals whose processes could not pool them, from what each of them saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from noether_core.callbacks.meeting import POOLED, Meeting
from noether_core.config.load import load_tracking
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.emit.merged_log import MergedLog
from noether_core.emit.unmerged import Unmerged, find_unmerged, read_unmerged, set_merged
from noether_core.emit.writer_lock import WriterLock
from noether_core.errors import NoetherError, RunFormatError
from noether_core.reduce.agreement import DUE, REST
from noether_core.reduce.computed import Computed
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import Partials, no_partials
from noether_core.reduce.pool import Pooled, Round
from noether_core.reduce.state import unpack
from noether_core.reduce.threads import ThreadExchange, run_threads
from noether_core.regular_files import require_own_parts
from noether_core.schedule import UNITS, TrainingIteration, UpdateCounter

Configs = Sequence[TrackAdditionalOutputsCallbackConfig]
_TIME_LIMIT = 3600.0  # seconds, of threads that wait for none but each other


@dataclass
class MergeReport:
    """Say what was merged: a sentence for each interval that now is in the log, and for each that is not."""

    merged: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Saved:
    """Stand for a callback of a process that saved what it had."""

    config: TrackAdditionalOutputsCallbackConfig
    partials: Partials

    def own_partials(self) -> Partials:
        return self.partials


def merge_run(path: str | Path, *, partial: bool = False) -> MergeReport:
    """Log what processes saved of intervals that they could not pool; the numbers are those of a pooling, to the bit.

    What is merged is kept, under `merged/` beside where it was. Where files of some processes are missing, the interval is left
    as it is.

    Args:
        path: the run directory.
        partial: whether to make do with the processes that are there.

    Raises:
        RunLockedError: while the run goes on: what its processes lack may come yet.
        NoetherError: for a run directory without a config that can be read.
    """
    path = Path(path)
    require_own_parts(path)
    configs, log, report, lock = load_tracking(path / "config.yaml"), MergedLog(path), MergeReport(), WriterLock(path)
    lock.hold()
    try:
        for meeting in _meetings(path, report):
            try:
                _merge(log, configs, meeting, report, partial=partial)
            except (NoetherError, OSError) as error:
                report.problems.append(str(error))
            except Exception as error:  # numbers that no process of ours saves, in a file with a checksum
                report.problems.append(
                    f"{meeting.files[-1].path} and the others of its meeting cannot be pooled: {error!r:.300}"
                )
    finally:
        lock.release()
    return report


class _Entry(NamedTuple):
    """Hold what processes give, and where: numbers by log key, arrays by the path of their file."""

    iteration: TrainingIteration
    scalars: dict[str, Any]
    arrays: dict[str, Mapping[str, np.ndarray[Any, Any]]]
    is_provisional: bool  # whether the intervals were not over


class _Meeting(NamedTuple):
    """Hold what the processes had when they were to meet, and who is not there: now, or before where that matters."""

    files: list[Unmerged]
    absent: set[int]


def _meetings(path: Path, report: MergeReport) -> list[_Meeting]:
    """Return the meetings of which not all is merged, by update."""
    starts: dict[tuple[str, int], dict[int, dict[int, Unmerged]]] = {}
    for file in find_unmerged(path):
        try:
            saved = read_unmerged(file)
        except RunFormatError as error:
            report.problems.append(str(error))
        else:
            meetings = starts.setdefault((saved.start, saved.count), {})
            meetings.setdefault(saved.number, {})[saved.index] = saved
    found = [each for (_, count), meetings in starts.items() for each in _with_ended(meetings, count)]
    found = [each for each in found if not all(saved.is_merged for saved in each.files)]
    return sorted(found, key=lambda each: max(saved.iteration.update or 0 for saved in each.files))


def _with_ended(meetings: Mapping[int, Mapping[int, Unmerged]], count: int) -> list[_Meeting]:
    """Return a start's meetings that have something to log, with what remains of processes that had ended before them."""
    ended: dict[int, Unmerged] = {}
    # who may have had, in earlier meetings, what those that had ended gave the rest of theirs to
    unsure: set[int] = set()
    found = []
    # one after another; where some in a row have no file, the first of these says what there is to say
    for number in sorted({at for each in meetings for at in (each, each + 1) if at <= max(meetings)}):
        files = [each for _, each in sorted({**ended, **meetings.get(number, {})}.items())]
        absent = {*range(count)} - {each.index for each in files if each.is_whole}
        is_end = all(each.is_final for each in files) and (not absent or number == max(meetings))
        due = {at for each in files for at, urgency in each.urgencies.items() if urgency >= (REST if is_end else DUE)}
        if due:
            found.append(_Meeting(files, absent | unsure))
        ended = {each.index: _without(each, due) for each in files if each.is_final}
        if absent and any(each.urgencies for each in ended.values()):
            unsure |= absent
    return found


def _without(saved: Unmerged, numbers: set[int]) -> Unmerged:
    """Return what remains of what a process had when these of its callbacks are logged."""
    left = {number: urgency for number, urgency in saved.urgencies.items() if number not in numbers}
    return replace(saved, urgencies=left, callbacks={number: saved.callbacks[number] for number in left})


def _merge(log: MergedLog, configs: Configs, meeting: _Meeting, report: MergeReport, *, partial: bool) -> None:
    files, absent = meeting
    count = files[0].count
    missing = ", ".join(f"{index}-of-{count}.safetensors" for index in sorted(absent))
    iteration, scalars, arrays, is_provisional = _entry(configs, files, report)
    is_there = log.has(iteration, scalars, arrays)  # a process that died left what was pooled, and the others did not
    if missing and not partial and not is_there:
        report.problems.append(
            f"{iteration} lacks what other processes had: {missing}. Copy their files from where they ran to"
            f" {log.path / 'unmerged' / files[-1].place}, or give --partial to make do with those that are there"
        )
        return
    if not missing or not is_there:
        log.add(iteration, scalars, arrays, is_whole=not missing, is_provisional=is_provisional)
    for saved in files:
        if not saved.is_merged and saved.path.exists():  # one that has ended is in later meetings too
            set_merged(log.path, saved)
    without = f", without {missing}" if missing and not is_there else ""
    report.merged.append(
        f"{iteration}: {'in the log already:' if is_there else 'merged'} {len(scalars)} values and {len(arrays)} array files"
        f" of {count} processes{without}"
    )


def _entry(configs: Configs, files: Sequence[Unmerged], report: MergeReport) -> _Entry:
    """Return what these processes give."""
    found = _pooled(files, configs)
    iteration, main = TrainingIteration(**dict(zip(UNITS, found.iteration, strict=True))), files[0]
    if main.index == 0 and not main.is_final:  # it logs where it is
        iteration = main.iteration
    scalars: dict[str, Any] = {}
    arrays: dict[str, Mapping[str, np.ndarray[Any, Any]]] = {}
    for number, pooled in sorted(found.pooled.items()):
        config, computed = configs[number], _compute(configs[number], pooled)
        if config.log_output:
            scalars = {**computed.scalars(scalars), **scalars}
        if config.save_output and (of_file := computed.arrays()):
            name = Path("update_outputs", config.id or "", str(config.interval), f"{iteration}.safetensors")
            arrays[name.as_posix()] = of_file
        report.problems += [f"{iteration}: {error}" for error in computed.errors]
    return _Entry(iteration, scalars, arrays, found.are_all_final)


def _pooled(files: Sequence[Unmerged], configs: Configs) -> Round:
    """Return what all these processes have together, by pooling it among threads as they would have done."""
    parts = [_partials(saved, configs) for saved in files]

    def body(exchange: ThreadExchange) -> Round:
        saved, own = files[exchange.index], parts[exchange.index]
        sources = [
            _Saved(config, own.get(number, no_partials(fields_of(config)))) for number, config in enumerate(configs)
        ]
        meeting = Meeting(exchange, sources, None)
        found = meeting.meet(saved.urgencies, UpdateCounter(saved.iteration), is_final=saved.is_final)
        assert found is not None
        return found._replace(
            pooled={number: meeting.take(sources[number], UpdateCounter()) for number in found.pooled}
        )

    return run_threads(len(files), body, time_limit=_TIME_LIMIT)[0]


def _partials(saved: Unmerged, configs: Configs) -> dict[int, Partials]:
    found = {number: unpack(part) for number, part in saved.callbacks.items()}
    for number, partials in found.items():
        if not 0 <= number < len(configs) or (partials.keys and partials.fields != fields_of(configs[number])):
            raise RunFormatError(
                f"{saved.path} has values of tracking callback {number}, which config.yaml has not, or with another `reduce`;"
                " restore the config.yaml that the run had"
            )
    return found


def _compute(config: TrackAdditionalOutputsCallbackConfig, pooled: Pooled) -> Computed:
    partials = pooled.partials
    exact = [key for key in config.keys or () if key in partials.keys]
    partials = partials.in_order(tuple(dict.fromkeys([*exact, *partials.keys])))
    return Computation(config).compute(partials, POOLED, pooled.lasts)
