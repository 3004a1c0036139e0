"""Give the core its operations on JAX arrays: one compiled function a step, which nothing waits for.

Inside, binary64 is switched on for our own functions alone (`jax.enable_x64` is thread-local and scoped), whatever the
user's setting; the user's arrays and functions never see it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core import host
from noether_core.backend import Reducer, Step, Taken, ValueType, into_slots
from noether_core.errors import UpdateOutputError
from noether_core.reduce import NOTHING, Sums, lift, lift_array, merge


class _JaxOps:
    isnan = staticmethod(jnp.isnan)
    isfinite = staticmethod(jnp.isfinite)
    minimum = staticmethod(jnp.minimum)

    def where(self, condition: jax.Array, values: Any, others: Any) -> jax.Array:
        return jnp.where(condition, values, others)

    def widen(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        if values.dtype in (jnp.int64, jnp.uint64):
            low = (values & values.dtype.type(0xFFFFFFFF)).astype(jnp.float64)
            return (values >> values.dtype.type(32)).astype(jnp.float64) * 2.0**32, low
        wide = values.astype(jnp.float64)
        return wide, jnp.zeros_like(wide)

    def full(self, shape: tuple[int, ...], value: float | int, like: jax.Array) -> jax.Array:
        return jnp.full(shape, value, jnp.int64 if isinstance(value, int) else jnp.float64)

    def min(self, values: jax.Array) -> jax.Array:
        return jnp.min(values, 0)

    def fold(self, sums: Sums) -> Sums:
        if sums.high.shape[0] == 1:
            return Sums(*(field[0] for field in sums))
        # one loop to compile; the tree would unroll into hundreds of operations
        start = [np.array(value, field.dtype) for value, field in zip(NOTHING, sums, strict=True)]
        return Sums(
            *jax.lax.reduce(tuple(sums), tuple(start), lambda a, b: tuple(merge(self, Sums(*a), Sums(*b))), (0,))
        )

    def concatenate(self, arrays: Sequence[jax.Array]) -> jax.Array:
        return jnp.concatenate(list(arrays), axis=-1)

    def put(self, target: jax.Array, slots: jax.Array, values: jax.Array) -> jax.Array:
        return target.at[slots].set(values)


_OPS = _JaxOps()


@partial(jax.jit, static_argnames=("num_slots", "keep"))
def _absorb(
    sums: Sums,
    scalars: tuple[tuple[jax.Array, ...], ...],
    arrays: tuple[jax.Array, ...],
    slots: jax.Array | None,
    code: jax.Array,
    *,
    num_slots: int,
    keep: tuple[bool, ...],
) -> tuple[Sums, Taken]:
    at = code.reshape(1, 1)
    rows = tuple(jnp.stack([value.reshape(()) for value in group]) for group in scalars)
    parts = [Sums(*(field[0] for field in lift(_OPS, row[None], at))) for row in rows]
    parts += [lift_array(_OPS, value.reshape(-1), at) for value in arrays]
    total = Sums(*(jnp.concatenate(field) for field in zip(*parts, strict=True)))
    # the copies are new buffers: a later donation of the user's array leaves them whole
    kept = tuple(jnp.copy(value) if wanted else None for value, wanted in zip(arrays, keep, strict=True))
    return into_slots(_OPS, sums, total, slots, num_slots), Taken(rows, kept)


class JaxReducer:
    """Absorb a step in one compiled call."""

    def absorb(self, state: Sums | None, step: Step) -> tuple[Sums, Taken]:
        """Return the sums with a step merged in, and copies of the step's values."""
        layout = step.layout
        slots = None if layout.fills(step.num_slots) else layout.slots
        if state is None:  # an identity of the same types, so that the first step is not a compilation of its own
            state = Sums(*(np.full(step.num_slots, value) for value in NOTHING))
        with jax.enable_x64(True):
            result: tuple[Sums, Taken] = _absorb(
                state,
                step.scalars,
                step.arrays,
                slots,
                np.int64(step.code),
                num_slots=step.num_slots,
                keep=layout.keep,
            )
        return result

    def to_host(self, state: Sums, copies: Sequence[jax.Array]) -> tuple[Sums, list[np.ndarray[Any, Any]]]:
        """Return the sums and some copies as NumPy arrays."""
        sums, arrays = jax.device_get((state, list(copies)))
        return sums, [np.array(array) for array in arrays]


class JaxBackend:
    """Know JAX's arrays."""

    name = "JAX"
    reducer: Reducer = JaxReducer()

    def signature(self, values: Sequence[Any]) -> Hashable:
        """Return what decides the plan for these values."""
        return tuple(
            [
                (value.dtype, value.shape, _sharding(value)) if isinstance(value, jax.Array) else host.signature(value)
                for value in values
            ]
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
                f"update output {key!r} is a tracer: a hook was called while JAX traced a function, where it has no value yet;"
                " return the update outputs from the jitted function and call the hook outside"
            )
        if value.is_deleted():
            raise UpdateOutputError(
                f"update output {key!r} was deleted before the hook was called, probably by a donation;"
                " call the hook first, or do not donate it"
            )
        if jnp.issubdtype(value.dtype, jax.dtypes.extended) or not host.is_trackable(np.dtype(value.dtype)):
            raise UpdateOutputError(
                f"update output {key!r} has dtype {value.dtype}; expected bools, ints or floats:"
                " convert it (a complex array has jnp.abs and .real), or do not track it"
            )
        place = frozenset(value.devices())
        return ValueType(value.dtype.name, value.shape, place, value.dtype == np.float64)

    def processes(self) -> tuple[int, int]:
        """Return this process's index and the number of processes."""
        return jax.process_index(), jax.process_count()

    def to_numpy(self, values: Sequence[jax.Array]) -> list[np.ndarray[Any, Any]]:
        """Return copies of arrays on the host."""
        return [np.array(value) for value in jax.device_get(list(values))]

    def from_numpy(self, value: np.ndarray[Any, Any]) -> jax.Array:
        """Return an array with the same dtype, shape and bits, 64-bit ones included."""
        with jax.enable_x64(True):
            array: jax.Array = jax.device_put(value)
            return array


def _sharding(value: jax.Array) -> Hashable:
    return None if isinstance(value, jax.core.Tracer) or value.is_deleted() else value.sharding


BACKEND = JaxBackend()
