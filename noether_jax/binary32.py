"""Reduce in pairs of binary32, for a device that has no wider floats: the same bits come out, at several times the cost."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.expansion import Expansion, normalise
from noether_core.algebra.sums import Statistics
from noether_core.errors import NoetherError
from noether_core.silence import SILENT
from noether_jax.ops import Binary64Ops, JaxOps

Precision = Literal["binary64", "binary32"]


class Binary32Ops(JaxOps):
    """Reduce in binary32, of which twice as many parts hold what binary64 holds.

    Magnitudes whose squares leave binary32's range (above 1e19, below 1e-19) are outside of what `std` and `var` hold.
    """

    parts, deep = 4, 6
    float_dtype, bits_dtype, half = jnp.float32, jnp.int32, 2**11

    def widen(self, values: jax.Array) -> tuple[Expansion, bool]:
        dtype = values.dtype
        if dtype == jnp.float64:
            parts = []
            # cut off, not rounded: on a GPU XLA takes rounding to binary32 and widening again for nothing at all
            for _ in range(3):
                leading = _leading(values)
                parts.append(leading.astype(jnp.float32))
                values = values - leading
            return tuple(parts), False
        if jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize >= 4:
            digits = [(values >> dtype.type(16 * at)) & dtype.type(0xFFFF) for at in range(dtype.itemsize // 2 - 1)]
            digits.append(values >> dtype.type(8 * dtype.itemsize - 16))  # the leading digit has the sign
            scaled = [digit.astype(jnp.float32) * 2.0 ** (16 * at) for at, digit in enumerate(digits)]
            return normalise(scaled[::-1]), False
        return (values.astype(jnp.float32),), dtype.itemsize == 1 or dtype in (jnp.float16, jnp.bfloat16)

    def sum_binary64(self, values: jax.Array) -> Expansion:
        raise NotImplementedError("without binary64 every array is merged")

    def as_binary64(self, sums: Statistics) -> Statistics:
        lengths = {self.parts: Binary64Ops.parts, self.deep: Binary64Ops.deep}
        return Statistics(
            *(_joined(field, lengths[len(field)]) if isinstance(field, tuple) and field else field for field in sums)
        )


def _leading(values: jax.Array) -> jax.Array:
    """Return binary64 without the digits that binary32 has no place for."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint64)
    return jax.lax.bitcast_convert_type(bits >> 29 << 29, jnp.float64)


@SILENT
def _joined(parts: tuple[np.ndarray[Any, Any], ...], length: int) -> Expansion:
    """Return an expansion of binary32 as one of binary64: the same number."""
    wide = [part.astype(np.float64) for part in parts]
    joined = normalise(wide)[:length]
    is_finite = np.isfinite(wide[0])
    return tuple(np.where(is_finite, part, wide[at] if at == 0 else 0.0) for at, part in enumerate(joined))


BINARY64, BINARY32 = Binary64Ops(), Binary32Ops()


def ops_for(precision: Precision | None = None) -> JaxOps:
    """Return what reduces in a precision; None: in binary64, but on TPUs and Apple's GPUs, which have none.

    Raises:
        NoetherError: if there is no such precision.
    """
    if precision is None:
        return BINARY32 if jax.default_backend() in {"tpu", "mps", "metal", "METAL"} else BINARY64
    if precision not in ("binary64", "binary32"):
        raise NoetherError(f"got precision={precision!r}; expected 'binary64', 'binary32' or None")
    return BINARY64 if precision == "binary64" else BINARY32
