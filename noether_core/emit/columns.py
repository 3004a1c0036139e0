"""Turn the lines of log files into columns: for each key NumPy arrays of its values and of where they were logged."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby, islice
from operator import itemgetter, or_
from typing import Any

import numpy as np

from noether_core.schedule import UNITS

Array = np.ndarray[Any, Any]
_BATCH = 256  # rows that are held as Python objects at a time
_DTYPES: dict[type, type] = {float: np.float64, int: np.int64, bool: np.bool_}
_iteration = itemgetter(*UNITS)


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
        epoch, update, sample: int64, how many of each were completed at each value.
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


class TableBuilder:
    """Collect entries, start by start, and make a table of them.

    Flushes of one update that follow on each other are one row. From a start's first update on it supersedes what earlier ones
    logged.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[tuple[Array, Array]]] = {}  # rows and values, batch by batch
        self._layouts: dict[tuple[str, ...], int] = {}
        self._layout = array("q")  # of each row
        self._iterations = array("q")
        self._starts: list[int] = []  # each start's first row

    def add_start(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add the entries that one process start logged."""
        self._starts.append(len(self._layout))
        rows = (reduce(or_, flushes) for _, flushes in groupby(entries, _iteration))
        while batch := list(islice(rows, _BATCH)):
            self._add(batch)

    def _add(self, batch: Sequence[dict[str, Any]]) -> None:
        groups: dict[tuple[str, ...], list[int]] = {}
        first = len(self._layout)
        for at, row in enumerate(batch):
            names = tuple(row)
            groups.setdefault(names, []).append(at)
            self._layout.append(self._layouts.setdefault(names, len(self._layouts)))
            self._iterations.extend(_iteration(row))
        for names, places in groups.items():
            rows = first + np.array(places)
            columns = zip(*(batch[at].values() for at in places), strict=True)
            for name, values in zip(names, columns, strict=True):
                self._columns.setdefault(name, []).append((rows, _array(values)))

    def build(self) -> tuple[Table, int]:
        """Return the table, and how many entries were superseded; the builder is then empty."""
        layout = np.array(self._layout, np.int64)
        iterations = np.array(self._iterations, np.int64).reshape(-1, len(UNITS))
        update = iterations[:, UNITS.index("update")]
        is_kept = np.ones(len(layout), bool)
        for start in self._starts:
            if start < len(layout):
                is_kept[:start] &= update[:start] < update[start]
        layout, iterations = _read_only(layout[is_kept]), _read_only(iterations[is_kept])
        layouts = tuple(self._layouts)
        names = dict.fromkeys(name for each in dict.fromkeys(layout.tolist()) for name in layouts[each])
        series, rows = self._series([name for name in names if name not in UNITS], iterations, is_kept)
        return Table(series, rows, iterations, layouts, layout), int(np.sum(~is_kept))

    def _series(
        self, keys: Sequence[str], iterations: Array, is_kept: Array
    ) -> tuple[dict[str, Series], dict[str, Array]]:
        series, rows_of = {}, {}
        kept_before = np.cumsum(is_kept) - is_kept
        shared: dict[bytes, tuple[Array, ...]] = {}  # many keys are logged together
        for key in keys:
            rows, values = map(_joined, zip(*self._columns.pop(key), strict=True))
            order = np.argsort(rows, kind="stable")
            order = order[is_kept[rows[order]]]
            rows = kept_before[rows[order]]
            name = rows.tobytes()
            if name not in shared:
                shared[name] = tuple(map(_read_only, (rows, *(iterations[rows, at] for at in range(len(UNITS))))))
            rows_of[key], epoch, update, sample = shared[name]
            values = values[order]
            values = _read_only(_array(values) if values.dtype == object else values)
            series[key] = Series(key, epoch, update, sample, values)
        return series, rows_of


def _array(values: Sequence[Any] | Array) -> Array:
    """Return values as numbers where all are of one type, else as objects."""
    kinds = set(map(type, values))
    dtype = _DTYPES.get(kinds.pop(), object) if len(kinds) == 1 else object
    try:
        return np.fromiter(values, dtype, len(values))
    except OverflowError:  # an int beyond 64 bits
        return np.fromiter(values, object, len(values))


def _joined(parts: Sequence[Array]) -> Array:
    is_alike = len({part.dtype for part in parts}) == 1
    return np.concatenate(parts, dtype=None if is_alike else object)


def _read_only(values: Array) -> Array:
    values.flags.writeable = False
    return values
