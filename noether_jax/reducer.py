"""Reduce a step's JAX arrays: one compiled call a step, which nothing waits for, and another every 32 steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.lift import lift, lift_array
from noether_core.algebra.sums import Fields, Ops, Statistics, each, empty, into_slots
from noether_core.reduce.eager import PENDING_VALUES, Batch, Pending, ReducerState
from noether_core.reduce.layout import Layout, Step, Taken
from noether_jax import packing
from noether_jax.ops import JaxOps, ops_for


def lift_step(
    ops: Ops,
    scalars: tuple[tuple[jax.Array, ...], ...],
    arrays: tuple[jax.Array, ...],
    weight: jax.Array | None,
    position: jax.Array,
    fields: Fields,
) -> tuple[Statistics, tuple[jax.Array, ...]]:
    """Return the sums of one step's values, a slot for each, group by group and array by array; and the groups' vectors."""
    at = position.reshape(1, 1)
    factor = None if weight is None else weight.reshape(-1)
    rows = tuple(jnp.stack([value.reshape(()) for value in group]) for group in scalars)
    beside = None if factor is None else factor[None]
    parts = [each(lambda array: array[0], lift(ops, row[None], at, fields, beside)) for row in rows]
    parts += [lift_array(ops, value.reshape(-1), lambda: at, fields, factor) for value in arrays]
    return each(lambda *arrays: jnp.concatenate(arrays), *parts), rows


@partial(jax.jit, static_argnames=("ops", "keep", "fields"))
def _take(
    scalars: tuple[tuple[jax.Array, ...], ...],
    arrays: tuple[jax.Array, ...],
    weight: jax.Array | None,
    position: jax.Array | None,
    *,
    ops: JaxOps,
    keep: tuple[bool, ...],
    fields: Fields,
) -> tuple[tuple[jax.Array, ...], jax.Array | None, jax.Array | None, tuple[jax.Array | None, ...]]:
    """Return the groups' vectors, the weight, the arrays' sums as words, and the copies that are wanted: new buffers, all.

    A later donation of the user's arrays leaves them whole.
    """
    rows = tuple(jnp.stack([value.reshape(()) for value in group]) for group in scalars)
    factor = None if weight is None else weight.reshape(-1)
    kept = tuple(jnp.copy(value) if wanted else None for value, wanted in zip(arrays, keep, strict=True))
    if position is None:
        return rows, None if factor is None else jnp.copy(factor), None, kept
    lifted, _ = lift_step(ops, (), arrays, weight, position, fields)
    return rows, jnp.copy(factor) if factor is not None and rows else None, packing.pack(lifted), kept


@partial(jax.jit, static_argnames=("ops", "num_slots", "fields"))
def _settle(
    state: jax.Array,
    rows: tuple[tuple[jax.Array, ...], ...],
    weights: tuple[jax.Array, ...] | None,
    lifted: tuple[jax.Array, ...] | None,
    positions: jax.Array,
    slots: jax.Array | None,
    *,
    ops: JaxOps,
    num_slots: int,
    fields: Fields,
) -> jax.Array:
    """Return the words of a state with steps merged in; a step whose position is below 0 is a blank."""
    at = positions[:, None]
    beside = None if weights is None else jnp.stack(weights)
    parts = [lift(ops, jnp.stack(group), at, fields, beside) for group in zip(*rows, strict=True)]
    if lifted is not None:
        steps = jnp.stack(lifted, 1)  # fields, steps, slots and halves
        unpacked, _ = packing.unpack(ops, fields, steps.reshape(steps.shape[0], -1, 2))
        parts.append(each(lambda field: field.reshape(steps.shape[1:3]), unpacked))
    # all of them joined first: one loop to compile
    joined = each(lambda *arrays: jnp.concatenate(arrays, -1), *parts)
    blank = each(lambda value: jnp.asarray(value), empty(ops, fields))
    live = each(lambda field, other: ops.where(at >= 0, field, other.astype(field.dtype)), joined, blank)
    sums, _ = packing.unpack(ops, fields, state)
    return packing.pack(into_slots(ops, sums, ops.fold(live), slots, num_slots, fields))


class JaxStatistics(NamedTuple):
    """Hold sums as words (see `noether_jax.packing`), and what reads them."""

    words: Any
    ops: JaxOps
    fields: Fields


class JaxKernels:
    """Take a step in one compiled call, and reduce many of them in another.

    Args:
        ops: what to reduce with; None: whatever the default device has.
    """

    def __init__(self, ops: JaxOps | None = None) -> None:
        self._given = ops

    @cached_property
    def _ops(self) -> JaxOps:
        return self._given or ops_for(jax.default_backend())

    def most_pending(self, layout: Layout) -> int:
        """Return how many steps of a layout `settle` takes at a time; it is compiled for that many."""
        return min(32, 1 + PENDING_VALUES // len(layout.slots))

    def take(self, step: Step) -> tuple[Pending, Taken]:
        """Return a step stacked, its arrays lifted; and copies of its values."""
        layout, weight = step.layout, step.weight
        if weight is not None and not isinstance(weight, jax.Array):
            weight = np.asarray(weight)
        position = np.int64(step.position) if step.arrays else None
        with jax.enable_x64(True):
            rows, weight, lifted, kept = _take(
                step.scalars, step.arrays, weight, position, ops=self._ops, keep=layout.keep, fields=layout.fields
            )
        return Pending(rows, weight, lifted, step.position), Taken(rows, kept)

    def settle(self, state: ReducerState) -> JaxStatistics:
        """Return the sums with all that is pending merged in."""
        layout, pending = state.layout, state.pending
        fields = layout.fields
        sums = state.sums
        if sums is None:  # an identity of the same types, so that the first call is not a compilation of its own
            ops = self._ops
            sums = JaxStatistics(packing.initial(ops, fields, state.num_slots), ops, fields)
        blanks = self.most_pending(layout) - len(pending)
        steps = (*pending, *pending[:1] * blanks)
        first = pending[0]
        with jax.enable_x64(True):
            packed = _settle(
                sums.words,
                tuple(step.rows for step in steps),
                None if first.weight is None else tuple(step.weight for step in steps),
                None if first.arrays is None else tuple(step.arrays for step in steps),
                np.array([step.position for step in pending] + [-1] * blanks, np.int64),
                None if layout.fills(state.num_slots) else layout.slots,
                ops=sums.ops,
                num_slots=state.num_slots,
                fields=fields,
            )
        return JaxStatistics(packed, sums.ops, fields)

    def to_host(
        self, states: Sequence[ReducerState], copies: Sequence[jax.Array]
    ) -> tuple[list[tuple[Statistics | None, Batch]], list[np.ndarray[Any, Any]]]:
        """Return the states' sums, what is pending, and some copies in NumPy; all are fetched at once."""
        held = [(state.sums and state.sums.words, [each[:3] for each in state.pending]) for state in states]
        hosted, arrays = jax.device_get((held, list(copies)))
        found = []
        for state, (words, pending) in zip(states, hosted, strict=True):
            fields, sums = state.layout.fields, state.sums
            rows, weights, lifted = zip(*pending, strict=True)
            batch = Batch(
                tuple(map(np.stack, zip(*rows, strict=True))),
                None if weights[0] is None else np.stack(weights),
                None if lifted[0] is None else packing.from_host(self._ops, fields, np.stack(lifted, 1))[0],
                np.array([[step.position] for step in state.pending], np.int64),
            )
            found.append((sums and packing.from_host(sums.ops, fields, words)[0], batch))
        return found, [np.array(array) for array in arrays]
