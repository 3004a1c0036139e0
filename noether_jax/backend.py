"""Give the core its operations on JAX arrays: one compiled call a step, which nothing waits for, and another every 32 steps.

Inside, binary64 is switched on for our own functions alone (`jax.enable_x64` is thread-local and scoped), whatever the
user's setting; the user's arrays and functions never see it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.errors import UpdateOutputError
from noether_core.reduce import host
from noether_core.reduce.backend import ValueType
from noether_core.reduce.eager import PendingReducer
from noether_core.reduce.exchange import Exchange
from noether_jax import shards
from noether_jax.meshes import beside, place_of
from noether_jax.processes import process_exchange
from noether_jax.reducer import JaxKernels
from noether_jax.transfers import to_device, to_host

_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64")
_aval_of, _sharding_of = attrgetter("aval"), attrgetter("sharding")


def _is_concrete(value: Any) -> bool:
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)


class JaxBackend:
    """Know JAX's arrays."""

    name = "JAX"
    reducer = PendingReducer(JaxKernels())

    def signature(self, values: Sequence[Any]) -> Hashable:
        """Return what decides the plan for these values."""
        if _is_concrete(values[0]) and len(set(map(type, values))) == 1:
            return tuple(map(_aval_of, values)), tuple(map(_sharding_of, values))
        return tuple(
            [(value.aval, value.sharding) if _is_concrete(value) else host.signature(value) for value in values]
        )

    def inspect(self, key: str, value: Any) -> ValueType | None:
        """Return the type of a JAX array; None for what is none.

        Raises:
            UpdateOutputError: for a tracer, a deleted array, a random key, or a complex array.
        """
        if not isinstance(value, jax.Array):
            return None
        if isinstance(value, jax.core.Tracer):
            raise UpdateOutputError(
                f"update output {key!r} is a tracer: a hook was called while JAX traced a function (jit, grad, vmap, scan),"
                " where it has no value yet, or got what was kept from there; expected an array: return the update outputs from"
                " the jitted function and call the hook outside, or track inside of it with run.init and run.track"
            )
        if value.is_deleted():
            raise UpdateOutputError(
                f"update output {key!r} was deleted before the hook was called, probably by a donation;"
                " expected an array that still has its values: call the hook first, or do not donate it"
            )
        if not value.is_fully_addressable:
            return self._inspect_global(key, value)
        kind, usual = value.sharding.memory_kind, min(value.devices(), key=id).default_memory().kind
        if kind is not None and kind != usual:
            raise UpdateOutputError(
                f"update output {key!r} is in memory of the kind {kind!r}; expected {usual!r}, where it can be computed with:"
                " move it with jax.device_put, or do not track it"
            )
        dtype = check_dtype(key, value.dtype)
        return ValueType(dtype.name, value.shape, place_of(value), dtype == np.float64)

    def _inspect_global(self, key: str, value: jax.Array) -> ValueType | None:
        """Return the type of what this process is to count of an array that lies on devices of several."""
        shards.check_reduced(key, value)
        spread, _, _, is_counted = shards.placing_of(value)
        if is_counted and (found := self.inspect(key, shards.local(value))) is not None:
            return found._replace(spread=spread, is_global=True)
        dtype = check_dtype(key, value.dtype)
        return ValueType(dtype.name, value.shape, None, dtype == np.float64, spread, is_counted=False, is_global=True)

    def local(self, values: Sequence[jax.Array]) -> list[jax.Array]:
        """Return what this process is to count of arrays that lie on devices of several."""
        return list(map(shards.local, values))

    def processes(self) -> tuple[int, int]:
        """Return this process's index and the number of processes."""
        return jax.process_index(), jax.process_count()

    def arithmetic(self) -> dict[str, str]:
        """Return the kinds of this process's devices, the precision of matrix products, and whether 64 bits are on."""
        kinds = sorted({device.device_kind for device in jax.local_devices()})
        return {
            "jax devices": f"{jax.local_device_count()} × {', '.join(kinds)}",
            **{name: "default" if (value := getattr(jax.config, name)) is None else str(value) for name in _SETTINGS},
        }

    def exchange(self, time_limit: float) -> Exchange | None:
        """Return what talks to the other processes of `jax.distributed`; None if there are none."""
        return process_exchange(time_limit=time_limit) if jax.process_count() > 1 else None

    def to_numpy(self, values: Sequence[jax.Array]) -> list[np.ndarray[Any, Any]]:
        """Return copies of arrays on the host."""
        return [np.array(value) for value in to_host(list(values))]

    def from_numpy(self, value: np.ndarray[Any, Any], like: Any = None) -> jax.Array:
        """Return an array with the same dtype, shape and bits, 64-bit ones included, where `like` is, if it is an array."""
        array: jax.Array = to_device(value)
        return array if like is None else beside(array, like)


def check_dtype(key: str, dtype: Any) -> np.dtype[Any]:
    """Return the dtype of an array, or raise `UpdateOutputError` if it is none that can be tracked."""
    if jnp.issubdtype(dtype, jax.dtypes.extended) or not host.is_trackable(np.dtype(dtype)):
        raise UpdateOutputError(
            f"update output {key!r} has dtype {dtype}; expected bools, ints or floats:"
            " convert it (a complex array has jnp.abs and .real), or do not track it"
        )
    plain: np.dtype[Any] = np.dtype(dtype)
    return plain


BACKEND = JaxBackend()
