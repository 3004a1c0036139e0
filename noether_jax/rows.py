"""Lift a step's values to rows of statistics, and merge rows into slots: what the hooks and the pure tracker share.

All of it is for use inside of compiled functions, where x64 is on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.lift import is_small, lift, statistics_of, summarise
from noether_core.algebra.sums import Fields, Statistics, each, empty
from noether_jax.meshes import MOST_STACKED
from noether_jax.ops import JaxOps


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Return sums with the slots of all of them, in order."""
    return each(lambda *fields: jnp.concatenate(fields, -1), *parts)


def stacked(group: Sequence[jax.Array]) -> jax.Array:
    """Return one-element values of one dtype as a new vector."""
    return jnp.stack([value.reshape(()) for value in group])


def lift_scalars(
    ops: JaxOps, groups: Sequence[jax.Array], weights: jax.Array | None, positions: jax.Array, fields: Fields
) -> Statistics:
    """Return the sums of steps' one-element values, a row for each step and a slot for each value.

    Each group has values of one dtype, [steps, values]; the weights, if any, are [steps, 1].
    """
    return joined([lift(ops, group, positions[:, None], fields, weights) for group in groups])


def lift_step_arrays(
    ops: JaxOps, arrays: Sequence[jax.Array], weight: jax.Array | None, position: jax.Array, fields: Fields
) -> Statistics:
    """Return the sums of one step's arrays, a slot for each.

    Those of one dtype and size are lifted together, so that what is compiled grows with the kinds of arrays, not with the
    arrays. Large ones are each read by themselves, along their own axes, and only what was read of them is put together: so
    of a sharded one each device reads its shard.
    """
    weight = weight.reshape(1) if weight is not None and weight.size == 1 else weight
    kinds: dict[Hashable, list[int]] = {}
    for at, array in enumerate(arrays):
        is_large = array.size > MOST_STACKED
        like = array.size if not is_large else array.shape if ops.parts != 2 else None
        kinds.setdefault((array.dtype, is_large, like), []).append(at)
    parts = [
        _lift_kind(ops, [arrays[at] for at in members], weight, position.reshape(1, 1), fields)
        for members in kinds.values()
    ]
    order = [at for members in kinds.values() for at in members]
    found = joined(parts)
    return found if order == sorted(order) else each(lambda field: field[np.argsort(order)], found)


def _lift_kind(
    ops: JaxOps, arrays: Sequence[jax.Array], weight: jax.Array | None, position: jax.Array, fields: Fields
) -> Statistics:
    """Return the sums of arrays of one dtype, a slot for each; of one size, or all of them large."""
    elements = arrays[0].size
    if not elements:
        return empty(ops, fields, len(arrays), position)
    is_large = elements > MOST_STACKED
    if not is_large:
        arrays, weight = [array.reshape(-1) for array in arrays], None if weight is None else weight.reshape(-1)
    if is_small(elements) or ops.parts != 2:  # without binary64 every array is merged
        beside = None if weight is None else weight[..., None]
        return ops.fold(lift(ops, jnp.stack(arrays, -1), position, fields, beside))
    stacks = [array[None] for array in arrays] if is_large else [jnp.stack(arrays)]
    read = [summarise(ops, stack, lambda: position, fields, weight) for stack in stacks]
    row = each(lambda *numbers: jnp.concatenate([number.reshape(-1) for number in numbers])[None], *read)
    return ops.fold(statistics_of(ops, row, fields))


def merge_rows(ops: JaxOps, sums: Statistics, rows: Statistics, source: Any, fields: Fields) -> Statistics:
    """Return sums, [slots], with rows of further ones, [rows, values], merged in; for `source` see `source_of`."""
    if source is not None:
        blank = empty(ops, fields, 1, sums.first_nonfinite)

        def by_slot(values: jax.Array, none: jax.Array) -> jax.Array:
            return jnp.concatenate([values, jnp.broadcast_to(none, (len(values), 1))], -1)[:, source]

        rows = each(by_slot, rows, blank)
    return ops.fold(each(lambda old, new: jnp.concatenate([old[None], new]), sums, rows))


def source_of(slots: Sequence[int] | np.ndarray[Any, Any], num_slots: int) -> np.ndarray[Any, Any] | None:
    """Return for each slot which of the values belongs to it, or their number where none does.

    None if all slots have one, in order.
    """
    source = np.full(num_slots, len(slots), np.int32)
    source[slots] = np.arange(len(slots))
    return None if len(slots) == num_slots and (source[:-1] < source[1:]).all() else source
