"""Measure arrays on their device: the statistics and the fingerprint of each in one pass; inside of compiled functions, too."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import bitcast_convert_type

from noether_core.probes.fingerprint import FIRST, INFINITY_BITS, LEAST, NAN_BITS, SECOND, SIGN_BIT, plain_copy
from noether_core.probes.probed import Due, Probed
from noether_core.probes.sampling import places
from noether_core.probes.statistics import REALS
from noether_jax.meshes import beside, place_of
from noether_jax.transfers import ours

_SMALL = 2**14  # elements: smaller arrays of one shape are measured together, which is less to compile


def measured(values: Mapping[str, Any], due: Due, as_they_lie: Mapping[int, Any] | None = None) -> Probed:
    """Return what is probed of arrays by key, in the canonical layout. Pure; it may be called inside of `jit`.

    Args:
        values: the arrays.
        due: what is probed.
        as_they_lie: by the `id` of some of the arrays, others with the same values in the order of the memory, which are
            read in a third of the time.
    """
    with ours():
        arrays = [_as_real(value) for value in values.values()]
        lying = as_they_lie or {}
        reals, sums = _measured_anywhere([_as_real(lying.get(id(value), value)) for value in values.values()])
        kept = _sampled_anywhere(arrays, due.array_limit) if due.arrays else []
    shapes = tuple(array.shape for array in arrays)
    return Probed(tuple(values), shapes, reals, sums, dict(zip(values, kept, strict=False)), due.array_limit)


def _as_real(value: Any) -> jax.Array:
    array = value if isinstance(value, jax.Array) else jnp.asarray(plain_copy(value))
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return jnp.stack([array.real, array.imag], -1)
    return array


def _places(arrays: Sequence[jax.Array]) -> list[list[int]]:
    """Return which arrays lie on the same devices: others are not computed with in one call."""
    is_traced = any(isinstance(array, jax.core.Tracer) for array in arrays)  # then JAX says what goes together
    places: dict[Hashable, list[int]] = {}
    for at, array in enumerate(arrays):
        places.setdefault(None if is_traced else place_of(array), []).append(at)
    return list(places.values())


def _measured_anywhere(arrays: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return what `_measured` does, of arrays on any devices; the result is where the first array is."""
    places = _places(arrays) or [[]]
    found: list[tuple[jax.Array, jax.Array]] = [_measured([arrays[at] for at in place]) for place in places]
    if len(found) == 1:
        return found[0]
    first = found[0][0]
    order = np.argsort([at for place in places for at in place])
    reals, sums = (
        jnp.concatenate([beside(each[part], first) for each in found])[order] for part in range(len(found[0]))
    )
    return reals, sums


def _sampled_anywhere(arrays: Sequence[jax.Array], limit: int) -> list[jax.Array]:
    kept = list(arrays)
    for place in _places(arrays):
        for at, sample in zip(place, _sampled([arrays[at] for at in place], limit), strict=True):
            kept[at] = sample
    return kept


@jax.jit
def _measured(arrays: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the statistics of arrays, uint32 [arrays, 5, 2], and the sums of their fingerprints, uint32 [arrays, 2]."""
    groups: dict[Hashable, list[int]] = {}
    for at, array in enumerate(arrays):
        sharding = getattr(jax.typeof(array), "sharding", None)
        alone = None if array.size <= _SMALL else at
        groups.setdefault((array.shape, array.dtype, str(sharding), alone), []).append(at)
    reals: list[Any] = [None] * len(arrays)
    sums: list[Any] = [None] * len(arrays)
    for members in groups.values():
        of_group = jnp.stack([arrays[at] for at in members]) if len(members) > 1 else arrays[members[0]][None]
        of_reals, of_sums = _measured_rows(of_group, _lanes(of_group[0].size))
        for row, at in enumerate(members):
            reals[at], sums[at] = of_reals[row], of_sums[row]
    if not arrays:
        return jnp.zeros((0, len(REALS), 2), jnp.uint32), jnp.zeros((0, 2), jnp.uint32)
    return bitcast_convert_type(jnp.stack(reals), jnp.uint32), jnp.stack(sums)


def _lanes(size: int) -> int:
    """Return into how many parts an array is best cut: on one CPU, where a reduction is one loop that is not vectorised."""
    if size <= _SMALL or jax.device_count() > 1 or jax.default_backend() != "cpu":
        return 1
    return next(lanes for lanes in (8, 4, 2, 1) if size % lanes == 0)


def _measured_rows(rows: jax.Array, lanes: int = 1) -> tuple[jax.Array, jax.Array]:
    """Return float64 [rows, 5] and uint32 [rows, 2].

    Args:
        rows: arrays of one shape.
        lanes: into how many parts each is cut, whose terms are merged before the reduction.
    """
    count = rows[0].size
    if not count:
        return jnp.full((len(rows), len(REALS)), jnp.nan, jnp.float64), jnp.zeros((len(rows), 2), jnp.uint32)
    if lanes > 1:
        parts = rows.reshape(len(rows), lanes, -1)
        merged = reduce(_merged, [_terms(parts[:, lane]) for lane in range(lanes)])
        # a loop over elements, which is vectorised, and not a part of the reduction
        terms = jax.lax.optimization_barrier(merged)  # type: ignore[no-untyped-call]
    else:
        terms = _terms(rows)
    starts = (0.0, 0.0, np.inf, -np.inf)
    neutral = (*map(np.float64, starts), np.uint32(0), np.uint32(0))
    axes = tuple(range(1, terms[0].ndim))
    total, squares, low, high, *sums = jax.lax.reduce(terms, neutral, _merged, axes)
    is_constant = low == high
    mean = jnp.where(is_constant, low, total / count)
    spread = jnp.maximum(squares / count - mean * mean, 0.0)  # loses digits only where the mean is by far the larger
    std = jnp.where(is_constant, 0.0, jnp.sqrt(spread))
    return jnp.stack([mean, std, jnp.sqrt(squares), low, high], 1), jnp.stack(sums, 1)


def _terms(values: jax.Array) -> tuple[jax.Array, ...]:
    """Return what is reduced, all in one loop: the values, their squares, the extremes, and their bits, mixed."""
    wide = values.astype(jnp.float64)
    return wide, wide * wide, wide, wide, *_mixed(_value_bits(values))


def _merged(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    added = [x + y for x, y in zip(a, b, strict=True)]
    return (*added[:2], jnp.minimum(a[2], b[2]), jnp.maximum(a[3], b[3]), *added[4:])


def _value_bits(values: jax.Array) -> jax.Array:
    """Return uint32 that stand for values: equal ones have equal bits; see `noether_core.probes.fingerprint`."""
    dtype: Any = values.dtype
    if dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.integer):
        return _whole_bits(values)
    if dtype == jnp.bfloat16:  # as bits, for a device may flush small float32s to zero
        return _one_bits(bitcast_convert_type(values, jnp.uint16).astype(jnp.uint32) << 16)
    if dtype.itemsize <= 4:
        return _one_bits(bitcast_convert_type(values.astype(jnp.float32), jnp.uint32))
    short = values.astype(jnp.float32)
    words = bitcast_convert_type(values, jnp.uint32)
    is_zero = (words[..., 0] == 0) & (words[..., 1] << 1 == 0)  # a device may take other small values for zero
    is_short = (short.astype(jnp.float64) == values) & ((jnp.abs(values) >= LEAST) | is_zero)
    folded = words[..., 0] ^ _mixed(words[..., 1])[1]
    return jnp.where(is_short | jnp.isnan(values), _one_bits(bitcast_convert_type(short, jnp.uint32)), folded)


def _whole_bits(values: jax.Array) -> jax.Array:
    dtype: Any = values.dtype
    if dtype == jnp.bool_ or (jnp.issubdtype(dtype, jnp.unsignedinteger) and dtype.itemsize <= 4):
        return values.astype(jnp.uint32)
    if dtype.itemsize <= 4:
        lower = values.astype(jnp.int32).astype(jnp.uint32)
        upper = jnp.where(values < 0, jnp.uint32(0xFFFFFFFF), jnp.uint32(0))
    else:
        lower, upper = ((values >> shift).astype(jnp.uint32) for shift in (0, 32))
    return jnp.bitwise_xor(lower, _mixed(upper)[1])


def _one_bits(bits: jax.Array) -> jax.Array:
    """Return the bits of float32s, those of every zero and of every NaN alike."""
    size = bits & jnp.uint32(~SIGN_BIT & 0xFFFFFFFF)
    one = jnp.where(size > jnp.uint32(INFINITY_BITS), jnp.uint32(NAN_BITS), bits)
    return jnp.where(size == 0, jnp.uint32(0), one)


def _mixed(bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(FIRST)
    first = bits ^ (bits >> 15)
    bits = first * jnp.uint32(SECOND)
    return first, bits ^ (bits >> 15)


@partial(jax.jit, static_argnums=1)
def _sampled(arrays: Sequence[jax.Array], limit: int) -> list[jax.Array]:
    kept = []
    for array in arrays:
        for axis, along in enumerate(places(array.shape, limit) or ()):
            if len(along) < array.shape[axis]:
                array = jnp.take(array, along, axis, unique_indices=True, indices_are_sorted=True)
        kept.append(jnp.copy(array))  # else it would be the array itself, which may be donated to the next step
    return kept
