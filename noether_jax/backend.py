"""Give the core its operations on JAX arrays: one compiled function a step, which nothing waits for.

Inside, binary64 is switched on for our own functions alone (`jax.enable_x64` is thread-local and scoped), whatever the
user's setting; the user's arrays and functions never see it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noether_core import host
from noether_core.backend import Reducer, Step, Taken, ValueType, into_slots
from noether_core.errors import UpdateOutputError
from noether_core.reduce import Columns, Ops, Sums, each, lift, lift_array
from noether_jax import words
from noether_jax.ops import JaxOps, ops_for


def lift_step(
    ops: Ops,
    scalars: tuple[tuple[jax.Array, ...], ...],
    arrays: tuple[jax.Array, ...],
    weight: jax.Array | None,
    code: jax.Array,
    columns: Columns,
) -> tuple[Sums, tuple[jax.Array, ...]]:
    """Return the sums of one step's values, a slot for each, group by group and array by array; and the groups' vectors."""
    at = code.reshape(1, 1)
    factor = None if weight is None else weight.reshape(-1)
    rows = tuple(jnp.stack([value.reshape(()) for value in group]) for group in scalars)
    beside = None if factor is None else factor[None]
    parts = [each(lambda array: array[0], lift(ops, row[None], at, columns, beside)) for row in rows]
    parts += [lift_array(ops, value.reshape(-1), at, columns, factor) for value in arrays]
    return each(lambda *fields: jnp.concatenate(fields), *parts), rows


@partial(jax.jit, static_argnames=("ops", "num_slots", "keep", "columns"))
def _absorb(
    state: jax.Array,
    scalars: tuple[tuple[jax.Array, ...], ...],
    arrays: tuple[jax.Array, ...],
    weight: jax.Array | None,
    slots: jax.Array | None,
    code: jax.Array,
    *,
    ops: JaxOps,
    num_slots: int,
    keep: tuple[bool, ...],
    columns: Columns,
) -> tuple[jax.Array, Taken]:
    total, rows = lift_step(ops, scalars, arrays, weight, code, columns)
    # the copies are new buffers: a later donation of the user's array leaves them whole
    kept = tuple(jnp.copy(value) if wanted else None for value, wanted in zip(arrays, keep, strict=True))
    sums, _ = words.unpack(ops, columns, state)
    return words.pack(into_slots(ops, sums, total, slots, num_slots, columns)), Taken(rows, kept)


class JaxState(NamedTuple):
    """Hold the sums as words (see `noether_jax.words`), and what reads them."""

    words: Any
    ops: JaxOps
    columns: Columns


class JaxReducer:
    """Absorb a step in one compiled call.

    Args:
        ops: what to reduce with; None: whatever the values' device has.
    """

    def __init__(self, ops: JaxOps | None = None) -> None:
        self._ops = ops

    def absorb(self, state: JaxState | None, step: Step) -> tuple[JaxState, Taken]:
        """Return the sums with a step merged in, and copies of the step's values."""
        layout = step.layout
        slots = None if layout.fills(step.num_slots) else layout.slots
        if state is None:  # an identity of the same types, so that the first step is not a compilation of its own
            ops = self._ops or ops_for(jax.default_backend())
            state = JaxState(words.initial(ops, layout.columns, step.num_slots), ops, layout.columns)
        weight = step.weight if step.weight is None or isinstance(step.weight, jax.Array) else np.asarray(step.weight)
        with jax.enable_x64(True):
            packed, taken = _absorb(
                state.words,
                step.scalars,
                step.arrays,
                weight,
                slots,
                np.int64(step.code),
                ops=state.ops,
                num_slots=step.num_slots,
                keep=layout.keep,
                columns=layout.columns,
            )
        return state._replace(words=packed), taken

    def to_host(
        self, states: Sequence[JaxState], copies: Sequence[jax.Array]
    ) -> tuple[list[Sums], list[np.ndarray[Any, Any]]]:
        """Return the sums of each state and some copies as NumPy arrays; all are fetched at once."""
        packed, arrays = jax.device_get(([state.words for state in states], list(copies)))
        sums = [words.from_host(state.ops, state.columns, each)[0] for state, each in zip(states, packed, strict=True)]
        return sums, [np.array(array) for array in arrays]


_type_of = attrgetter("aval", "sharding")


def _is_concrete(value: Any) -> bool:
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)


class JaxBackend:
    """Know JAX's arrays."""

    name = "JAX"
    reducer: Reducer = JaxReducer()

    def signature(self, values: Sequence[Any]) -> Hashable:
        """Return what decides the plan for these values."""
        if _is_concrete(values[0]) and len(set(map(type, values))) == 1:
            return tuple(map(_type_of, values))
        return tuple([_type_of(value) if _is_concrete(value) else host.signature(value) for value in values])

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
        dtype = check_dtype(key, value.dtype)
        return ValueType(dtype.name, value.shape, frozenset(value.devices()), dtype == np.float64)

    def processes(self) -> tuple[int, int]:
        """Return this process's index and the number of processes."""
        return jax.process_index(), jax.process_count()

    def to_numpy(self, values: Sequence[jax.Array]) -> list[np.ndarray[Any, Any]]:
        """Return copies of arrays on the host."""
        return [np.array(value) for value in jax.device_get(list(values))]

    def from_numpy(self, value: np.ndarray[Any, Any], like: Any = None) -> jax.Array:
        """Return an array with the same dtype, shape and bits, 64-bit ones included; committed to no device."""
        with jax.enable_x64(True):
            array: jax.Array = jax.device_put(value)
            return array


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
