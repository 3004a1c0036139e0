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
from noether_core.select import Selection, flat_outputs, require, scalars_among, select, weight_of
from noether_core.silence import SILENT
from noether_jax.backend import check_dtype


class Slot(NamedTuple):
    """Describe one tracked key: its dtype and shape, and its place in the order of logging.

    Attributes:
        is_weak: whether the example was what JAX makes of a Python number, whose dtype is not the number's own.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    wide: bool
    order: int
    is_weak: bool = False


def slot_of(key: str, value: Any, order: int) -> Slot:
    """Return the slot of an example: an array, a `jax.ShapeDtypeStruct`, or a value on the host."""
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        dtype = check_dtype(key, value.dtype)
        return Slot(key, dtype.name, tuple(value.shape), dtype == np.float64, order, bool(value.weak_type))
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
    outputs = flat_outputs(example)
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
    return tuple(slot for slot in slots if slot.key in outputs)


def _selected(config: TrackAdditionalOutputsCallbackConfig, outputs: Mapping[str, Any]) -> Selection:
    scalars = scalars_among(outputs) if config.scalars else None
    selection = select(config.keys or (), config.patterns or (), tuple(outputs), scalars)
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


_RANKS = {bool: 0, int: 1, float: 2}


def value_of(slot: Slot, value: Any) -> jax.Array:
    """Return an update output as an array of its slot's dtype and shape; a Python number takes the slot's dtype."""
    if type(value) in _RANKS:
        array = jnp.asarray(_number_of(slot, value))
        found: tuple[str, tuple[int, ...]] = (slot.dtype, ())
    else:
        array = checked(slot.key, value)
        found = array.dtype.name, array.shape
    if found != (slot.dtype, slot.shape):
        raise UpdateOutputError(
            f"update output {slot.key!r} is {found[0]} of shape {found[1]}, and was {slot.dtype} of shape {slot.shape} in"
            " the example that init got; give init an example of what the step returns, such as jax.eval_shape's"
        )
    return array


@SILENT
def _number_of(slot: Slot, value: float) -> np.ndarray[Any, Any]:
    """Return a Python number in its slot's dtype, or raise `UpdateOutputError` if that would cut it.

    A float is rounded where the example was a Python number that JAX had rounded likewise.
    """
    host.inspect(slot.key, value, "JAX")  # an int that no float is near
    dtype = jnp.dtype(slot.dtype)
    rank = 0 if dtype == np.bool_ else 1 if jnp.issubdtype(dtype, jnp.integer) else 2
    if _RANKS[type(value)] <= rank:
        try:
            array = np.asarray(value, dtype)
        except (OverflowError, TypeError):  # of an int, as ml_dtypes says it
            array = np.asarray(float(value), np.float64)
        is_rounded = type(value) is float and slot.is_weak and np.isfinite(array) == np.isfinite(value)
        if array.dtype == dtype and (array.item() == value or value != value or is_rounded):
            return array
        if rank == 2 and dtype == np.float64 and not -(2**63) <= value < 2**64:  # taken as the nearest float64
            return np.asarray(float(value))
    raise UpdateOutputError(
        f"update output {slot.key!r} is the Python {type(value).__name__} {value!r:.40}, which {slot.dtype} cannot hold as it"
        f" is, and it was {slot.dtype} in the example that init got; give init an example of the widest kind that comes, such"
        " as 0.0 for a Python float, or return an array of the example's dtype"
    )
