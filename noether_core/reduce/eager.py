"""Take each step with as little work as possible, and reduce many of them together.

`PendingReducer` does that with the `Kernels` of an array library: `EagerKernels` for those that run operation by operation
(NumPy, PyTorch); a front-end that compiles brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby, islice
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.algebra.lift import ArraySummary, lift, statistics_of, summarise
from noether_core.algebra.sums import Fields, SlotOps, Statistics, each, into_slots
from noether_core.reduce.layout import Layout, Step, Taken

PENDING_VALUES = 2**15  # how many values may be stacked before they are reduced


class EagerOps(SlotOps, Protocol):
    """Add what `EagerKernels` needs of an array library."""

    def stack(self, values: Sequence[Any], dtype: str) -> Array:
        """Return one-element values of the dtype of that name as a new vector."""

    def stack_rows(self, rows: Sequence[Any]) -> Array:
        """Return arrays of one shape and dtype, or single numbers (see `Ops`), stacked along a new leading axis."""

    def copy(self, value: Array) -> Array:
        """Return a copy of an array that keeps nothing else alive."""

    def positions(self, positions: Sequence[int], like: Array) -> Array:
        """Return positions as int64, shape [positions, 1], on the device of `like`."""

    def weight(self, value: Any, like: Array) -> Array:
        """Return a copy of a weight (an array, or a Python or NumPy number) as a vector on the device of `like`."""

    def to_host(self, values: Sequence[Array]) -> list[np.ndarray[Any, Any]]:
        """Return arrays as NumPy arrays that share nothing with them; of each device all in one transfer."""


class Pending(NamedTuple):
    """Hold a step that is only stacked: a vector per group, its weight, and what was read of its other arrays."""

    rows: tuple[Array, ...]
    weight: Array | None
    arrays: Any
    position: int


class Kernels(Protocol):
    """Do what `PendingReducer` asks for, with one array library. Nothing is changed in place."""

    def most_pending(self, layout: Layout) -> int:
        """Return how many steps of a layout are only stacked before they are reduced together."""

    def take(self, step: Step) -> tuple[Pending, Taken]:
        """Return a step stacked, its arrays read; and copies of its values. It is called at every step: be quick."""

    def settle(self, state: ReducerState) -> Any:
        """Return the state's sums with all that is pending merged in."""

    def to_host(
        self, settled: Sequence[Any], copies: Sequence[Array]
    ) -> tuple[list[Statistics], list[np.ndarray[Any, Any]]]:
        """Return settled sums and some copies as NumPy arrays; of each device all in one transfer. This waits for it."""


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


class PendingReducer:
    """Take each step with as little work as possible, and reduce many of them together.

    Args:
        kernels: do the work, with one array library.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def absorb(self, state: ReducerState | None, step: Step) -> tuple[ReducerState, Taken]:
        """Return the state with a step merged in, and copies of the step's values."""
        pending, taken = self._kernels.take(step)
        layout = step.layout
        if state is None:
            return ReducerState(None, (pending,), layout, step.num_slots), taken
        if state.layout is layout and len(state.pending) < self._kernels.most_pending(layout):
            return ReducerState(state.sums, (*state.pending, pending), layout, step.num_slots), taken
        return ReducerState(self._kernels.settle(state), (pending,), layout, step.num_slots), taken

    def to_host(
        self, states: Sequence[ReducerState], copies: Sequence[Array]
    ) -> tuple[list[Statistics], list[np.ndarray[Any, Any]]]:
        """Return the sums of each state and some copies as NumPy arrays; of each device all in one transfer."""
        return self._kernels.to_host([self._kernels.settle(state) for state in states], copies)


class EagerKernels:
    """Work with a library that runs operation by operation."""

    def __init__(self, ops: EagerOps, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._ops = ops
        self._context = context

    def most_pending(self, layout: Layout) -> int:
        """Return how many steps of a layout are only stacked before they are reduced together."""
        return min(256, 1 + PENDING_VALUES // layout.stacked)

    def take(self, step: Step) -> tuple[Pending, Taken]:
        """Return a step stacked, its large arrays read; and copies of its values."""
        ops, layout = self._ops, step.layout
        with self._context():
            rows = tuple(map(ops.stack, step.scalars, layout.dtypes))
            weight = None if step.weight is None else ops.weight(step.weight, next(iter((*rows, *step.arrays))))
            kept = tuple(
                [ops.copy(value) if keep else None for value, keep in zip(step.arrays, layout.keep, strict=True)]
            )
            flat = iter([value.reshape(-1) for value in step.arrays])
            joined = tuple([ops.concatenate(list(islice(flat, len(sizes)))) for sizes in layout.small])
            read = tuple([self._measure(value, step.position, layout.fields, weight) for value in flat])
        return Pending(rows + joined, weight if rows or joined else None, read, step.position), Taken(rows, kept)

    def _measure(self, flat: Array, position: int, fields: Fields, weight: Array | None) -> ArraySummary:
        return summarise(self._ops, flat, lambda: self._ops.positions([position], flat), fields, weight)

    def settle(self, state: ReducerState) -> Statistics:
        """Return the sums with all that is pending merged in."""
        ops, pending, layout = self._ops, state.pending, state.layout
        fields = layout.fields
        parts = []
        with self._context():
            for group, like in enumerate(pending[0].rows):
                sizes = layout.small[group - len(layout.dtypes)] if group >= len(layout.dtypes) else ()
                positions = ops.positions([step.position for step in pending], like)
                weights = ops.stack_rows([step.weight for step in pending]) if fields.weights else None
                if weights is not None and weights.shape[1] > 1:  # one for each element, of each array
                    weights = ops.concatenate([weights] * len(sizes))
                rows = ops.stack_rows([step.rows[group] for step in pending])
                total = ops.fold(lift(ops, rows, positions, fields, weights))
                parts += self._by_array(total, sizes) if sizes else [total]
            for read in zip(*(step.arrays for step in pending), strict=True):
                stacked = each(lambda *rows: ops.stack_rows(rows), *read)
                parts.append(ops.fold(statistics_of(ops, stacked, fields)))
            total = each(lambda *arrays: ops.concatenate(arrays), *parts)
            slots = None if layout.fills(state.num_slots) else layout.slots
            return into_slots(ops, state.sums, total, slots, state.num_slots, fields)

    def _by_array(self, sums: Statistics, sizes: tuple[int, ...]) -> list[Statistics]:
        """Return the sums of arrays of these sizes from those of their elements; arrays of one size together."""
        found, start = [], 0
        for size, same in groupby(sizes):
            shape = len(list(same)), size
            taken = slice(start, start + prod(shape))
            by_element = each(lambda field, at=taken, shape=shape: field[at].reshape(shape).T, sums)
            found.append(self._ops.fold(by_element))
            start = taken.stop
        return found

    def to_host(
        self, settled: Sequence[Statistics], copies: Sequence[Array]
    ) -> tuple[list[Statistics], list[np.ndarray[Any, Any]]]:
        """Return settled sums and some copies as NumPy arrays; of each device all in one transfer."""
        held: list[Array] = []
        for sums in settled:
            each(held.append, sums)
        with self._context():
            arrays = iter(self._ops.to_host([*held, *copies]))
        return [each(lambda _: next(arrays), sums) for sums in settled], list(arrays)
