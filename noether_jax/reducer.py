"""Reduce the steps that hooks get: one compiled call a step, which nothing waits for, and others every 32 steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import get_abstract_mesh

from noether_core.algebra.sums import Fields, Statistics
from noether_core.reduce.eager import PENDING_VALUES, Batch, ReducerState
from noether_core.reduce.layout import Layout, Pending, Step, Taken
from noether_jax import packing
from noether_jax.binary32 import ops_for
from noether_jax.meshes import beside, no_mesh, reduced, together
from noether_jax.ops import JaxOps
from noether_jax.rows import joined, lift_scalars, lift_step_arrays, merge_rows, source_of, stacked
from noether_jax.transfers import ours, to_host


@partial(jax.jit, static_argnames=("ops", "keep", "fields"))
def _take(
    scalars: tuple[tuple[jax.Array, ...], ...],
    arrays: tuple[jax.Array, ...],
    weight: jax.Array | None,
    *,
    ops: JaxOps,
    keep: tuple[bool, ...],
    fields: Fields,
) -> tuple[tuple[jax.Array, ...], jax.Array | None, jax.Array | None, tuple[jax.Array | None, ...]]:
    """Return the groups' vectors, the weight, the arrays' sums as words, and the copies that are wanted: new buffers, all.

    A later donation of the user's arrays leaves them whole. The step's position comes with `_placed`: nothing is transferred.
    """
    kept = tuple(jnp.copy(reduced(value)) if wanted else None for value, wanted in zip(arrays, keep, strict=True))
    words = None
    with together(scalars, arrays, weight) as shared:
        rows = tuple(map(stacked, shared.taken(scalars)))
        weight = shared.taken(weight)
        if arrays:
            words = packing.pack(ops, lift_step_arrays(ops, shared.taken(arrays), weight, jnp.int64(0), fields))
        factor = None if weight is None or not rows else jnp.copy(weight.reshape(-1))
    return *shared.given((rows, factor, words)), kept


def _take_without_mesh(*values: Any, **options: Any) -> Any:
    with no_mesh():
        return _take(*values, **options)


def _placed(sums: Statistics, positions: Any) -> Statistics:
    """Return the sums of steps' arrays, [steps, arrays], with the steps' positions, [steps, 1]."""
    return sums._replace(first_nonfinite=sums.first_nonfinite | (positions * (sums.first_nonfinite == 0)))


@partial(jax.jit, static_argnames=("ops", "num_slots", "fields"))
def _settle(
    state: jax.Array,
    steps: tuple[tuple[Any, ...], ...],
    positions: jax.Array,
    source: jax.Array | None,
    *,
    ops: JaxOps,
    num_slots: int,
    fields: Fields,
) -> jax.Array:
    """Return the words of a state, grown to a number of slots, with steps merged in: each has its rows, weight and words."""
    parts = []
    with together(state, steps) as shared:
        state, (rows, weights, lifted) = shared.taken((state, tuple(zip(*steps, strict=True))))
        if rows[0]:
            groups = [jnp.stack(group) for group in zip(*rows, strict=True)]
            beside = None if weights[0] is None else jnp.stack(weights)
            parts.append(lift_scalars(ops, groups, beside, positions, fields))
        if lifted[0] is not None:
            parts.append(_placed(packing.unpack(ops, fields, jnp.stack(lifted, 1))[0], positions[:, None]))
        more = packing.initial(ops, fields, num_slots - state.shape[1])
        sums, _ = packing.unpack(ops, fields, jnp.concatenate([state, more], 1))
        total = packing.pack(ops, merge_rows(ops, sums, joined(parts), source, fields))
    return shared.given(total)


class JaxKernels:
    """Take a step in one compiled call, and reduce many of them in another, to words (see `noether_jax.packing`).

    To merge each step at once was measured: 12 µs a step more at 10 keys, 20 µs at 100.

    Args:
        ops: what to reduce with; None: whatever the default device has.
    """

    def __init__(self, ops: JaxOps | None = None) -> None:
        self._given = ops

    @cached_property
    def _ops(self) -> JaxOps:
        return self._given or ops_for()

    def most_pending(self, layout: Layout) -> int:
        """Return how many steps of a layout `settle` takes at a time, a power of two."""
        return min(32, _power_of_two(1 + PENDING_VALUES // len(layout.slots)))

    def take(self, step: Step, earlier: Sequence[Pending]) -> tuple[Pending, Taken]:
        """Return a step stacked, its arrays lifted; and copies of its values."""
        layout, weight = step.layout, step.weight
        if weight is not None:
            weight = beside(weight, next(chain(step.arrays, *step.scalars)))
        with jax.enable_x64(True):
            take = _take if get_abstract_mesh().empty else _take_without_mesh  # at every step: cheaper than no_mesh
            rows, weight, lifted, kept = take(
                step.scalars, step.arrays, weight, ops=self._ops, keep=layout.keep, fields=layout.fields
            )
        return Pending(rows, weight, lifted, step.position), Taken(rows, kept)

    def settle(self, state: ReducerState) -> Any:
        """Return the sums with all that is pending merged in, by powers of two: few numbers of steps to compile for."""
        words, pending, layout, num_slots = state
        ops, fields = self._ops, layout.fields
        if words is None:  # an identity of the same types, so that the first call is not a compilation of its own
            words = packing.initial(ops, fields, num_slots)
        source = None if layout.fills(num_slots) else source_of(layout.slots, num_slots)
        while pending:
            count = _power_of_two(len(pending))
            positions = np.array([step.position for step in pending[:count]], np.int64)
            steps = tuple([(step.rows, step.weight, step.arrays) for step in pending[:count]])
            with ours(), no_mesh():
                words = _settle(words, steps, positions, source, ops=ops, num_slots=num_slots, fields=fields)
            pending = pending[count:]
        return words

    def to_host(
        self, states: Sequence[ReducerState], copies: Sequence[jax.Array]
    ) -> tuple[list[tuple[Statistics | None, Batch]], list[np.ndarray[Any, Any]]]:
        """Return the states' sums, what is pending, and some copies in NumPy; all are fetched at once."""
        held = [(state.sums, [each[:3] for each in state.pending]) for state in states]
        hosted, arrays = to_host((held, list(copies)))
        found = []
        for state, (words, pending) in zip(states, hosted, strict=True):
            sums_of = partial(packing.from_host, self._ops, state.layout.fields)
            rows, weights, lifted = zip(*pending, strict=True)
            positions = np.array([[step.position] for step in state.pending], np.int64)
            batch = Batch(
                tuple(map(np.stack, zip(*rows, strict=True))),
                None if weights[0] is None else np.stack(weights),
                None if lifted[0] is None else _placed(sums_of(np.stack(lifted, 1))[0], positions),
                positions,
            )
            found.append((None if words is None else sums_of(words)[0], batch))
        return found, [np.array(array) for array in arrays]


def _power_of_two(number: int) -> int:
    """Return the greatest power of two that is not greater."""
    return 1 << (number.bit_length() - 1)
