"""Select what is tracked inside of a compiled function, and check values against it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, check_last, check_weight
from noether_core.errors import UpdateOutputError, listing
from noether_core.reduce import host
from noether_core.select import Selection, flatten, require, select, weight_of
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
    """Return the shape and dtype of the array that keeps a slot's newest value; see `packing.bits`."""
    dtype = jnp.dtype(slot.dtype)
    if dtype.itemsize == 8:
        return (*slot.shape, 2), np.uint32
    is_whole = jnp.issubdtype(dtype, jnp.integer) or dtype == np.bool_
    return slot.shape, dtype if is_whole else np.dtype(f"u{dtype.itemsize}")


def kind_of(config: TrackAdditionalOutputsCallbackConfig, slot: Slot) -> tuple[bool, bool, str]:
    """Tell whether a slot is the weight and whether it is an array, and a scalar's dtype: equal ones are lifted together."""
    is_array = prod(slot.shape) != 1
    return slot.key == config.weight, is_array, "" if is_array else slot.dtype


def slots_of(config: TrackAdditionalOutputsCallbackConfig, example: Mapping[str, Any]) -> tuple[Slot, ...]:
    """Return what is tracked of outputs like these, scalars of one dtype side by side, the weight last."""
    outputs = flatten(example)
    selection = _selected(config, outputs)
    weight = weight_of(config.weight, outputs) if selection.tracked else None
    slots = []
    for order, key in enumerate(selection.tracked):
        slot = slot_of(key, outputs[key], order)
        check_last(config, key, slot.shape)
        if weight is not None and key != config.weight:
            check_weight(config, key, slot.shape, slot_of(key, weight, 0).shape)
        slots.append(slot)
    return tuple(sorted(slots, key=lambda slot: (kind_of(config, slot), slot.order)))


def present_of(
    config: TrackAdditionalOutputsCallbackConfig, slots: tuple[Slot, ...], outputs: Mapping[str, Any]
) -> tuple[Slot, ...]:
    """Return the slots whose keys are there, after checking that no key is new or wrongly absent."""
    tracked = _selected(config, outputs).tracked
    known = {slot.key for slot in slots}
    for key in tracked:
        if key not in known:
            raise UpdateOutputError(
                f"update output {key!r} was not in the example that init got, which had {listing(sorted(known))};"
                " give init an example with every key that ever comes"
            )
    return tuple(slot for slot in slots if slot.key in set(tracked))


def _selected(config: TrackAdditionalOutputsCallbackConfig, outputs: Mapping[str, Any]) -> Selection:
    selection = select(config.keys or (), config.patterns or (), tuple(outputs))
    if config.missing == "error":
        require(selection, tuple(outputs))
    return selection


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
