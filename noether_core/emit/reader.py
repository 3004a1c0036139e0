"""Read a run directory back: columns per key, arrays on demand. It may be read while the run still writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.emit.arrays import ArrayHeader, read_arrays, read_headers
from noether_core.emit.columns import Series, Table, TableBuilder
from noether_core.emit.jsonl import start_numbers
from noether_core.emit.lines import beside_problem, entry_problem, lines_there
from noether_core.emit.merged_log import SUFFIX as MERGED_SUFFIX
from noether_core.emit.merged_log import read_merged, with_merged
from noether_core.emit.problems import MOST, Problems
from noether_core.emit.starts import Start, read_start, standing
from noether_core.errors import MissingDependencyError, RunFormatError, ScheduleError
from noether_core.regular_files import files_below, require_own_parts
from noether_core.schedule import UNITS, TrainingIteration

_ARRAYS = ("update_outputs", "superseded")


@dataclass(frozen=True)
class ArrayFile:
    """Point at the arrays saved at one interval's end.

    Attributes:
        interval: the interval's short string, after the callback's id and `/` where it has one.
        root: the run directory, below which no link is followed.
    """

    interval: str
    iteration: TrainingIteration
    path: Path
    root: Path | None = None

    def load(self, problems: list[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays by name.

        Args:
            problems: gets a sentence for each array that is damaged, and the others are returned; None: damage is raised.

        Raises:
            RunFormatError: for damage.
        """
        return read_arrays(self.path, problems, root=self.root)

    def headers(self) -> dict[str, ArrayHeader]:
        """Return the arrays' dtypes and shapes by name, without loading them."""
        return read_headers(self.path, self.root)


@dataclass(frozen=True, eq=False)
class RunReader:
    """Hold what a run directory gives back.

    Attributes:
        table: the log entries as columns, each update once; of several process starts what stands (`emit/starts.py`).
        problems: a sentence for each line that is torn or damaged, and for what is no regular file; at most 1,000 of them, and
            none for a run that ended well.
        superseded: how many entries of earlier process starts the later ones replaced.
        arrays: the saved array files that stand, by interval and update.
        superseded_arrays: the others: an earlier start saved them at an update that a later one has not come to.
    """

    path: Path
    table: Table
    problems: list[str]
    superseded: int
    arrays: list[ArrayFile]
    superseded_arrays: list[ArrayFile]

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
    problems: list[str] = Problems()
    require_own_parts(path)
    builder = TableBuilder()
    savers: dict[str, list[tuple[int, str]]] = {}  # of each array file: the starts that saved it, and their numbers
    doubtful: list[int] = []  # the starts of whose notes on what they saved something is lost
    numbers = start_numbers(metrics)
    for number in numbers:
        file, before = metrics / f"{number}.jsonl", len(problems)
        times, saved = _read_beside(file.with_suffix(".time.jsonl"), problems)
        merged, more = read_merged(file.with_suffix(MERGED_SUFFIX), problems)
        for name in dict.fromkeys([*saved, *more]):
            savers.setdefault(name, []).append((len(builder.starts), str(number)))
        if len(problems) > before or before >= MOST:
            doubtful.append(len(builder.starts))
        entries = lines_there(file, problems, entry_problem)  # none where a start only saved arrays
        builder.add_start(with_merged(entries, merged), _start_of(path, number, problems), times)
    stands = standing(builder.starts)
    table, superseded = builder.build()
    found = [file for part in _ARRAYS for file in files_below(path, part, problems) if file.suffix == ".safetensors"]
    _add_those_that_set_aside(path, found, numbers, savers)
    return RunReader(path, table, problems, superseded, *_array_files(path, savers, stands, found, doubtful))


def _add_those_that_set_aside(
    path: Path, found: Sequence[Path], numbers: Sequence[int], savers: dict[str, list[tuple[int, str]]]
) -> None:
    """Add the starts whose own note is lost: each also set aside what it replaced, in `superseded/<n>/`."""
    places = {str(number): at for at, number in enumerate(numbers)}
    for file in found:
        part, number, *names = file.relative_to(path).parts
        if part == _ARRAYS[1] and number in places and names[:1] == [_ARRAYS[0]]:
            of_name = savers.setdefault("/".join(names), [])
            if (places[number], number) not in of_name:
                of_name.append((places[number], number))
                of_name.sort()


def _array_files(
    path: Path,
    savers: Mapping[str, Sequence[tuple[int, str]]],
    stands: Sequence[float],
    found: Sequence[Path],
    doubtful: Sequence[int],
) -> tuple[list[ArrayFile], list[ArrayFile]]:
    """Return the array files that stand and those that do not: the newest of a name stands whose start does."""
    kept: list[ArrayFile] = []
    superseded: list[ArrayFile] = []
    names = {file.relative_to(path).as_posix() for file in found if file.is_relative_to(path / _ARRAYS[0])}
    there = frozenset(found)
    for name in sorted(names | savers.keys()):
        try:
            iteration = TrainingIteration.from_string(Path(name).stem)
        except ScheduleError:  # not ours: a file that the user put there, or a temporary one
            continue
        interval = Path(name).parent.relative_to("update_outputs").as_posix()
        saved = savers.get(name, ())
        starts = [-1, *(start for start, _ in saved)]  # -1: no start said that it did
        files = [path / name, *(path / "superseded" / number / name for _, number in reversed(saved))]
        is_found = False
        for start, file in zip(reversed(starts), files, strict=True):  # each set aside what the one before had saved
            if file in there:
                by = doubtful if start < 0 else [start]
                stands_here = not is_found and all((iteration.update or 0) <= stands[each] for each in by)
                is_found |= stands_here
                (kept if stands_here else superseded).append(ArrayFile(interval, iteration, file, path))
    kept.sort(key=lambda file: (file.interval, file.iteration.update or 0))
    return kept, superseded


def _start_of(path: Path, number: int, problems: list[str]) -> Start | None:
    try:
        return read_start(path, number, problems)
    except (RunFormatError, OSError) as error:
        problems.append(str(error))
        return None


def _read_beside(file: Path, problems: list[str]) -> tuple[dict[int, float], list[str]]:
    """Return when the entry of each update was written, and which array files were saved."""
    times: dict[int, float] = {}
    saved: list[str] = []
    for line in lines_there(file, problems, beside_problem):
        if "arrays" in line:
            saved.append(str(line["arrays"]))
        with contextlib.suppress(OverflowError):
            times.update((update, float(time)) for update, time in line.get("times", ()))
    return times, saved
