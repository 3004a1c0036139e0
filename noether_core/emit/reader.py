"""Read a run directory back: columns per key, arrays on demand. It may be read while the run still writes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.dependencies import needing
from noether_core.emit.array_files import (
    ArrayFile,
    Saver,
    add_those_that_set_aside,
    array_files,
    find_arrays,
    lineage_of,
)
from noether_core.emit.card import card
from noether_core.emit.columns import Series, Table, TableBuilder
from noether_core.emit.jsonl import start_numbers
from noether_core.emit.lineage import Lineage
from noether_core.emit.lines import beside_problem, entry_problem, lines_there
from noether_core.emit.merged_log import SUFFIX as MERGED_SUFFIX
from noether_core.emit.merged_log import Merged, read_merged, with_merged
from noether_core.emit.missing import words
from noether_core.emit.problems import Problems
from noether_core.emit.starts import PROVISIONAL, read_record, recorded_numbers
from noether_core.errors import RunFormatError
from noether_core.regular_files import require_own_parts
from noether_core.schedule import UNITS
from noether_core.text import as_utf8


@dataclass(frozen=True)
class RunStart:
    """Say what a process start was.

    Attributes:
        number: that of its files, such as `metrics/<number>.jsonl`.
        record: what its record says, among that `id`, `time`, `host` and `callbacks`, its config; empty if it left none.
        after: the update that it went on after; -1: it began at the beginning.
        until: the last update up to which what it wrote stands; -1 if nothing does.
    """

    number: int
    record: Mapping[str, Any]
    after: float
    until: float


@dataclass(frozen=True, eq=False, repr=False)
class RunReader:
    """Hold what a run directory gives back.

    Attributes:
        table: the log entries as columns, each update once; of several process starts what stands (`emit/starts.py`).
        problems: a sentence for each line that is torn or damaged, for what the disk did not take, and for what is no regular
            file; at most 1,000 of them, and none for a run that ended well.
        superseded: how many entries of earlier process starts the later ones replaced.
        arrays: the saved array files that stand, by interval and update.
        superseded_arrays: the others: an earlier start saved them at an update that a later one has not come to.
        starts: the process starts that wrote something, the oldest first.
        lineage: what of them stands.
    """

    path: Path
    table: Table
    problems: list[str]
    superseded: int
    arrays: list[ArrayFile]
    superseded_arrays: list[ArrayFile]
    starts: list[RunStart]
    lineage: Lineage

    def __repr__(self) -> str:
        """Return the path, and how much there is; `series`, `entries` and `to_pandas()` give it.

        Of a run under `runs/x`: `<RunReader 'runs/x': 3 keys, 120 entries, update 6000>`.
        """
        return f"<RunReader {str(self.path)!r}: {self._about()}>"

    def _about(self) -> str:
        count = len(self.table.iterations)
        words = [f"{len(self.series):,} keys", f"{count:,} entries"]
        words += [f"update {int(self.table.iterations[-1][UNITS.index('update')]):,}"] if count else []
        words += [f"{len(self.problems)} damaged or lost"] if self.problems else []
        return ", ".join(words)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: each key's curve, as HTML that loads nothing and runs nothing."""
        return card(str(self.path), self._about(), self.series)

    def iter_superseded(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each entry that does not stand, with the number of the start that logged it; read from the files again."""
        for place, start in enumerate(self.starts):
            file = self.path / "metrics" / f"{start.number}.jsonl"
            merged = read_merged(file.with_suffix(MERGED_SUFFIX), [])
            for is_provisional, entries in enumerate(_entries_of(file, merged, [])):
                for entry in entries:
                    if not self.lineage.stands(place, entry["update"], is_provisional=bool(is_provisional)):
                        yield start.number, entry

    def start_of(self, update: int) -> RunStart | None:
        """Return the start that was to log this update, of those that stand: its `record` says with which config."""
        for start in reversed(self.starts):
            if start.until >= update > start.after:
                return start
        return None

    @property
    def series(self) -> Mapping[str, Series]:
        """Return what was logged under each key, as arrays; the keys in the order first logged."""
        return self.table.series

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Return the log entries by update as dicts, made at the first access: for large runs prefer `iter_entries`."""
        return list(self.iter_entries())

    def iter_entries(self) -> Iterator[dict[str, Any]]:
        """Yield the log entries by update as dicts, one at a time."""
        return self.table.iter_entries()

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: a row an entry; columns `epoch`, `update`, `sample`, then the keys as first logged.

        What an entry did not log is missing: NaN among floats, and `<NA>` in ints and bools, which are then pandas' nullable
        ones, so that no number is rounded. Half of a surrogate pair, which pandas does not take, is written as an escape.

            frame = read_run("runs/x").to_pandas().set_index("update")
            frame["loss/U50"].dropna().plot()

        Raises:
            MissingDependencyError: if pandas is not installed.
        """
        with needing("to_pandas", "pandas"):
            import pandas as pd  # type: ignore[import-untyped]
        columns: dict[str, Any] = {unit: self.table.iterations[:, at] for at, unit in enumerate(UNITS)}
        entries = pd.RangeIndex(len(self.table.iterations))
        for key, series in self.series.items():
            rows, value = self.table.rows[key], series.value
            if value.dtype == object:
                whole = (as_utf8(each).decode() if isinstance(each, str) else each for each in value)
                value = np.fromiter(whole, object, len(value))
            nullable = {"i": "Int64", "b": "boolean"}.get(value.dtype.kind) if len(rows) < len(entries) else None
            columns[as_utf8(key).decode()] = pd.Series(value, index=rows, dtype=nullable).reindex(entries)
        return pd.DataFrame(columns)


def read_run(path: str | Path) -> RunReader:
    """Read a run directory; raises `RunFormatError` if it is none."""
    path = Path(path)
    metrics = path / "metrics"
    _require_run(path)
    problems: list[str] = Problems()
    builder = TableBuilder()
    savers: dict[str, list[Saver]] = {}  # of each array file
    records: list[dict[str, Any]] = []
    lost: list[tuple[list[int], bool]] = []  # the updates of entries that are gone, and whether it is told already
    found = find_arrays(path, problems)  # before the notes on them, for these are written first
    recorded, logged = recorded_numbers(path), start_numbers(metrics)  # in this order, for a start logs before
    numbers = sorted({*logged, *recorded})
    problems.extend(
        f"{metrics / f'{number}.jsonl'} is missing, as is all else that start {number} logged"
        for number in sorted(set(numbers).difference(logged))
    )
    for place, number in enumerate(numbers):
        file = metrics / f"{number}.jsonl"
        beside = _read_beside(file.with_suffix(".time.jsonl"), problems)
        merged = read_merged(file.with_suffix(MERGED_SUFFIX), problems)
        problems.extend(beside.missing)
        for name, is_provisional in (beside.arrays | _merged_arrays(merged)).items():
            savers.setdefault(name, []).append(Saver(place, str(number), is_provisional))
        records.append(record := _record_of(path, number, problems))
        start = None if not record else record["start"]._replace(since=min(record["start"].since, beside.since))
        whole, provisional = _entries_of(file, merged, problems)
        before = len(problems)
        builder.add_start(whole, start, beside.times, provisional)
        lost.append((sorted(beside.times.keys() - set(builder.updates(place))), len(problems) > before))
    unknown = add_those_that_set_aside(path, found, numbers, savers)
    lineage = lineage_of(builder, savers, [updates for updates, _ in lost])
    problems.extend(_lost(metrics, numbers, lost, lineage))
    table, superseded = builder.build(lineage)
    starts = [
        RunStart(number, record, start.ancestors[0][1] if start.ancestors else -1, until)
        for number, record, start, until in zip(numbers, records, builder.starts, lineage.until, strict=True)
    ]
    arrays = array_files(path, savers, lineage, found, unknown, problems if (path / "starts").is_dir() else None)
    return RunReader(path, table, problems, superseded, *arrays, starts, lineage)


def _require_run(path: Path) -> None:
    if (
        not (path / "metrics").is_dir()
        and not (path / "config.yaml").is_file()
        and not (path / "update_outputs").is_dir()
    ):
        state = "is a file" if path.exists() else "does not exist"
        if path.is_dir():
            state = "has no config.yaml, metrics/ or update_outputs/"
        within = sorted(each.parent.name for each in path.glob("*/config.yaml"))
        hint = f", such as {str(path / within[0])!r:.300}, of {len(within)} in there" if within else ""
        raise RunFormatError(f"{str(path)!r} {state}; give the directory that a Run wrote{hint}")
    require_own_parts(path)


def _lost(
    metrics: Path, numbers: Sequence[int], lost: Sequence[tuple[Sequence[int], bool]], lineage: Lineage
) -> Iterator[str]:
    """Say which entries would stand and are gone: what lies beside them says when each was written."""
    for number, (of_start, is_told), until in zip(numbers, lost, lineage.until, strict=True):
        if not is_told and (gone := [update for update in of_start if update <= until]):
            yield (
                f"{metrics / f'{number}.jsonl'} lacks {len(gone)} entries that it had, of updates from {gone[0]} to"
                f" {gone[-1]}; they are lost"
            )


def _merged_arrays(merged: Merged) -> dict[str, bool]:
    """Return the names of array files, and whether each is of an interval that was not over."""
    return {name: bool(is_provisional) for is_provisional, names in enumerate(merged.arrays) for name in names}


def _entries_of(
    file: Path, merged: Merged, problems: list[str]
) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
    """Return what a start logged, by the name of its log: of whole intervals, and of those that were not over."""
    whole, provisional = merged.entries  # none where a start only saved arrays
    return (
        with_merged(lines_there(file, problems, entry_problem), whole.values()),
        with_merged(lines_there(file.with_suffix(PROVISIONAL), problems, entry_problem), provisional.values()),
    )


def _record_of(path: Path, number: int, problems: list[str]) -> dict[str, Any]:
    try:
        return read_record(path, number, problems) or {}
    except (RunFormatError, OSError) as error:
        problems.append(str(error))
        return {}


@dataclass
class _Beside:
    """Hold what lies beside a start's entries.

    Attributes:
        times: when the entry of each update was written.
        arrays: which array files were saved, and whether the interval was not over.
        since: see `Start`; infinity where its record says all.
        missing: sentences for what the disk did not take.
    """

    times: dict[int, float] = field(default_factory=dict)
    arrays: dict[str, bool] = field(default_factory=dict)
    since: float = math.inf
    missing: list[str] = field(default_factory=Problems)


def _read_beside(file: Path, problems: list[str]) -> _Beside:
    beside = _Beside()
    for line in lines_there(file, problems, beside_problem):
        if "arrays" in line:
            beside.arrays[str(line["arrays"])] = bool(line.get("provisional"))
        if "missing" in line:
            with contextlib.suppress(TypeError, ValueError, KeyError, OverflowError):  # what is none of ours
                beside.missing.append(f"{file}: the disk did not take {words(line['missing'])}; they are lost")
        beside.since = min(beside.since, line.get("since", math.inf))
        with contextlib.suppress(OverflowError):
            times = line.get("times", ())
            beside.times.update((update, float(time)) for update, time in times if 0 <= update < 2**63)
    return beside
