"""Take each step with as little work as possible, and reduce many of them together.

`PendingReducer` does that with the `Kernels` of an array library: `EagerKernels` for those that run operation by operation
(NumPy, PyTorch); a front-end that compiles brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby, islice
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.algebra.lift import ArraySummary, lift, statistics_of, summarise
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.sums import Fields, SlotOps, Statistics, each, into_slots
from noether_core.reduce.layout import Layout, Pending, Room, Step, Taken
from noether_core.silence import SILENT

PENDING_VALUES = 2**15  # how many values may be stacked before they are reduced
_LEAST_PENDING = 8  # steps, before there is room for so many times as many


class EagerOps(SlotOps, Protocol):
    """Add what `EagerKernels` needs of an array library."""

    def stack(self, values: Sequence[Any], dtype: str) -> Array:
        """Return one-element values of the dtype of that name as a new vector."""

    def stack_rows(self, rows: Sequence[Any]) -> Array:
        """Return arrays of one shape and dtype, or single numbers (see `Ops`), stacked along a new leading axis."""

    def room(self, vectors: Sequence[Array], count: int) -> Sequence[Sequence[Array]] | None:
        """Return, for each of these, so many vectors like it, without values, that lie together in memory; None: as they come.

        On the host each vector of its own, allocated among the large arrays of a training that come and go, would keep the
        next large array out of the place of the last one.
        """

    def put_into(self, row: Array, vectors: list[Array]) -> Array:
        """Return a vector of `room`, now with the values of these, joined."""

    def copy(self, value: Array) -> Array:
        """Return a copy of an array that keeps nothing else alive."""

    def positions(self, positions: Sequence[int], like: Array) -> Array:
        """Return positions as int64, shape [positions, 1], on the device of `like`."""

    def weight(self, value: Any, like: Array) -> Array:
        """Return a copy of a weight (an array, or a Python or NumPy number) as a vector on the device of `like`."""

    def to_host(self, values: Sequence[Array]) -> list[np.ndarray[Any, Any]]:
        """Return arrays as NumPy arrays that share nothing with them; of each device all in one transfer."""


class Batch(NamedTuple):
    """Hold steps of one layout, one a row.

    Attributes:
        rows: of each group of scalars or small arrays, the values: [steps, elements].
        weights: of each step [steps, elements], or None.
        arrays: the statistics of the large arrays [steps, arrays], or None.
        positions: int64 [steps, 1].
    """

    rows: tuple[Array, ...]
    weights: Array | None
    arrays: Statistics | None
    positions: Array


class ReducerState(NamedTuple):
    """Hold what is reduced, and some steps of one layout that are only stacked: an operation a step, not twenty.

    Attributes:
        sums: what is reduced, in the kernels' own form; None: nothing yet.
        pending: the steps that are not, oldest first.
        layout: of those steps.
        num_slots: how many slots the sums must have.
    """

    sums: Any
    pending: tuple[Pending, ...]
    layout: Layout
    num_slots: int


class Kernels(Protocol):
    """Do what `PendingReducer` asks for, with one array library. Nothing is changed in place."""

    def most_pending(self, layout: Layout) -> int:
        """Return how many steps of a layout are only stacked before they are reduced together."""

    def take(self, step: Step, earlier: Sequence[Pending]) -> tuple[Pending, Taken]:
        """Return a step stacked, its arrays read; and copies of its values. It is called at every step: be quick.

        Args:
            step: the step.
            earlier: those before it that are to be reduced with it.
        """

    def settle(self, state: ReducerState) -> Any:
        """Return the state's sums with all that is pending merged in: `most_pending` steps, or fewer."""

    def to_host(
        self, states: Sequence[ReducerState], copies: Sequence[Array]
    ) -> tuple[list[tuple[Statistics | None, Batch]], list[np.ndarray[Any, Any]]]:
        """Return the states' sums, what is pending, and some copies in NumPy; of each device all in one transfer.

        This waits for the device.
        """


class PendingReducer:
    """Take each step with as little work as possible, and reduce many of them together.

    Args:
        kernels: do the work, with one array library.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def absorb(self, state: ReducerState | None, step: Step) -> tuple[ReducerState, Taken]:
        """Return the state with a step merged in, and copies of the step's values."""
        layout = step.layout
        if state is not None and state.layout is layout and len(state.pending) < self._kernels.most_pending(layout):
            pending, taken = self._kernels.take(step, state.pending)
            return ReducerState(state.sums, (*state.pending, pending), layout, step.num_slots), taken
        pending, taken = self._kernels.take(step, ())
        sums = None if state is None else self._kernels.settle(state)
        return ReducerState(sums, (pending,), layout, step.num_slots), taken

    def lone_row(self, state: ReducerState) -> np.ndarray[Any, Any]:
        """Return the values of a state of one step that has one group of scalars."""
        _, rows = self._kernels.to_host([], [state.pending[0].rows[0]])
        return rows[0]

    def batch(self, state: ReducerState) -> Batch:
        """Return what is pending of a state, in NumPy. This waits for the device."""
        ((_, batch),), _ = self._kernels.to_host([state], [])
        return batch

    @SILENT
    def to_host(
        self, states: Sequence[ReducerState], copies: Sequence[Array]
    ) -> tuple[list[Statistics], list[np.ndarray[Any, Any]]]:
        """Return the statistics of each state and some copies in NumPy, with which what is still pending is reduced."""
        hosted, arrays = self._kernels.to_host(states, copies)
        return [
            reduce_batch(NUMPY, state.layout, batch, sums, state.num_slots)
            for state, (sums, batch) in zip(states, hosted, strict=True)
        ], arrays


def reduce_batch(ops: SlotOps, layout: Layout, batch: Batch, sums: Statistics | None, num_slots: int) -> Statistics:
    """Return `sums` (None: nothing yet) with the steps of a batch merged in, each value into its slot."""
    parts: list[Statistics] = []
    for group, rows in enumerate(batch.rows):
        sizes = layout.small[group - len(layout.dtypes)] if group >= len(layout.dtypes) else ()
        weights = batch.weights
        if weights is not None and weights.shape[1] > 1:  # one for each element, of each array
            weights = ops.xp.concat([weights] * len(sizes), axis=-1)
        total = ops.fold(lift(ops, rows, batch.positions, layout.fields, weights))
        parts += _by_array(ops, total, sizes) if sizes else [total]
    if batch.arrays is not None:
        parts.append(ops.fold(batch.arrays))
    total = parts[0] if len(parts) == 1 else each(lambda *arrays: ops.xp.concat(arrays), *parts)
    slots = None if layout.fills(num_slots) else layout.slots
    return into_slots(ops, sums, total, slots, num_slots, layout.fields)


def _by_array(ops: SlotOps, sums: Statistics, sizes: tuple[int, ...]) -> Iterator[Statistics]:
    """Yield the statistics of arrays of these sizes from those of their elements; arrays of one size together."""
    start = 0
    for size, same in groupby(sizes):
        shape = len(list(same)), size
        taken = slice(start, start + prod(shape))
        yield ops.fold(each(lambda field, at=taken, shape=shape: field[at].reshape(shape).T, sums))
        start = taken.stop


class EagerKernels:
    """Work with a library that runs operation by operation."""

    def __init__(self, ops: EagerOps, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._ops = ops
        self._context = context

    def most_pending(self, layout: Layout) -> int:
        """Return how many steps of a layout are only stacked before they are reduced together."""
        return min(256, 1 + PENDING_VALUES // layout.stacked)

    def take(self, step: Step, earlier: Sequence[Pending]) -> tuple[Pending, Taken]:
        """Return a step stacked, its large arrays read; and copies of its values."""
        ops, layout = self._ops, step.layout
        with self._context():
            rows = tuple(map(ops.stack, step.scalars, layout.dtypes))
            weight = None if step.weight is None else ops.weight(step.weight, next(iter((*rows, *step.arrays))))
            if not step.arrays:
                return Pending(rows, weight, (), step.position), Taken(rows, ())
            kept = tuple(
                [ops.copy(value) if keep else None for value, keep in zip(step.arrays, layout.keep, strict=True)]
            )
            flat = iter([value.reshape(-1) for value in step.arrays])
            count, groups = len(rows), [list(islice(flat, len(sizes))) for sizes in layout.small]
            rows, room = self._placed(rows, groups, earlier if layout.has_large and (rows or groups) else ())
            read = tuple([self._summary(value, step.position, layout.fields, weight) for value in flat])
        return Pending(rows, weight if rows else None, read, step.position, room), Taken(rows[:count], kept)

    def _placed(
        self, rows: tuple[Array, ...], groups: Sequence[list[Array]], earlier: Sequence[Pending]
    ) -> tuple[tuple[Array, ...], Room | None]:
        """Return vectors, and beside them the arrays of each group in one, where there is room for those of many steps."""
        if (count := len(earlier)) >= _LEAST_PENDING:  # else the interval may be short
            room, used = earlier[-1].room or (None, 0)
            if room is None or used == len(room[0]):
                room, used = self._ops.room(earlier[-1].rows, _LEAST_PENDING * count), 0
            if room is not None:
                vectors = [*([row] for row in rows), *groups]
                placed = [self._ops.put_into(row[used], each) for row, each in zip(room, vectors, strict=True)]
                return tuple(placed), (room, used + 1)
        return rows + tuple(map(self._ops.xp.concat, groups)), None

    def _summary(self, flat: Array, position: int, fields: Fields, weight: Array | None) -> ArraySummary:
        return summarise(self._ops, flat, lambda: self._ops.positions([position], flat), fields, weight)

    def settle(self, state: ReducerState) -> Statistics:
        """Return the sums with all that is pending merged in."""
        with self._context():
            batch = self.batch(state)
            return reduce_batch(self._ops, state.layout, batch, state.sums, state.num_slots)

    def batch(self, state: ReducerState) -> Batch:
        """Return what is pending, where it is."""
        stacked = self._stacked(state)
        like = next(iter((*stacked.rows, *(array.total[0] for array in stacked.arrays))))
        positions = self._ops.positions([step.position for step in state.pending], like)
        return Batch(stacked.rows, stacked.weight, _joined(self._ops, state.layout, stacked.arrays), positions)

    def _stacked(self, state: ReducerState) -> Pending:
        """Return all that is pending as one: each array with a leading axis of steps."""
        rows, weights, arrays, *_ = zip(*state.pending, strict=True)
        stack = self._ops.stack_rows
        return Pending(
            tuple(map(stack, zip(*rows, strict=True))),
            None if weights[0] is None else stack(weights),
            tuple(each(lambda *numbers: stack(numbers), *read) for read in zip(*arrays, strict=True)),
            0,
        )

    def to_host(
        self, states: Sequence[ReducerState], copies: Sequence[Array]
    ) -> tuple[list[tuple[Statistics | None, Batch]], list[np.ndarray[Any, Any]]]:
        """Return the states' sums, what is pending, and some copies in NumPy; of each device all in one transfer."""
        with self._context():
            found = [(state.sums, self._stacked(state)) for state in states]
            leaves: list[Array] = list(copies)
            _mapped(leaves.append, found)
            arrays = self._ops.to_host(leaves)
        rest = iter(arrays[len(copies) :])
        hosted = [
            (sums, Batch(each.rows, each.weight, _joined(NUMPY, state.layout, each.arrays), _positions(state)))
            for state, (sums, each) in zip(states, _mapped(lambda _: next(rest), found), strict=True)
        ]
        return hosted, arrays[: len(copies)]


def _positions(state: ReducerState) -> np.ndarray[Any, Any]:
    return np.array([[step.position] for step in state.pending], np.int64)


def _joined(ops: SlotOps, layout: Layout, summaries: Sequence[ArraySummary]) -> Statistics | None:
    """Return the statistics of large arrays, [steps, arrays], from what was read of each, [steps, 1]."""
    if not summaries:
        return None
    found = [statistics_of(ops, summary, layout.fields) for summary in summaries]
    return each(lambda *arrays: ops.xp.concat(arrays, axis=-1), *found)


def _mapped(function: Callable[[Array], Any], tree: Any) -> Any:
    """Return nested lists and tuples with a function applied to every array in them."""
    if isinstance(tree, tuple | list):
        parts = [_mapped(function, part) for part in tree]
        return tree._make(parts) if hasattr(tree, "_make") else type(tree)(parts)
    return tree if tree is None or type(tree) is int else function(tree)
