"""Give the core its operations on JAX arrays: one compiled call a step, which nothing waits for, and another every 32 steps.

Inside, binary64 is switched on for our own functions alone (`jax.enable_x64` is thread-local and scoped), whatever the
user's setting; the user's arrays and functions never see it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noether_core import host
from noether_core.backend import Layout, Reducer, Step, Taken, ValueType
from noether_core.errors import UpdateOutputError
from noether_core.large import lift_array
from noether_core.pending import PENDING_VALUES, Pending, PendingReducer, ReducerState, into_slots
from noether_core.reduce import Columns, Ops, Sums, each, lift, nothing
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
    parts += [lift_array(ops, value.reshape(-1), lambda: at, columns, factor) for value in arrays]
    return each(lambda *fields: jnp.concatenate(fields), *parts), rows


@partial(jax.jit, static_argnames=("ops", "keep", "columns"))
def _take(
    scalars: tuple[tuple[jax.Array, ...], ...],
    arrays: tuple[jax.Array, ...],
    weight: jax.Array | None,
    code: jax.Array | None,
    *,
    ops: JaxOps,
    keep: tuple[bool, ...],
    columns: Columns,
) -> tuple[tuple[jax.Array, ...], jax.Array | None, jax.Array | None, tuple[jax.Array | None, ...]]:
    """Return the groups' vectors, the weight, the arrays' sums as words, and the copies that are wanted: new buffers, all.

    A later donation of the user's arrays leaves them whole.
    """
    rows = tuple(jnp.stack([value.reshape(()) for value in group]) for group in scalars)
    factor = None if weight is None else weight.reshape(-1)
    kept = tuple(jnp.copy(value) if wanted else None for value, wanted in zip(arrays, keep, strict=True))
    if code is None:
        return rows, None if factor is None else jnp.copy(factor), None, kept
    lifted, _ = lift_step(ops, (), arrays, weight, code, columns)
    return rows, jnp.copy(factor) if factor is not None and rows else None, words.pack(lifted), kept


@partial(jax.jit, static_argnames=("ops", "num_slots", "columns"))
def _settle(
    state: jax.Array,
    rows: tuple[tuple[jax.Array, ...], ...],
    weights: tuple[jax.Array, ...] | None,
    lifted: tuple[jax.Array, ...] | None,
    codes: jax.Array,
    slots: jax.Array | None,
    *,
    ops: JaxOps,
    num_slots: int,
    columns: Columns,
) -> jax.Array:
    """Return the words of a state with steps merged in; a step whose code is below 0 is a blank."""
    at = codes[:, None]
    beside = None if weights is None else jnp.stack(weights)
    parts = [lift(ops, jnp.stack(group), at, columns, beside) for group in zip(*rows, strict=True)]
    if lifted is not None:
        steps = jnp.stack(lifted, 1)  # fields, steps, slots and halves
        unpacked, _ = words.unpack(ops, columns, steps.reshape(steps.shape[0], -1, 2))
        parts.append(each(lambda field: field.reshape(steps.shape[1:3]), unpacked))
    # all of them joined first: one loop to compile
    joined = each(lambda *fields: jnp.concatenate(fields, -1), *parts)
    blank = each(lambda value: jnp.asarray(value), nothing(ops, columns))
    live = each(lambda field, other: ops.where(at >= 0, field, other.astype(field.dtype)), joined, blank)
    sums, _ = words.unpack(ops, columns, state)
    return words.pack(into_slots(ops, sums, ops.fold(live), slots, num_slots, columns))


class JaxSums(NamedTuple):
    """Hold sums as words (see `noether_jax.words`), and what reads them."""

    words: Any
    ops: JaxOps
    columns: Columns


class JaxKernels:
    """Take a step in one compiled call, and reduce many of them in another.

    Args:
        ops: what to reduce with; None: whatever the default device has.
    """

    def __init__(self, ops: JaxOps | None = None) -> None:
        self._given = ops

    @cached_property
    def _ops(self) -> JaxOps:
        return self._given or ops_for(jax.default_backend())

    def most_pending(self, layout: Layout) -> int:
        """Return how many steps of a layout `settle` takes at a time; it is compiled for that many."""
        return min(32, 1 + PENDING_VALUES // len(layout.slots))

    def take(self, step: Step) -> tuple[Pending, Taken]:
        """Return a step stacked, its arrays lifted; and copies of its values."""
        layout, weight = step.layout, step.weight
        if weight is not None and not isinstance(weight, jax.Array):
            weight = np.asarray(weight)
        code = np.int64(step.code) if step.arrays else None
        with jax.enable_x64(True):
            rows, weight, lifted, kept = _take(
                step.scalars, step.arrays, weight, code, ops=self._ops, keep=layout.keep, columns=layout.columns
            )
        return Pending(rows, weight, lifted, step.code), Taken(rows, kept)

    def settle(self, state: ReducerState) -> JaxSums:
        """Return the sums with all that is pending merged in."""
        layout, pending = state.layout, state.pending
        columns = layout.columns
        sums = state.sums
        if sums is None:  # an identity of the same types, so that the first call is not a compilation of its own
            ops = self._ops
            sums = JaxSums(words.initial(ops, columns, state.num_slots), ops, columns)
        blanks = self.most_pending(layout) - len(pending)
        steps = (*pending, *pending[:1] * blanks)
        first = pending[0]
        with jax.enable_x64(True):
            packed = _settle(
                sums.words,
                tuple(step.rows for step in steps),
                None if first.weight is None else tuple(step.weight for step in steps),
                None if first.arrays is None else tuple(step.arrays for step in steps),
                np.array([step.code for step in pending] + [-1] * blanks, np.int64),
                None if layout.fills(state.num_slots) else layout.slots,
                ops=sums.ops,
                num_slots=state.num_slots,
                columns=columns,
            )
        return JaxSums(packed, sums.ops, columns)

    def to_host(
        self, settled: Sequence[JaxSums], copies: Sequence[jax.Array]
    ) -> tuple[list[Sums], list[np.ndarray[Any, Any]]]:
        """Return settled sums and some copies as NumPy arrays; all are fetched at once."""
        packed, arrays = jax.device_get(([sums.words for sums in settled], list(copies)))
        found = [words.from_host(sums.ops, sums.columns, each)[0] for sums, each in zip(settled, packed, strict=True)]
        return found, [np.array(array) for array in arrays]


_aval_of, _sharding_of = attrgetter("aval"), attrgetter("sharding")


def _is_concrete(value: Any) -> bool:
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)


class JaxBackend:
    """Know JAX's arrays."""

    name = "JAX"
    reducer: Reducer = PendingReducer(JaxKernels())

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
