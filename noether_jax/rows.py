"""Lift a step's values to rows of statistics, and merge rows into slots: what the hooks and the pure tracker share.

All of it is for use inside of compiled functions, where x64 is on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.lift import is_small, lift, statistics_of, summarise_all
from noether_core.algebra.sums import Fields, Statistics, each, empty
from noether_jax import packing
from noether_jax.meshes import MOST_STACKED, auto_axes, laid_along
from noether_jax.ops import JaxOps

_LEAST_SHARED = 64  # elements of an array; to lift fewer on every device is cheaper than to exchange what was lifted


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
    lift_all = partial(_lift_merged if is_small(elements) or ops.parts != 2 else _lift_read, ops, position, fields)
    if elements <= MOST_STACKED:
        stack = jnp.stack([array.reshape(-1) for array in arrays])
        return _shared_out(ops, fields, lift_all, stack, None if weight is None else weight.reshape(-1))
    if ops.parts != 2:
        return lift_all(jnp.stack(arrays), weight)
    return lift_all([array[None] for array in arrays], weight)


def _lift_merged(
    ops: JaxOps, position: jax.Array, fields: Fields, arrays: jax.Array, weight: jax.Array | None
) -> Statistics:
    """Return the sums of arrays, [slots, *elements], of which each element is merged: without binary64, all of them."""
    beside = None if weight is None else weight[..., None]
    return ops.fold(lift(ops, jnp.moveaxis(arrays, 0, -1), position, fields, beside))


def _lift_read(
    ops: JaxOps,
    position: jax.Array,
    fields: Fields,
    stacks: jax.Array | Sequence[jax.Array],
    weight: jax.Array | None,
) -> Statistics:
    """Return the sums of arrays, [slots, *elements] in one stack or in several, that the library sums."""
    read = summarise_all(ops, [stacks] if isinstance(stacks, jax.Array) else stacks, lambda: position, fields, weight)
    row = each(lambda *numbers: jnp.concatenate([number.reshape(-1) for number in numbers])[None], *read)
    return ops.fold(statistics_of(ops, row, fields))


def _shared_out(
    ops: JaxOps,
    fields: Fields,
    lift_all: Callable[[jax.Array, jax.Array | None], Statistics],
    arrays: jax.Array,
    weight: jax.Array | None,
) -> Statistics:
    """Return the sums of arrays, [slots, elements]; XLA's devices, if any, lift a part each, and exchange the sums at once."""
    axes, (slots, elements) = auto_axes(arrays), arrays.shape
    parts = math.prod(axes.values())
    if parts == 1 or elements % parts or elements < _LEAST_SHARED:
        return lift_all(laid_along(arrays, ()), weight)

    def dealt(array: jax.Array) -> jax.Array:
        shares = array.reshape(*array.shape[:-1], parts, elements // parts)
        return laid_along(jnp.moveaxis(shares, -2, 0), tuple(axes))

    if weight is None or weight.size == 1:
        own = jax.vmap(lambda share: lift_all(share, weight))(dealt(arrays))
    else:
        own = jax.vmap(lift_all)(dealt(arrays), dealt(weight))
    words = laid_along(packing.pack(ops, each(lambda field: field.reshape(-1), own)), ())
    sums, _ = packing.unpack(ops, fields, words)
    return ops.fold(each(lambda field: field.reshape(parts, slots), sums))


def merge_rows(ops: JaxOps, sums: Statistics, rows: Statistics, source: Any, fields: Fields) -> Statistics:
    """Return sums, [slots], with rows of further ones, [rows, values], merged in; for `source` see `source_of`."""
    rows = in_slots(ops, rows, source, fields)
    return ops.fold(each(lambda old, new: jnp.concatenate([old[None], new]), sums, rows))


def in_slots(ops: JaxOps, rows: Statistics, source: Any, fields: Fields) -> Statistics:
    """Return rows, [rows, values], with each value at its slot, [rows, slots]; for `source` see `source_of`."""
    if source is None:
        return rows
    blank = empty(ops, fields, 1, rows.first_nonfinite)

    def by_slot(values: jax.Array, none: jax.Array) -> jax.Array:
        return jnp.concatenate([values, jnp.broadcast_to(none, (len(values), 1))], -1)[:, source]

    return each(by_slot, rows, blank)


def source_of(slots: Sequence[int] | np.ndarray[Any, Any], num_slots: int) -> np.ndarray[Any, Any] | None:
    """Return for each slot which of the values belongs to it, or their number where none does.

    None if all slots have one, in order.
    """
    source = np.full(num_slots, len(slots), np.int32)
    source[slots] = np.arange(len(slots))
    return None if len(slots) == num_slots and (source[:-1] < source[1:]).all() else source
