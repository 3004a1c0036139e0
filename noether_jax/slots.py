"""Describe what is tracked inside of a compiled function, and check values against it."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.errors import UpdateOutputError
from noether_core.reduce import host
from noether_jax.backend import check_dtype


class Slot(NamedTuple):
    """Describe one tracked key: its dtype and shape, and its place in the order of logging."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    wide: bool
    order: int


def slot_of(key: str, value: Any, order: int) -> Slot:
    """Return the slot of an example: an array, a `jax.ShapeDtypeStruct`, or a value on the host."""
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        dtype = check_dtype(key, value.dtype)
        return Slot(key, dtype.name, tuple(value.shape), dtype == np.float64, order)
    found = host.inspect(key, value, "JAX")
    return Slot(key, found.dtype, found.shape, found.wide, order)


def kept_form(slot: Slot) -> tuple[tuple[int, ...], Any]:
    """Return the shape and dtype of the array that keeps a slot's newest value; see `words.halved`."""
    dtype = jnp.dtype(slot.dtype)
    return ((*slot.shape, 2), np.uint32) if dtype.itemsize == 8 else (slot.shape, dtype)


def group_order(slot: Slot) -> tuple[bool, str, int]:
    """Return what sorts slots as `lift_step` has them."""
    is_array = prod(slot.shape) != 1
    return is_array, "" if is_array else slot.dtype, slot.order


def checked(key: str, value: Any) -> jax.Array:
    """Return a value as a JAX array of its own dtype; to be called where x64 is on."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value, slot_of(key, value, 0).dtype)
    else:
        check_dtype(key, value.dtype)
    return jnp.asarray(value)


def value_of(slot: Slot, value: Any) -> jax.Array:
    """Return an update output as an array of its slot's dtype and shape; a Python number takes the slot's dtype."""
    if type(value) in (bool, int, float):
        found: tuple[str, tuple[int, ...]] = (slot.dtype, ())
        array = jnp.asarray(np.asarray(value, jnp.dtype(slot.dtype)))
    else:
        array = checked(slot.key, value)
        found = array.dtype.name, array.shape
    if found != (slot.dtype, slot.shape):
        raise UpdateOutputError(
            f"update output {slot.key!r} is {found[0]} of shape {found[1]}, and was {slot.dtype} of shape {slot.shape} in"
            " the example that init got; give init an example of what the step returns, such as jax.eval_shape's"
        )
    return array
