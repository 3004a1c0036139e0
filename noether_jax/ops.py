"""Give the algebra JAX's operations; for use where `jax.enable_x64` is on, for counts are int64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.expansion import Expansion, add, normalise
from noether_core.algebra.position import NEVER
from noether_core.algebra.sums import Fields, Ops, Statistics, each, empty, merge


class JaxOps(Ops):
    """Share what does not depend on the precision. Single numbers have axes of length 1 in the place of the elements."""

    float_dtype: Any
    bits_dtype: Any  # an int of the float's size
    half: int  # of the last bit that `split` keeps in the high part
    int_dtype = jnp.int64
    xp: Any = jnp
    never = NEVER

    def are_finite(self, values: jax.Array) -> bool:
        return False

    def where(self, condition: jax.Array, values: Any, others: Any) -> jax.Array:
        return jnp.where(condition, values, others)

    def full(self, shape: tuple[int, ...], value: float | int, like: jax.Array) -> jax.Array:
        constant = jnp.full(shape, value, self.int_dtype if isinstance(value, int) else self.float_dtype)
        # inside of shard_map the branches of a cond must vary over the same axes, so the constant is made to look as if it did
        one = like.reshape(-1)[0]
        return jnp.where(one == one, constant, constant)

    def split(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        bits = (jax.lax.bitcast_convert_type(values, self.bits_dtype) + self.half) & -(2 * self.half)
        high = jax.lax.bitcast_convert_type(bits, self.float_dtype)
        return high, values - high

    def fold(self, sums: Statistics) -> Statistics:
        # A reduction is one loop to compile, and what comes of it is computed once. Sums that are merged as plain arrays XLA
        # would compute anew for each of the words that they are packed into: of 20 arrays that took 40 s to compile.
        fields = Fields(bool(sums.squares), bool(sums.minimum), bool(sums.weights))
        *rows, slots = sums.first_nonfinite.shape
        if rows == [1]:  # XLA takes away a reduction of one row
            blank = empty(self, fields, slots, sums.first_nonfinite)
            sums = each(lambda row, other: jnp.concatenate([row, other[None]]), sums, blank)
        arrays, form = jax.tree.flatten(sums)
        start = [
            np.array(value, array.dtype)
            for value, array in zip(jax.tree.leaves(empty(self, fields)), arrays, strict=True)
        ]

        def merged(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            pair = (jax.tree.unflatten(form, part) for part in (a, b))
            return tuple(jax.tree.leaves(merge(self, *pair)))

        total: Statistics = jax.tree.unflatten(
            form, jax.lax.reduce(tuple(arrays), tuple(start), merged, range(len(rows)))
        )
        return total

    def sum_own_dtype(self, values: jax.Array) -> jax.Array:
        return jnp.sum(values, _elements(values), keepdims=True)

    def extremes(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        axes = _elements(values)
        return jnp.min(values, axes, keepdims=True), jnp.max(values, axes, keepdims=True)

    def constant(self, value: float | int, like: jax.Array) -> jax.Array:
        return self.full(like.shape, value, like)

    def choose(self, totals: Sequence[jax.Array], plain: Callable[[], Any], careful: Callable[[], Any]) -> Any:
        return jax.lax.cond(jnp.isfinite(jnp.stack(totals)).all(), plain, careful)

    def as_binary64(self, sums: Statistics) -> Statistics:
        """Return sums that are on the host as expansions of binary64."""
        return sums


def _elements(values: jax.Array) -> tuple[int, ...]:
    """Return the axes of arrays' elements, behind the one of the arrays: a large array keeps its own axes, and its sharding."""
    return tuple(range(1, values.ndim))


class Binary64Ops(JaxOps):
    """Reduce in binary64."""

    parts, deep = 2, 4
    float_dtype, bits_dtype, half = jnp.float64, jnp.int64, 2**26

    def widen(self, values: jax.Array) -> tuple[Expansion, bool]:
        if _is_long(values):
            high, low = _halves(values)
            return normalise((high.astype(jnp.float64) * 2.0**32, low.astype(jnp.float64))), False
        is_short = values.dtype.itemsize <= 2 or values.dtype == jnp.float32
        return (values.astype(jnp.float64),), is_short

    def bits(self, values: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(values, jnp.int64)

    def from_bits(self, bits: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(bits, jnp.float64)

    def places(self, count: int, like: jax.Array) -> jax.Array:
        return jnp.arange(count)

    def sum_binary64(self, values: jax.Array) -> Expansion:
        if not (jnp.issubdtype(values.dtype, jnp.integer) or values.dtype == jnp.bool_):
            return (jnp.sum(values, _elements(values), dtype=jnp.float64, keepdims=True),)
        if not _is_long(values):
            return self.widen(jnp.sum(values, _elements(values), dtype=jnp.int64, keepdims=True))[0]
        high, low = (self.widen(self.sum_own_dtype(half))[0] for half in _halves(values))
        return add((high[0] * 2.0**32, high[1] * 2.0**32), low)


def _is_long(values: jax.Array) -> bool:
    return values.dtype in (jnp.int64, jnp.uint64)


def _halves(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return 64-bit ints as int64s `high, low` with value = high * 2^32 + low."""
    low = (values & values.dtype.type(0xFFFFFFFF)).astype(jnp.int64)
    return (values >> values.dtype.type(32)).astype(jnp.int64), low
