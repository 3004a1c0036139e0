"""Carry sums across the border of a compiled function: as 32-bit words, which every session and checkpoint leaves alone.

A float64 array does not survive ordinary tree operations or a restored checkpoint in a session without x64; a uint32 array
does. And one array is cheaper to hand over than ten. Its shape is [fields, slots, 2]: a binary64 number or an int64 is two
words, the low one first, as in a little-endian machine's memory; two parts of binary32 share a field.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import bitcast_convert_type

from noether_core.algebra.sums import Fields, Statistics, empty
from noether_jax.ops import JaxOps

_COUNTS = 4  # nan, positive, negative and first_nonfinite


def pack(ops: JaxOps, sums: Statistics, *counts: jax.Array) -> jax.Array:
    """Return sums, and more int64 vectors, as words; to be called where x64 is on. Slots are the last axis."""
    *floats, nan, positive, negative, first = jax.tree.leaves(sums)
    slots, shared = first.shape[0], _shared(ops)
    numbers = jnp.stack(floats).reshape(-1, shared, slots).swapaxes(1, 2)
    words = bitcast_convert_type(numbers, jnp.uint32).reshape(-1, slots, 2)
    whole = jnp.stack([nan, positive, negative, first, *counts])
    # shifts, for a device that emulates int64 cannot see its bits
    halves = jnp.stack([(whole & 0xFFFFFFFF).astype(jnp.uint32), (whole >> 32).astype(jnp.uint32)], -1)
    return jnp.concatenate([words, halves])


def unpack(ops: JaxOps, fields: Fields, words: jax.Array) -> tuple[Statistics, tuple[jax.Array, ...]]:
    """Return the sums and the other vectors of `pack`; to be called where x64 is on.

    Words of several rows, [fields, rows, slots, 2], give sums of these.
    """
    form, rows = _form(ops, fields)
    shape, shared = words.shape[1:-1], _shared(ops)
    numbers = bitcast_convert_type(words[:rows], ops.float_dtype).reshape(rows, *shape, shared)
    floats = jnp.moveaxis(numbers, -1, 1).reshape(rows * shared, *shape)
    low, high = (words[rows:, ..., at].astype(jnp.int64) for at in (0, 1))
    whole = list(low | (high << 32))  # the high word has the sign
    return jax.tree.unflatten(form, [*floats, *whole[:_COUNTS]]), tuple(whole[_COUNTS:])


def bits(values: jax.Array) -> jax.Array:
    """Return a copy of values, of floats their bits; of 64 bits as uint32 [..., 2], the low half first; where x64 is on.

    So no gradient flows into what is kept, and what has no dtype of NumPy's own can be saved by all.
    """
    itemsize = values.dtype.itemsize
    if itemsize == 8:
        return bitcast_convert_type(values, jnp.uint32)
    is_whole = jnp.issubdtype(values.dtype, jnp.integer) or values.dtype == jnp.bool_
    return values if is_whole else bitcast_convert_type(values, jnp.dtype(f"uint{8 * itemsize}"))


def initial(ops: JaxOps, fields: Fields, slots: int, *counts: Any) -> np.ndarray[Any, Any]:
    """Return the words of the sums of nothing and of other counts, each a number or a vector."""
    leaves = jax.tree.leaves(empty(ops, fields))
    numbers = np.array(leaves[:-_COUNTS], ops.float_dtype).view(np.uint32).reshape(-1, 1, 2)
    whole = np.array([np.broadcast_to(count, slots) for count in (*leaves[-_COUNTS:], *counts)], np.int64)
    words = np.broadcast_to(numbers, (len(numbers), slots, 2))
    return np.concatenate([words, whole.view(np.uint32).reshape(len(whole), slots, 2)])


def from_host(
    ops: JaxOps, fields: Fields, words: np.ndarray[Any, Any]
) -> tuple[Statistics, list[np.ndarray[Any, Any]]]:
    """Return the sums, as expansions of binary64, and the other vectors of words, as for `unpack`, that are on the host."""
    form, rows = _form(ops, fields)
    words = np.ascontiguousarray(words)
    numbers = words[:rows].view(ops.float_dtype)
    floats = np.moveaxis(numbers, -1, 1).reshape(-1, *words.shape[1:-1])
    whole = list(words[rows:].view(np.int64)[..., 0])
    sums: Statistics = jax.tree.unflatten(form, [*floats, *whole[:_COUNTS]])
    return ops.as_binary64(sums), whole[_COUNTS:]


def _shared(ops: JaxOps) -> int:
    """Return how many floats share a field."""
    return 8 // int(np.dtype(ops.float_dtype).itemsize)


def _form(ops: JaxOps, fields: Fields) -> tuple[Any, int]:
    """Return the tree of the sums, and how many fields its floats take."""
    leaves, form = jax.tree.flatten(empty(ops, fields))
    return form, (len(leaves) - _COUNTS) // _shared(ops)
