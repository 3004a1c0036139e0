"""Give the algebra JAX's operations, in binary64 or binary32; for use where `jax.enable_x64` is on (counts are int64)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.expansion import Expansion, add, normalise
from noether_core.algebra.position import NEVER
from noether_core.algebra.sums import Fields, SlotOps, Statistics, each, empty, merge


class JaxOps(SlotOps):
    """Share what does not depend on the precision."""

    float_dtype: Any
    int_dtype = jnp.int64
    never = NEVER

    isnan = staticmethod(jnp.isnan)
    isfinite = staticmethod(jnp.isfinite)
    minimum = staticmethod(jnp.minimum)

    def are_finite(self, values: jax.Array) -> bool:
        return False

    def where(self, condition: jax.Array, values: Any, others: Any) -> jax.Array:
        return jnp.where(condition, values, others)

    def full(self, shape: tuple[int, ...], value: float | int, like: jax.Array) -> jax.Array:
        constant = jnp.full(shape, value, self.int_dtype if isinstance(value, int) else self.float_dtype)
        # inside of shard_map the branches of a cond must vary over the same axes, so the constant is made to look as if it did
        one = like.reshape(-1)[0]
        return jnp.where(one == one, constant, constant)

    def fold(self, sums: Statistics) -> Statistics:
        if sums.first_nonfinite.shape[0] == 1:
            return each(lambda array: array[0], sums)
        # one loop to compile; the tree would unroll into hundreds of operations
        arrays, form = jax.tree.flatten(sums)
        fields = Fields(bool(sums.squares), bool(sums.minimum), bool(sums.weights))
        start = [
            np.array(value, array.dtype)
            for value, array in zip(jax.tree.leaves(empty(self, fields)), arrays, strict=True)
        ]

        def merged(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            pair = (jax.tree.unflatten(form, part) for part in (a, b))
            return tuple(jax.tree.leaves(merge(self, *pair)))

        total: Statistics = jax.tree.unflatten(form, jax.lax.reduce(tuple(arrays), tuple(start), merged, (0,)))
        return total

    def total(self, values: jax.Array) -> jax.Array:
        return jnp.sum(values).reshape(1)

    def extremes(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.min(values).reshape(1), jnp.max(values).reshape(1)

    def constant(self, value: float | int, like: jax.Array) -> jax.Array:
        return self.full((1,), value, like)

    def choose(self, total: jax.Array, plain: Callable[[], Any], careful: Callable[[], Any]) -> Any:
        return jax.lax.cond(jnp.isfinite(total[0]), plain, careful)

    def concatenate(self, arrays: Sequence[jax.Array]) -> jax.Array:
        return jnp.concatenate(list(arrays), axis=-1)

    def put(self, target: jax.Array, slots: jax.Array, values: jax.Array) -> jax.Array:
        return target.at[slots].set(values)


class Binary64Ops(JaxOps):
    """Reduce in binary64."""

    parts, deep = 2, 4
    float_dtype = jnp.float64

    def split(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        bits = (jax.lax.bitcast_convert_type(values, jnp.int64) + 2**26) & -(2**27)
        high = jax.lax.bitcast_convert_type(bits, jnp.float64)
        return high, values - high

    def widen(self, values: jax.Array) -> tuple[Expansion, bool]:
        if _is_long(values):
            high, low = _halves(values)
            return normalise((high.astype(jnp.float64) * 2.0**32, low.astype(jnp.float64))), False
        is_short = values.dtype.itemsize <= 2 or values.dtype == jnp.float32
        return (values.astype(jnp.float64),), is_short

    def sum(self, values: jax.Array) -> Expansion:
        if not (jnp.issubdtype(values.dtype, jnp.integer) or values.dtype == jnp.bool_):
            return (jnp.sum(values, dtype=jnp.float64).reshape(1),)
        if not _is_long(values):
            return self.widen(jnp.sum(values, dtype=jnp.int64).reshape(1))[0]
        high, low = (self.widen(jnp.sum(half).reshape(1))[0] for half in _halves(values))
        return add((high[0] * 2.0**32, high[1] * 2.0**32), low)


class Binary32Ops(JaxOps):
    """Reduce in binary32, for a device that has no wider floats: the same bits come out, at several times the cost.

    Magnitudes whose squares leave binary32's range (above 1e19, below 1e-19) are outside of what `std` and `var` hold.
    """

    parts, deep = 4, 6
    float_dtype = jnp.float32

    def split(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        bits = (jax.lax.bitcast_convert_type(values, jnp.int32) + 2**11) & -(2**12)
        high = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return high, values - high

    def widen(self, values: jax.Array) -> tuple[Expansion, bool]:
        dtype = values.dtype
        if dtype == jnp.float64:
            parts = []
            for _ in range(3):
                parts.append(values.astype(jnp.float32))
                values = values - parts[-1].astype(jnp.float64)
            return tuple(parts), False
        if jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize >= 4:
            digits = [(values >> dtype.type(16 * at)) & dtype.type(0xFFFF) for at in range(dtype.itemsize // 2 - 1)]
            digits.append(values >> dtype.type(8 * dtype.itemsize - 16))  # the leading digit has the sign
            scaled = [digit.astype(jnp.float32) * 2.0 ** (16 * at) for at, digit in enumerate(digits)]
            return normalise(scaled[::-1]), False
        return (values.astype(jnp.float32),), dtype.itemsize == 1 or dtype in (jnp.float16, jnp.bfloat16)

    def sum(self, values: jax.Array) -> Expansion:
        raise NotImplementedError("without binary64 every array is merged")


def _is_long(values: jax.Array) -> bool:
    return values.dtype in (jnp.int64, jnp.uint64)


def _halves(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return 64-bit ints as int64s `high, low` with value = high * 2^32 + low."""
    low = (values & values.dtype.type(0xFFFFFFFF)).astype(jnp.int64)
    return (values >> values.dtype.type(32)).astype(jnp.int64), low


BINARY64, BINARY32 = Binary64Ops(), Binary32Ops()


def ops_for(platform: str) -> JaxOps:
    """Return what reduces on a platform: TPUs and Apple's GPUs have no binary64."""
    return BINARY32 if platform in {"tpu", "mps", "metal", "METAL"} else BINARY64
