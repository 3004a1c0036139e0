"""Hold an interval under way on the device, and tell whether arrays that come back are such a state, and of which tracker.

A state may come back from a checkpoint, or from `jax.vmap`. Its structure may have been lost and made anew on the way, so what
its arrays mean is written into the arrays themselves: beside each slot's sums stands a number for its key, type and weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.errors import HookOrderError, NoetherError
from noether_jax.ops import JaxOps
from noether_jax.slots import Slot

Shape = tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OutputTrackerState:
    """Hold an interval under way. A pytree: its arrays are data, its slots are structure.

    Attributes:
        words: uint32 [fields, slots, 2], see `noether_jax.packing`: the sums, how often each key came, when last, and what the
            slot is.
        last: the newest value of each key that is reduced with `last`, of a float its bits; of 64 bits the halves.
        step: int32, how many updates went in.
        slots: what is tracked.
    """

    words: Array
    last: dict[str, Array]
    step: Array
    slots: tuple[Slot, ...] = field(metadata={"static": True})


def identities(
    config: TrackAdditionalOutputsCallbackConfig, ops: JaxOps, slots: Sequence[Slot], meaning: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a number for each slot that stands for what its sums mean; for no slots, that of none."""
    shared = meaning, config.weight, ops.parts, tuple(fields_of(config))
    own: list[tuple[Any, ...]] = [
        (slot.key, slot.dtype, slot.shape, slot.wide, "last" in config.reductions(slot.key)) for slot in slots
    ]
    return np.array([zlib.crc32(repr((*each, *shared)).encode()) for each in own or [()]], np.int64)


def leading_axes(state: OutputTrackerState, blank: OutputTrackerState) -> Shape:
    """Return the leading axes that `jax.vmap` gave a state, after checking its arrays against those of an empty one.

    Raises:
        NoetherError: for a state of other outputs or of another config.
    """
    leading = np.shape(state.step)
    arrays = [("words", state.words, blank.words)]
    arrays += [(f"last[{key!r}]", array, blank.last.get(key)) for key, array in state.last.items()]
    for name, array, like in arrays:
        wanted = None if like is None else (*leading, *like.shape)
        if np.shape(array) != wanted or len(state.last) != len(blank.last):
            raise other_state(f"its {name} has shape {np.shape(array)}, expected {wanted}")
    return leading


def check_alone(state: OutputTrackerState, blank: OutputTrackerState, method: str) -> None:
    """Raise `NoetherError` unless arrays are of the form of an empty state's."""
    if leading := leading_axes(state, blank):
        raise NoetherError(
            f"{method} got a state with the leading axes {leading}, as jax.vmap gives; expected one state: call"
            f" jax.vmap({method}), or take a member, jax.tree.map(lambda array: array[0], state)"
        )


def check_identities(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    """Raise `NoetherError` unless the slots of each member's state, [members, slots], are what they are taken for."""
    if differing := int((found != wanted).any(0).sum()):
        raise other_state(f"{differing} of its {len(wanted)} slots are of other outputs")


def other_state(what: str) -> NoetherError:
    """Return what to raise for a state that another config or other outputs made."""
    return NoetherError(
        f"the state was made by another config, for other outputs, or by another version: {what}. Restore a checkpoint under"
        " the config and the example that it was saved with, or start an interval anew with init (of an optimizer:"
        " with_records(state, optimizer.init(params)))"
    )


def check_concrete(tree: Any, method: str) -> None:
    """Raise `NoetherError` if some of a pytree's arrays have no values to be read: not yet, or no more."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer):
            raise NoetherError(
                f"{method} was called while JAX traced a function, where there are no values yet; call it outside"
            )
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise HookOrderError(f"{method} got a state that was donated; give it what came of it")
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise NoetherError(
                f"{method} got a state with parts on devices of other processes; give it what this process can read, such as"
                " jax.experimental.multihost_utils.process_allgather(state, tiled=True)"
            )


def stack_members(
    results: Sequence[dict[str, np.ndarray[Any, Any]]], leading: Shape
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the members' results as arrays with leading axes of members; NaN for a member that has no such value."""
    like = {name: value for result in results for name, value in result.items()}

    def blank(name: str) -> np.ndarray[Any, Any]:
        dtype = like[name].dtype
        return np.full(like[name].shape, np.nan, dtype if jnp.issubdtype(dtype, jnp.inexact) else np.float64)

    columns = {name: [result[name] if name in result else blank(name) for result in results] for name in like}
    return {name: np.stack(column).reshape(*leading, *like[name].shape) for name, column in columns.items()}
