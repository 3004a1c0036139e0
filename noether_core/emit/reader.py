"""Read a run directory back: columns per key, arrays on demand. It may be read while the run still writes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from noether_core.emit.arrays import ArrayHeader, read_arrays, read_headers
from noether_core.emit.columns import Series, Table, TableBuilder
from noether_core.emit.jsonl import iter_lines, start_numbers
from noether_core.emit.lineage import Lineage
from noether_core.emit.merged_log import SUFFIX as MERGED_SUFFIX
from noether_core.emit.merged_log import read_merged, with_merged
from noether_core.emit.missing import words
from noether_core.emit.starts import PROVISIONAL, read_record
from noether_core.errors import MissingDependencyError, RunFormatError, ScheduleError
from noether_core.schedule import UNITS, TrainingIteration


@dataclass(frozen=True)
class ArrayFile:
    """Point at the arrays saved at one interval's end.

    Attributes:
        interval: the interval's short string, after the callback's id and `/` where it has one.
    """

    interval: str
    iteration: TrainingIteration
    path: Path

    def load(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays by name."""
        return read_arrays(self.path)

    def headers(self) -> dict[str, ArrayHeader]:
        """Return the arrays' dtypes and shapes by name, without loading them."""
        return read_headers(self.path)


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


@dataclass(frozen=True, eq=False)
class RunReader:
    """Hold what a run directory gives back.

    Attributes:
        table: the log entries as columns, each update once; of several process starts what stands (`emit/starts.py`).
        problems: a sentence for each line that is torn or damaged, and for what the disk did not take; empty for a run that
            ended well.
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

    def iter_superseded(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each entry that does not stand, with the number of the start that logged it; read from the files again."""
        for place, start in enumerate(self.starts):
            file = self.path / "metrics" / f"{start.number}.jsonl"
            for is_provisional, entries in enumerate(_entries_of(file, [])):
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
        ones, so that no number is rounded.

        Raises:
            MissingDependencyError: if pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingDependencyError("to_pandas needs pandas: pip install 'noether-callbacks[pandas]'") from error
        columns: dict[str, Any] = {unit: self.table.iterations[:, at] for at, unit in enumerate(UNITS)}
        entries = pd.RangeIndex(len(self.table.iterations))
        for key, series in self.series.items():
            rows, value = self.table.rows[key], series.value
            nullable = {"i": "Int64", "b": "boolean"}.get(value.dtype.kind) if len(rows) < len(entries) else None
            columns[key] = pd.Series(value, index=rows, dtype=nullable).reindex(entries)
        return pd.DataFrame(columns)


def read_run(path: str | Path) -> RunReader:
    """Read a run directory; raises `RunFormatError` if it is none."""
    path = Path(path)
    metrics = path / "metrics"
    if not metrics.is_dir() and not (path / "config.yaml").is_file() and not (path / "update_outputs").is_dir():
        state = "is a file" if path.exists() else "does not exist"
        if path.is_dir():
            state = "has no config.yaml, metrics/ or update_outputs/"
        raise RunFormatError(f"{str(path)!r} {state}; give the directory that a Run wrote")
    problems: list[str] = []
    builder = TableBuilder()
    savers: dict[str, list[_Saver]] = {}  # of each array file
    found: list[tuple[int, dict[str, Any]]] = []  # the starts' numbers and records
    for number in start_numbers(metrics):
        file = metrics / f"{number}.jsonl"
        try:
            beside = _read_beside(file.with_suffix(".time.jsonl"), problems)
            record = _record_of(path, number, problems)
            start = None if not record else record["start"]._replace(since=min(record["start"].since, beside.since))
            saved = beside.arrays | _merged_arrays(file, problems)
            whole, provisional = _entries_of(file, problems)
        except OSError as error:
            problems.append(f"{file}: {error}")
            continue
        for name, is_provisional in saved.items():
            savers.setdefault(name, []).append(_Saver(len(found), str(number), is_provisional))
        found.append((number, record))
        try:
            builder.add_start(whole, start, beside.times, provisional)
        except OSError as error:
            problems.append(f"{file}: {error}")
    lineage = _lineage(builder, savers)
    table, superseded = builder.build(lineage)
    starts = [
        RunStart(*each, start.ancestors[0][1] if start.ancestors else -1, until)
        for each, start, until in zip(found, builder.starts, lineage.until, strict=True)
    ]
    return RunReader(path, table, problems, superseded, *_array_files(path, savers, lineage), starts, lineage)


class _Saver(NamedTuple):
    """Say that a start saved an array file: its place among the starts, its number, and whether the interval was not over."""

    start: int
    number: str
    is_provisional: bool


def _lineage(builder: TableBuilder, savers: Mapping[str, Sequence[_Saver]]) -> Lineage:
    """Return what of the starts stands, of which each wrote entries and array files."""
    updates = [list(builder.updates(start)) for start in range(len(builder.starts))]
    for name, of_name in savers.items():
        if (iteration := _iteration_of(name)) is not None:
            for saver in of_name:
                updates[saver.start].append(iteration.update or 0)
    return Lineage(builder.starts, updates)


def _iteration_of(name: str) -> TrainingIteration | None:
    try:
        return TrainingIteration.from_string(Path(name).stem)
    except ScheduleError:  # not ours: a file that the user put there, or a temporary one
        return None


def _merged_arrays(file: Path, problems: list[str]) -> dict[str, bool]:
    """Return the names of array files, and whether each is of an interval that was not over."""
    merged = read_merged(file.with_suffix(MERGED_SUFFIX), problems)
    return {name: bool(is_provisional) for is_provisional, names in enumerate(merged.arrays) for name in names}


def _entries_of(file: Path, problems: list[str]) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
    """Return what a start logged, by the name of its log: of whole intervals, and of those that were not over."""
    whole, provisional = read_merged(file.with_suffix(MERGED_SUFFIX), []).entries
    return (
        with_merged(_lines(file, problems), whole.values()),
        with_merged(_lines(file.with_suffix(PROVISIONAL), problems), provisional.values()),
    )


def _lines(file: Path, problems: list[str]) -> Iterable[dict[str, Any]]:
    return iter_lines(file, problems) if file.exists() else ()  # a start may only save arrays


def _array_files(
    path: Path, savers: Mapping[str, Sequence[_Saver]], lineage: Lineage
) -> tuple[list[ArrayFile], list[ArrayFile]]:
    """Return the array files that stand and those that do not: the newest of a name stands whose start does."""
    kept: list[ArrayFile] = []
    superseded: list[ArrayFile] = []
    names = {file.relative_to(path).as_posix() for file in (path / "update_outputs").glob("**/*.safetensors")}
    for name in sorted(names | savers.keys()):
        if (iteration := _iteration_of(name)) is None:
            continue
        interval = Path(name).parent.relative_to("update_outputs").as_posix()
        saved = list(savers.get(name, ()))[::-1]
        files = [path / name, *(path / "superseded" / saver.number / name for saver in saved)]
        is_found = False
        for saver, file in zip([*saved, None], files, strict=True):  # each set aside what the one before had saved
            if file.is_file():
                stands = saver is None or lineage.stands(
                    saver.start, iteration.update or 0, is_provisional=saver.is_provisional
                )
                (superseded if is_found or not stands else kept).append(ArrayFile(interval, iteration, file))
                is_found |= stands
    kept.sort(key=lambda file: (file.interval, file.iteration.update or 0))
    return kept, superseded


def _record_of(path: Path, number: int, problems: list[str]) -> dict[str, Any]:
    try:
        return read_record(path, number) or {}
    except RunFormatError as error:
        problems.append(str(error))
        return {}


@dataclass
class _Beside:
    """Hold what lies beside a start's entries.

    Attributes:
        times: when the entry of each update was written.
        arrays: which array files were saved, and whether the interval was not over.
        since: see `Start`; infinity where its record says all.
    """

    times: dict[int, float] = field(default_factory=dict)
    arrays: dict[str, bool] = field(default_factory=dict)
    since: float = math.inf


def _read_beside(file: Path, problems: list[str]) -> _Beside:
    beside = _Beside()
    if file.is_file():
        for line in iter_lines(file, problems):
            if "arrays" in line:
                beside.arrays[str(line["arrays"])] = bool(line.get("provisional"))
            if "missing" in line:
                with contextlib.suppress(TypeError, ValueError, KeyError):  # what is none of ours
                    problems.append(f"{file}: the disk did not take {words(line['missing'])}; they are lost")
            with contextlib.suppress(TypeError, ValueError):  # what is none of ours
                beside.since = min(beside.since, int(line["since"]) if "since" in line else math.inf)
                beside.times.update((int(update), float(time)) for update, time in line.get("times", ()))
    return beside
