"""Measure two trainings at every update and key that both have, once, as columns by key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from noether_core.parity.divergence.distance import BOUNDED, TINY, Measure, bounds, measure, same_places
from noether_core.parity.divergence.rows import BY_ROW, RowOrder, row_order
from noether_core.parity.divergence.samples import Drift, Samples
from noether_core.parity.divergence.training import Training, stage_of
from noether_core.probes.stages import STAGES, accumulation_step_of

Array = np.ndarray[Any, Any]

SCALARS = 16  # elements up to which an array's norm may be near zero by chance
WINDOW = 3  # updates to each side whose norms say how large a scalar is
AVERAGES = ("average", "averaged", "ema", "shadow", "swa")  # words in the names of averaged weights
AS_ZEROS = ("grad", "clip", "update")
"""The stages where a parameter without an array has zeros: PyTorch has no gradient where JAX has one of zeros."""


@dataclass(frozen=True)
class Column:
    """Hold one key's distances, a row an update.

    Attributes:
        updates: int64, ascending.
        distance: binary64; a bound from below where there were statistics alone.
        norm_a, norm_b: binary64.
        whole: bool; whether arrays were compared, not statistics.
        size: how many elements the key has.
    """

    updates: Array
    distance: Array
    norm_a: Array
    norm_b: Array
    whole: Array
    size: int

    @property
    def norm(self) -> Array:
        """The larger norms."""
        return np.fmax(self.norm_a, self.norm_b)

    def norm_at(self, row: int) -> float:
        """Return the larger norm at a row."""
        return float(max(self.norm_a[row], self.norm_b[row]))

    @property
    def nearby(self) -> Array:
        """How many times larger a scalar is nearby than at each update: near zero its relative error is larger. Else 1."""
        norms = np.where(np.isfinite(self.norm), self.norm, 0.0)
        if self.size > SCALARS or len(norms) < 2:
            return np.ones(len(norms))
        padded = np.pad(norms, WINDOW, mode="edge")
        near = np.max(np.lib.stride_tricks.sliding_window_view(padded, 2 * WINDOW + 1), axis=1)
        return np.asarray(near / np.where(norms > 0, norms, np.maximum(near, TINY)))

    def at(self, update: int) -> int:
        """Return the row of an update, which must be there."""
        return int(np.searchsorted(self.updates, update))


@dataclass(frozen=True)
class Table:
    """Hold what was measured between two trainings.

    Attributes:
        columns: by key, in the order of a step: by stage, then in the first training's order of computation.
        updates: that both have.
        orders: for the updates whose batches have the same rows in another order, that order.
        drifts: what is systematic in updates and clipping, by update.
        alone: keys that one of them has and the other never, first a's, then b's.
        dtypes: by key, the two dtypes of the first arrays of which one is of floats, where these are not the same.
    """

    columns: Mapping[str, Column]
    updates: Sequence[int]
    orders: Mapping[int, RowOrder] = field(default_factory=dict)
    drifts: Mapping[int, Drift] = field(default_factory=dict)
    alone: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    dtypes: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def compared(self) -> int:
        """How many pairs were measured."""
        return sum(len(column.updates) for column in self.columns.values())

    def of_stage(self, stage: str) -> dict[str, Column]:
        """Return the columns of a stage."""
        return {key: column for key, column in self.columns.items() if key.startswith(stage + "/")}


def pair_of(a: Training, b: Training, table: Table, update: int, key: str) -> tuple[Array, Array] | None:
    """Return a key's arrays of an update, row for row, or None unless both have one, of one shape."""
    first, second = a.array(update, key), b.array(update, key)
    if first is None or second is None:
        return None
    order = table.orders.get(update)
    if order is not None and stage_of(key) == "act":
        second = order.of_second(second)
    return (first, second) if same_places(first, second) else None


class _Rows:
    """Collect rows of columns."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[int, Measure]]] = {}
        self.dtypes: dict[str, tuple[str, str]] = {}  # of each key's first arrays

    def add(self, key: str, update: int, found: Measure) -> None:
        self.rows.setdefault(key, []).append((update, found))

    def apart(self) -> list[str]:
        """Return the keys of other floats in the one, or of none; whole numbers may have any dtype, and a count is one."""
        return [
            key
            for key, (first, second) in self.dtypes.items()
            if first != second
            and ("float" in first or "float" in second)
            and (all("float" in each for each in (first, second)) or self.rows[key][0][1].size > 1)
        ]

    def column(self, key: str) -> Column:
        rows = self.rows[key]
        found = [each for _, each in rows]
        return Column(
            np.array([update for update, _ in rows], np.int64),
            np.array([each.distance for each in found]),
            np.array([each.norm_a for each in found]),
            np.array([each.norm_b for each in found]),
            np.ones(len(rows), bool),
            max(each.size for each in found),
        )


def measured(
    a: Training, b: Training, progress: Callable[[int, int], None] | None = None, *, any_order: bool = False
) -> Table:
    """Measure two trainings at every update and key that both have. Arrays are read one pair at a time.

    Args:
        a: a training. One that offers `statistics_columns(key) -> (updates, columns)` is asked for these, a key at a
            time, in place of `statistics`; one that offers `array_updates()` is asked for arrays of these updates alone.
        b: the other.
        progress: called with how many updates are done, and of how many.
        any_order: whether the rows of a batch may come in any order, as in twins. Activations are compared row by row anyway.
    """
    both = sorted(set(a.updates()) & set(b.updates()))
    with_arrays = set(both) & _array_updates(a) & _array_updates(b)
    rows, orders, drifts = _Rows(), {}, {}
    seen_a, seen_b = _keys(a, both), _keys(b, both)
    for done, update in enumerate(sorted(with_arrays)):
        order = row_order(a, b, update)
        if order is not None:
            orders[update] = order
        drifts[update] = _measure_update(a, b, update, order, rows, any_order)
        if progress:
            progress(done + 1, len(with_arrays))
    common = _ordered([*(key for key in seen_a if key in seen_b), *rows.rows])
    columns = {}
    for key in common:
        from_arrays = rows.column(key) if key in rows.rows else None
        column = _with_statistics(a, b, key, both, from_arrays)
        if column is not None:
            columns[key] = column
    alone = tuple(key for key in seen_a if key not in seen_b), tuple(key for key in seen_b if key not in seen_a)
    return Table(columns, both, orders, drifts, alone, {key: rows.dtypes[key] for key in rows.apart()})


def _array_updates(training: Training) -> set[int]:
    offered = getattr(training, "array_updates", None)
    return set(training.updates() if offered is None else offered())


def _keys(training: Training, updates: Sequence[int]) -> dict[str, None]:
    """Return the keys of a training in the order of a step; of many updates, those of some."""
    some = updates if len(updates) <= 64 else [*updates[:32], *updates[32 :: max(1, len(updates) // 32)]]
    return _ordered([key for update in some for key in training.keys(update)])


def _ordered(keys: Sequence[str]) -> dict[str, None]:
    return dict.fromkeys(sorted(dict.fromkeys(keys), key=_place))


def _place(key: str) -> tuple[int, int, int]:
    """Return a key's place, by stage and accumulation step; totals follow their parts, averaged weights the moments."""
    stage = stage_of(key)
    step = accumulation_step_of(key) if stage in ("data", "act", "loss") else 0
    words = re.split(r"[/._]", key.lower()) if stage == "opt" else ()
    is_last = key.partition("@")[0] == "loss/total" or any(word in AVERAGES for word in words)
    return STAGES.index(stage), step, int(is_last)


def _measure_update(
    a: Training, b: Training, update: int, order: RowOrder | None, rows: _Rows, any_order: bool
) -> Drift:
    samples = Samples()
    keys_a, keys_b = list(a.keys(update)), list(b.keys(update))
    known_a, known_b = set(keys_a), set(keys_b)
    for key in _ordered([*keys_a, *keys_b]):
        if key in known_a and key in known_b:
            array_a, array_b = a.array(update, key), b.array(update, key)
        elif _stands_for_zeros(key, known_a, known_b):
            array_a, array_b = _with_zeros(a, b, update, key)
        else:
            continue
        if array_a is None or array_b is None or not (array_a.size or array_b.size):
            continue
        if order is not None and stage_of(key) in (BY_ROW if any_order else BY_ROW[1:]):
            array_b = order.of_second(array_b)
        found = measure(array_a, array_b)
        rows.add(key, update, found)
        rows.dtypes.setdefault(key, (str(array_a.dtype), str(array_b.dtype)))
        samples.take(key, array_a, array_b, found)
    return samples.drift()


def _stands_for_zeros(key: str, known_a: set[str], known_b: set[str]) -> bool:
    stage, _, name = key.partition("/")
    parameter = f"param/{name}"
    if stage not in AS_ZEROS or parameter not in known_a or parameter not in known_b:
        return False
    return any(each.startswith(stage + "/") for each in known_a) and any(
        each.startswith(stage + "/") for each in known_b
    )


def _with_zeros(a: Training, b: Training, update: int, key: str) -> tuple[Array | None, Array | None]:
    first, second = (each.array(update, key) if key in each.keys(update) else None for each in (a, b))
    given = second if first is None else first
    if given is None:
        return None, None
    zeros = np.zeros(given.shape, np.float32)
    return (zeros, given) if first is None else (given, zeros)


def _with_statistics(a: Training, b: Training, key: str, both: Sequence[int], arrays: Column | None) -> Column | None:
    """Return a key's column: of arrays where there are some, and for other updates of statistics."""
    missing = np.asarray(both, np.int64)
    if arrays is not None:
        missing = np.setdiff1d(missing, arrays.updates, assume_unique=True)
    if not len(missing):
        return arrays
    updates_a, columns_a = _statistics_columns(a, key, missing)
    updates_b, columns_b = _statistics_columns(b, key, missing)
    updates = _shared(_shared(updates_a, updates_b), missing)
    if not len(updates):
        return arrays
    taken_a, taken_b = _rows_of(updates, updates_a, columns_a), _rows_of(updates, updates_b, columns_b)
    found = bounds(taken_a, taken_b)
    norm_a, norm_b = (np.asarray(taken["norm"], np.float64) for taken in (taken_a, taken_b))
    size = int(max(np.max(np.asarray(taken["count"])) for taken in (taken_a, taken_b)))
    column = Column(updates.astype(np.int64), found, norm_a, norm_b, np.zeros(len(found), bool), size)
    return arrays if not size else column if arrays is None else _joined(arrays, column)


def _statistics_columns(training: Training, key: str, updates: Array) -> tuple[Array, dict[str, Array]]:
    offered = getattr(training, "statistics_columns", None)
    if offered is not None:
        found_updates, columns = offered(key)
        return np.asarray(found_updates), {
            name: np.asarray(getattr(columns, name)) for name in (*BOUNDED, "fingerprint")
        }
    found = [(int(each), training.statistics(int(each), key)) for each in updates]
    kept = [(each, statistics) for each, statistics in found if statistics is not None]
    columns = {name: np.array([getattr(each, name) for _, each in kept]) for name in (*BOUNDED, "fingerprint")}
    return np.array([each for each, _ in kept], np.int64), columns


def _shared(first: Array, second: Array) -> Array:
    if np.array_equal(first, second):
        return first
    return np.intersect1d(first, second, assume_unique=True)


def _rows_of(updates: Array, known: Array, columns: Mapping[str, Array]) -> Mapping[str, Array]:
    if len(updates) == len(known):
        return columns
    places = np.searchsorted(known, updates)
    return {name: column[places] for name, column in columns.items()}


def _joined(first: Column, second: Column) -> Column:
    order = np.argsort(np.concatenate([first.updates, second.updates]), kind="stable")
    return Column(
        np.concatenate([first.updates, second.updates])[order],
        np.concatenate([first.distance, second.distance])[order],
        np.concatenate([first.norm_a, second.norm_a])[order],
        np.concatenate([first.norm_b, second.norm_b])[order],
        np.concatenate([first.whole, second.whole])[order],
        max(first.size, second.size),
    )
