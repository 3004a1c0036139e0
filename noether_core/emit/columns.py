"""Turn the lines of log files into columns: for each key NumPy arrays of its values and of where they were logged."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from operator import index, itemgetter
from typing import Any

import numpy as np

from noether_core.emit.lineage import Lineage
from noether_core.emit.starts import Start, start_without_record
from noether_core.errors import RunFormatError
from noether_core.schedule import UNITS

Array = np.ndarray[Any, Any]
MOST_KEYS = 500_000  # of a log
_BATCH = 256  # rows that are held as Python objects at a time
_DTYPES: dict[type, type] = {float: np.float64, int: np.int64, bool: np.bool_}
_iteration = itemgetter(*UNITS)
_update = itemgetter("update")


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

    `for point in series`, and `series[-1]`, give the same as `Point`s, with plain Python values.

    Attributes:
        epoch, update, sample: int64, how many of each were completed at each value.
        time: float64, when its entry was written, in seconds since 1970 (Unix time); NaN where that is not known.
        value: float64, int64 or bool where every value is one of that type; else the values themselves, as objects.
        provisional: int64, the places of values that are of intervals which were not over when their start ended.
    """

    key: str
    epoch: Array
    update: Array
    sample: Array
    time: Array
    value: Array
    provisional: Array = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, at: int) -> Point:
        place = range(len(self))[index(at)]
        return Point(*(column[place : place + 1].tolist()[0] for column in self._columns))

    def __iter__(self) -> Iterator[Point]:
        return map(Point, *map(_plain, self._columns))

    @property
    def _columns(self) -> tuple[Array, ...]:
        return self.epoch, self.update, self.sample, self.value


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
        times: float64, when each entry was written; see `Series`.
        layouts: the different tuples of names that entries have, `epoch`, `update` and `sample` among them.
        layout: which of these each entry has.
    """

    series: Mapping[str, Series]
    rows: Mapping[str, Array]
    iterations: Array
    times: Array
    layouts: Sequence[tuple[str, ...]]
    layout: Array

    def iter_entries(self) -> Iterator[dict[str, Any]]:
        """Yield each entry as it was logged: the names in its order, plain Python values."""
        columns: dict[str, Iterator[Any]] = {unit: _plain(self.iterations[:, at]) for at, unit in enumerate(UNITS)}
        columns |= {key: _plain(series.value) for key, series in self.series.items()}
        for layout in _plain(self.layout):
            yield {name: next(columns[name]) for name in self.layouts[layout]}


def joined_entry(flushes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was logged for one update in several flushes: the newest value of each key."""
    entry: dict[str, Any] = {}
    for flush in flushes:
        entry.update(flush)
    return entry


class TableBuilder:
    """Collect entries, start by start, and make a table of them; what stands of each start, its `Lineage` says.

    What was logged for one update is one row, however many flushes it came in, or starts: a later value of a key wins.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[tuple[Array, Array]]] = {}  # rows and values, batch by batch
        self._layouts: dict[tuple[str, ...], int] = {}
        self._layout = array("q")  # of each row
        self._iterations = array("q")
        self._times = array("d")
        self.starts: list[Start] = []
        self._begun: list[int] = []  # each start's first row
        self._whole: list[int] = []  # and its first one that is provisional

    def add_start(
        self,
        entries: Iterable[dict[str, Any]],
        start: Start | None = None,
        times: Mapping[int, float] | None = None,
        provisional: Iterable[dict[str, Any]] = (),
    ) -> None:
        """Add the entries that one process start logged.

        Args:
            entries: as they were flushed.
            start: what its record says; None: it has none.
            times: when the entry of each update was written.
            provisional: what was logged of intervals that were not over.
        """
        self._begun.append(len(self._layout))
        self._whole.append(sys.maxsize)  # until it is known, also if reading them fails
        self.starts.append(start or start_without_record(None))
        self._add_all(entries, times)
        self._whole[-1] = len(self._layout)
        self._add_all(provisional, times)
        updates = self.updates(len(self._begun) - 1)
        self.starts[-1] = start or start_without_record(updates[0] if updates else None)

    def _add_all(self, entries: Iterable[dict[str, Any]], times: Mapping[int, float] | None) -> None:
        rows = (joined_entry(flushes) for _, flushes in groupby(entries, _update))
        while batch := list(islice(rows, _BATCH)):
            self._add(batch)
            self._times.extend([times.get(row["update"], math.nan) if times else math.nan for row in batch])

    def updates(self, start: int) -> Sequence[int]:
        """Return the updates at which a start logged, by its place among all."""
        first, end, *_ = [*self._begun[start : start + 2], len(self._layout)]
        return self._iterations[first * len(UNITS) + UNITS.index("update") : end * len(UNITS) : len(UNITS)]

    def _add(self, batch: Sequence[dict[str, Any]]) -> None:
        groups: dict[tuple[str, ...], list[int]] = {}
        first = len(self._layout)
        for at, row in enumerate(batch):
            names = tuple(row)
            groups.setdefault(names, []).append(at)
            self._layout.append(self._layouts.setdefault(names, len(self._layouts)))
            self._iterations.extend(_iteration(row))
        if len(self._layouts) > MOST_KEYS or len(self._columns) > MOST_KEYS:
            raise RunFormatError(f"the log has more than {MOST_KEYS:,} keys, the most that are read into columns")
        for names, places in groups.items():
            rows = first + np.array(places)
            columns = zip(*(batch[at].values() for at in places), strict=True)
            for name, values in zip(names, columns, strict=True):
                self._columns.setdefault(name, []).append((rows, _array(values)))

    def build(self, lineage: Lineage | None = None) -> tuple[Table, int]:
        """Return the table, and how many entries were superseded; the builder is then empty.

        Args:
            lineage: what stands of the starts; None: what is known of it from their entries.
        """
        lineage = lineage or Lineage(self.starts, [self.updates(start) for start in range(len(self.starts))])
        layout = np.array(self._layout, np.int64)
        iterations = np.array(self._iterations, np.int64).reshape(-1, len(UNITS))
        update = iterations[:, UNITS.index("update")]
        until = np.repeat(lineage.until, np.diff([*self._begun, len(layout)]))
        is_kept, is_provisional = update <= until, np.zeros(len(layout), bool)
        for start, (first, end) in enumerate(pairwise([*self._begun, len(layout)])):
            for row in range(max(first, self._whole[start]), end):
                is_provisional[row] = True
                is_kept[row] = lineage.stands(start, int(update[row]), is_provisional=True)
        kept = np.flatnonzero(is_kept)
        is_new = np.append(True, np.diff(update[kept]) != 0)[: len(kept)]  # else it goes on with the row before
        place = np.full(len(layout), -1)
        place[kept] = np.cumsum(is_new) - 1
        last = kept[np.append(is_new[1:], True)[: len(kept)]]  # the row that each row of the table ends with
        final = layout[last]
        names_of = list(self._layouts)
        for at in np.unique(place[kept[~is_new]]).tolist():
            joined = dict.fromkeys(name for row in kept[place[kept] == at] for name in names_of[layout[row]])
            final[at] = self._layouts.setdefault(tuple(joined), len(self._layouts))
        iterations, times = _read_only(iterations[last]), _read_only(np.array(self._times)[last])
        layouts = tuple(self._layouts)
        names = dict.fromkeys(name for each in dict.fromkeys(final.tolist()) for name in layouts[each])
        keys = [name for name in names if name not in UNITS]
        series, rows = self._series(keys, iterations, times, place, is_provisional)
        return Table(series, rows, iterations, times, layouts, _read_only(final)), int(np.sum(place < 0))

    def _series(
        self, keys: Sequence[str], iterations: Array, times: Array, place: Array, is_provisional: Array
    ) -> tuple[dict[str, Series], dict[str, Array]]:
        series, rows_of = {}, {}
        shared: dict[bytes, tuple[Array, ...]] = {}  # many keys are logged together
        for key in keys:
            rows, values = map(_joined, zip(*self._columns.pop(key), strict=True))
            order = np.argsort(rows, kind="stable")
            order = order[place[rows[order]] >= 0]
            is_part = is_provisional[rows[order]]
            rows = place[rows[order]]
            is_newest = np.append(np.diff(rows) != 0, True)[: len(rows)]  # of what one update has of the key
            rows, values, is_part = rows[is_newest], values[order[is_newest]], is_part[is_newest]
            name = rows.tobytes()
            if name not in shared:
                units = (iterations[rows, at] for at in range(len(UNITS)))
                shared[name] = tuple(map(_read_only, (rows, *units, times[rows])))
            rows_of[key], epoch, update, sample, written = shared[name]
            values = _read_only(_array(values) if values.dtype == object else values)
            part = _read_only(np.flatnonzero(is_part))
            series[key] = Series(key, epoch, update, sample, written, values, part)
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
