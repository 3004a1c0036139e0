"""Make the log entries of intervals whose processes could not pool them, from what each of them saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.callbacks.meeting import POOLED, Meeting
from noether_core.config.load import load_tracking
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.emit.merged_log import MergedLog
from noether_core.emit.unmerged import Unmerged, find_unmerged, joined, read_unmerged, set_merged
from noether_core.errors import NoetherError, RunFormatError
from noether_core.reduce.agreement import DUE
from noether_core.reduce.computed import Computed
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import Partials, no_partials
from noether_core.reduce.pool import Pooled
from noether_core.reduce.state import unpack
from noether_core.reduce.threads import ThreadExchange, run_threads
from noether_core.schedule import TrainingIteration, UpdateCounter

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
        NoetherError: for a run directory without a config that can be read.
    """
    path = Path(path)
    configs, log, report = load_tracking(path / "config.yaml"), MergedLog(path), MergeReport()
    for saved in _groups(path, report):
        try:
            _merge(log, configs, saved, report, partial=partial)
        except (NoetherError, OSError) as error:
            report.problems.append(str(error))
    return report


def _groups(path: Path, report: MergeReport) -> list[list[Unmerged]]:
    """Return what the processes saved of each interval, of which not all is merged, by update."""
    groups: dict[tuple[str, int], list[Unmerged]] = {}
    for file in find_unmerged(path):
        try:
            saved = read_unmerged(file)
        except RunFormatError as error:
            report.problems.append(str(error))
        else:
            groups.setdefault((str(saved.iteration), saved.count), []).append(saved)
    found = [group for group in groups.values() if not all(saved.is_merged for saved in group)]
    return sorted(found, key=lambda group: (group[0].iteration.update or 0, group[0].count))


def _merge(log: MergedLog, configs: Configs, files: Sequence[Unmerged], report: MergeReport, *, partial: bool) -> None:
    iteration, count = files[0].iteration, files[0].count
    of_each = {index: [saved for saved in files if saved.index == index] for index in range(count)}
    present = [joined(saved) for saved in of_each.values() if saved]
    missing = ", ".join(f"{index}-of-{count}.safetensors" for index, saved in of_each.items() if not saved)
    scalars, arrays = _entry(configs, present, iteration, report)
    is_there = log.has(iteration, scalars, arrays)  # a process that died left what was pooled, and the others did not
    if missing and not partial and not is_there:
        report.problems.append(
            f"{log.path / 'unmerged' / str(iteration)} lacks what other processes had: {missing}. Copy their files there,"
            " or give --partial to make do with those that are there"
        )
        return
    if not missing or not is_there:
        log.add(iteration, scalars, arrays, is_whole=not missing)
    for saved in files:
        if not saved.is_merged:
            set_merged(log.path, saved)
    without = f", without {missing}" if missing and not is_there else ""
    report.merged.append(
        f"{iteration}: {'in the log already:' if is_there else 'merged'} {len(scalars)} values and {len(arrays)} array files"
        f" of {count} processes{without}"
    )


def _entry(
    configs: Configs, present: Sequence[Unmerged], iteration: TrainingIteration, report: MergeReport
) -> tuple[dict[str, Any], dict[str, Mapping[str, np.ndarray[Any, Any]]]]:
    """Return what these processes give: numbers by log key, and arrays by the path of their file."""
    scalars: dict[str, Any] = {}
    arrays: dict[str, Mapping[str, np.ndarray[Any, Any]]] = {}
    for number, pooled in _pooled(present, configs).items():
        config, computed = configs[number], _compute(configs[number], pooled)
        if config.log_output:
            scalars = {**computed.scalars(str(config.interval), scalars), **scalars}
        if config.save_output and (of_file := computed.arrays()):
            name = Path("update_outputs", config.id or "", str(config.interval), f"{iteration}.safetensors")
            arrays[name.as_posix()] = of_file
        report.problems += [f"{iteration}: {error}" for error in computed.errors]
    return scalars, arrays


def _pooled(present: Sequence[Unmerged], configs: Configs) -> dict[int, Pooled]:
    """Return what all these processes have together, by pooling it among threads as they would have done."""
    parts = [_partials(saved, configs) for saved in present]
    iteration = present[0].iteration

    def body(exchange: ThreadExchange) -> Mapping[int, Pooled | Exception]:
        own = parts[exchange.index]
        sources = [
            _Saved(config, own.get(number, no_partials(fields_of(config)))) for number, config in enumerate(configs)
        ]
        meeting = Meeting(exchange, sources, None)
        meeting.meet(dict.fromkeys(own, DUE), UpdateCounter(iteration))
        return meeting.found

    pooled: dict[int, Pooled] = {}
    for number, found in sorted(run_threads(len(present), body, time_limit=_TIME_LIMIT)[0].items()):
        if isinstance(found, Exception):
            raise found
        pooled[number] = found
    return pooled


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
