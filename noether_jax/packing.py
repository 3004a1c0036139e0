"""Carry sums across the border of a compiled function: as 32-bit words, which every session and checkpoint leaves alone.

A float64 array does not survive ordinary tree operations or a restored checkpoint in a session without x64; a uint32 array
does. And one array is cheaper to hand over than ten. Its shape is [fields, slots, 2]: a binary64 number or an int64 is two
words, the low one first, as in a little-endian machine's memory; two parts of binary32 share a field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import bitcast_convert_type

from noether_core.algebra.expansion import Expansion, normalise
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.sums import Fields, Statistics, empty
from noether_jax.ops import JaxOps

_COUNTS = 4  # nan, positive, negative and first


def pack(sums: Statistics, *counts: jax.Array) -> jax.Array:
    """Return sums, and more int64 vectors, as words; to be called where x64 is on. Slots are the last axis."""
    *floats, nan, positive, negative, first = jax.tree.leaves(sums)
    numbers = jnp.stack(floats)
    if numbers.dtype == jnp.float64:
        words = bitcast_convert_type(numbers, jnp.uint32)
    else:
        words = jnp.stack([bitcast_convert_type(numbers[at::2], jnp.uint32) for at in (0, 1)], -1)
    whole = jnp.stack([nan, positive, negative, first, *counts])
    # shifts, for a device that emulates int64 cannot see its bits
    halves = jnp.stack([(whole & 0xFFFFFFFF).astype(jnp.uint32), (whole >> 32).astype(jnp.uint32)], -1)
    return jnp.concatenate([words, halves])


def unpack(ops: JaxOps, fields: Fields, words: jax.Array) -> tuple[Statistics, tuple[jax.Array, ...]]:
    """Return the sums and the other vectors of `pack`; to be called where x64 is on."""
    form, num_floats, rows = _form(ops, fields)
    if ops.float_dtype == jnp.float64:
        numbers = list(bitcast_convert_type(words[:rows], jnp.float64))
    else:
        pairs = bitcast_convert_type(words[:rows], jnp.float32)
        numbers = [pairs[at // 2, ..., at % 2] for at in range(num_floats)]
    low, high = (words[rows:, :, at].astype(jnp.int64) for at in (0, 1))
    # the high word has the sign
    whole = list(low | (high << 32))
    return jax.tree.unflatten(form, numbers + whole[:_COUNTS]), tuple(whole[_COUNTS:])


def halved(values: jax.Array) -> jax.Array:
    """Return a copy of values, a 64-bit one as uint32 [..., 2], the low half first; to be called where x64 is on."""
    return bitcast_convert_type(values, jnp.uint32) if values.dtype.itemsize == 8 else values


def initial(ops: JaxOps, fields: Fields, slots: int, *counts: int) -> np.ndarray[Any, Any]:
    """Return the words of the sums of nothing and of other counts."""
    leaves = jax.tree.leaves(empty(ops, fields))
    _, num_floats, rows = _form(ops, fields)
    floats = np.array(leaves[:num_floats], ops.float_dtype)
    words = floats.view(np.uint32).reshape(rows, 2)
    whole = np.array([*leaves[num_floats:], *counts], np.int64).view(np.uint32).reshape(-1, 2)
    one = np.concatenate([words, whole])[:, None, :]
    return np.ascontiguousarray(np.broadcast_to(one, (len(one), slots, 2)))


def from_host(
    ops: JaxOps, fields: Fields, words: np.ndarray[Any, Any]
) -> tuple[Statistics, list[np.ndarray[Any, Any]]]:
    """Return the sums, as expansions of binary64, and the other vectors of words that are on the host."""
    form, num_floats, rows = _form(ops, fields)
    words = np.ascontiguousarray(words)
    if ops.float_dtype == jnp.float64:
        numbers = list(words[:rows].view(np.float64)[..., 0])
    else:
        pairs = words[:rows].view(np.float32)
        numbers = [pairs[at // 2, ..., at % 2] for at in range(num_floats)]
    whole = list(words[rows:].view(np.int64)[..., 0])
    sums: Statistics = jax.tree.unflatten(form, numbers + whole[:_COUNTS])
    return _doubled(sums, fields) if ops.float_dtype == jnp.float32 else sums, whole[_COUNTS:]


def _form(ops: JaxOps, fields: Fields) -> tuple[Any, int, int]:
    """Return the tree of the sums, how many floats a slot has, and how many fields these are."""
    leaves, form = jax.tree.flatten(empty(ops, fields))
    num_floats = len(leaves) - _COUNTS
    return form, num_floats, num_floats // (1 if ops.float_dtype == jnp.float64 else 2)


def _doubled(sums: Statistics, fields: Fields) -> Statistics:
    """Return sums whose expansions are of binary64, from ones of binary32: the same numbers in half as many parts."""
    blanks = empty(NUMPY, fields)
    return Statistics(
        **{
            name: _joined(field, len(getattr(blanks, name))) if isinstance(field, tuple) else field
            for name, field in sums._asdict().items()
        }
    )


def _joined(parts: Sequence[np.ndarray[Any, Any]], length: int) -> Expansion:
    if not parts:
        return ()
    wide = [part.astype(np.float64) for part in parts]
    with np.errstate(invalid="ignore"):
        joined = normalise(wide)[:length]
    is_finite = np.isfinite(wide[0])
    return tuple(np.where(is_finite, part, wide[at] if at == 0 else 0.0) for at, part in enumerate(joined))
