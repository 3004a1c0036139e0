"""Turn the lines of log files into columns: for each key NumPy arrays of its values and of where they were logged."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from noether_core.schedule import UNITS

Array = np.ndarray[Any, Any]
_BATCH = 256  # lines that are held as Python objects at a time
_DTYPES: dict[type, tuple[str, Any]] = {float: ("d", np.float64), int: ("q", np.int64), bool: ("b", np.bool_)}


@dataclass(frozen=True)
class Point:
    """Hold one value of a series, with the epoch, update and sample it was logged at."""

    epoch: int
    update: int
    sample: int
    value: Any


@dataclass(frozen=True, eq=False)
class Series:
    """Hold what was logged under one key, in the order of the updates, as read-only arrays of one length.

    `for point in series` gives the same as `Point`s, with plain Python values.

    Attributes:
        key: the log key.
        epoch: int64, the epochs completed at each value.
        update: int64, the updates.
        sample: int64, the samples.
        value: float64, int64 or bool where every value is one of that type; else the values themselves, as objects.
    """

    key: str
    epoch: Array
    update: Array
    sample: Array
    value: Array

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Point]:
        return map(Point, *map(_plain, (self.epoch, self.update, self.sample, self.value)))


def _plain(values: Array) -> Iterator[Any]:
    """Yield an array's elements as plain Python values, few of them in memory at a time."""
    for start in range(0, len(values), _BATCH):
        yield from values[start : start + _BATCH].tolist()


@dataclass(frozen=True, eq=False)
class Table:
    """Hold log entries as columns; a row is an entry.

    Attributes:
        series: each key's values, the keys in the order first logged.
        rows: the rows that have a value of each key.
        iterations: int64, [rows, 3]: the epoch, update and sample of each entry.
        layouts: the different tuples of names that entries have, `epoch`, `update` and `sample` among them.
        layout: which of these each entry has.
    """

    series: Mapping[str, Series]
    rows: Mapping[str, Array]
    iterations: Array
    layouts: Sequence[tuple[str, ...]]
    layout: Array

    def iter_entries(self) -> Iterator[dict[str, Any]]:
        """Yield each entry as it was logged: the names in its order, plain Python values."""
        columns: dict[str, Iterator[Any]] = {unit: _plain(self.iterations[:, at]) for at, unit in enumerate(UNITS)}
        columns |= {key: _plain(series.value) for key, series in self.series.items()}
        for layout in _plain(self.layout):
            yield {name: next(columns[name]) for name in self.layouts[layout]}


class _Column:
    """Collect the values of one name, as numbers of one type while they are such, and the numbers of their lines."""

    def __init__(self) -> None:
        self.lines = array("q")
        self._kind: type | None = None
        self._values: Any = []

    def extend(self, lines: array[int], values: Sequence[Any]) -> None:
        self.lines.extend(lines)
        kinds = set(map(type, values))
        kind = kinds.pop() if len(kinds) == 1 else object
        new: Any = values
        if kind in _DTYPES:
            try:
                new = array(_DTYPES[kind][0], values)
            except OverflowError:  # an int beyond 64 bits
                kind = object
        if self._kind is None:
            self._kind, self._values = kind, new if kind in _DTYPES else list(values)
            return
        if kind is not self._kind and self._kind in _DTYPES:
            self._kind, self._values = object, self._array().tolist()
        self._values.extend(new if kind is self._kind else values)

    def _array(self) -> Array:
        if self._kind in _DTYPES:
            return np.frombuffer(self._values, _DTYPES[self._kind][1])
        return np.fromiter(self._values, object, len(self._values))

    def sorted(self) -> tuple[Array, Array]:
        """Return the lines' numbers, ascending, and the values."""
        lines, values = np.frombuffer(self.lines, np.int64), self._array()
        if np.all(lines[1:] > lines[:-1]):
            return lines, values
        order = np.argsort(lines)
        return lines[order], values[order]


class TableBuilder:
    """Collect entries, start by start, and make a table of them.

    Flushes of one update that follow on each other are one row. From a start's first update on it supersedes what earlier ones
    logged.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._layouts: dict[tuple[str, ...], int] = {}
        self._layout = array("q")  # of each line
        self._starts: list[int] = []  # the number of each start's first line

    def add_start(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add the entries that one process start logged."""
        self._starts.append(len(self._layout))
        entries = iter(entries)
        while batch := list(islice(entries, _BATCH)):
            self._add(batch)

    def _add(self, batch: Sequence[dict[str, Any]]) -> None:
        groups: dict[tuple[str, ...], list[int]] = {}
        first = len(self._layout)
        for at, entry in enumerate(batch):
            names = tuple(entry)
            groups.setdefault(names, []).append(at)
            self._layout.append(self._layouts.setdefault(names, len(self._layouts)))
        for names, places in groups.items():
            lines = array("q", [first + at for at in places])
            columns = zip(*(batch[at].values() for at in places), strict=True)
            for name, values in zip(names, columns, strict=True):
                if name not in self._columns:
                    self._columns[name] = _Column()
                self._columns[name].extend(lines, values)

    def build(self) -> tuple[Table, int]:
        """Return the table, and how many entries were superseded; the builder is then empty."""
        lines = np.zeros((0, 3), np.int64)
        if self._layout:
            lines = np.stack([self._columns.pop(unit).sorted()[1].astype(np.int64) for unit in UNITS], axis=1)
        is_first = np.ones(len(lines), bool)
        is_first[1:] = (lines[1:] != lines[:-1]).any(axis=1)
        is_first[[start for start in self._starts if start < len(lines)]] = True
        row_of_line = np.cumsum(is_first) - 1
        iterations = lines[is_first]
        is_kept = self._kept(iterations, row_of_line)
        row_of_line = np.where(is_kept, np.cumsum(is_kept) - 1, -1)[row_of_line]
        iterations = iterations[is_kept]
        layout = self._row_layouts(row_of_line, len(iterations))
        series, rows = self._series(iterations, row_of_line, layout)
        table = Table(series, rows, _read_only(iterations), tuple(self._layouts), _read_only(layout))
        return table, int(len(is_kept) - is_kept.sum())

    def _kept(self, iterations: Array, row_of_line: Array) -> Array:
        """Tell which rows no later start superseded."""
        is_kept = np.ones(len(iterations), bool)
        for start, end in pairwise([*self._starts, len(row_of_line)]):
            if start < end:
                row = row_of_line[start]
                is_kept[:row] &= iterations[:row, 1] < iterations[row, 1]
        return is_kept

    def _row_layouts(self, row_of_line: Array, rows: int) -> Array:
        """Return each row's layout: its line's, or what its lines have together."""
        of_line = np.frombuffer(self._layout, np.int64)
        is_kept = row_of_line >= 0
        layout = np.full(rows, -1)
        layout[row_of_line[is_kept]] = of_line[is_kept]
        is_joined = is_kept & (np.bincount(row_of_line[is_kept])[row_of_line] > 1)
        layout[row_of_line[is_joined]] = -1
        together: dict[tuple[int, int], int] = {}
        known = list(self._layouts)
        for row, found in zip(row_of_line[is_joined].tolist(), of_line[is_joined].tolist(), strict=True):
            pair = int(layout[row]), found
            if layout[row] >= 0 and pair not in together:
                names = tuple(dict.fromkeys([*known[pair[0]], *known[found]]))
                together[pair] = self._layouts.setdefault(names, len(known))
                known += [names] if together[pair] == len(known) else []
            layout[row] = together.get(pair, found)
        return layout

    def _series(
        self, iterations: Array, row_of_line: Array, layout: Array
    ) -> tuple[dict[str, Series], dict[str, Array]]:
        known = list(self._layouts)
        names = dict.fromkeys(name for each in dict.fromkeys(layout.tolist()) for name in known[each])
        series, rows_of = {}, {}
        shared: dict[bytes, tuple[Array, ...]] = {}  # many keys are logged together
        for key in names:
            if key in UNITS:
                continue
            lines, values = self._columns.pop(key).sorted()
            rows = row_of_line[lines]
            is_last = rows >= 0
            is_last[:-1] &= rows[1:] != rows[:-1]  # of several values for one update the last one counts
            if not is_last.all():
                rows, values = rows[is_last], values[is_last]
            name = rows.tobytes()
            if name not in shared:
                shared[name] = (rows, *(iterations[rows, at] for at in range(3)))
            rows_of[key], epoch, update, sample = map(_read_only, shared[name])
            series[key] = Series(key, epoch, update, sample, _read_only(_narrowed(values)))
        return series, rows_of


def _read_only(values: Array) -> Array:
    values.flags.writeable = False
    return values


def _narrowed(values: Array) -> Array:
    """Return an array of objects as one of numbers if all that are left are of one type."""
    kinds = set(map(type, values)) if values.dtype == object else set()
    kind = kinds.pop() if len(kinds) == 1 else object
    if kind in _DTYPES:
        try:
            return values.astype(_DTYPES[kind][1])
        except OverflowError:
            return values
    return values
