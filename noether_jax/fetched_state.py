"""Read a fetched state: what each key has of an interval, for the core to finish."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import NEVER, encode_position
from noether_core.algebra.sums import Fields, Statistics, each, fold_tree
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.reduce.partial import WHOLE_DTYPES, Newest, Partials, Vector
from noether_core.silence import SILENT
from noether_jax import packing
from noether_jax.ops import JaxOps
from noether_jax.slots import Slot
from noether_jax.tracker_state import OutputTrackerState, check_identities, leading_axes

PositionOf = Callable[[int], tuple[int, int]]  # of a step: its update and accumulation step


@SILENT
def read_state(
    config: TrackAdditionalOutputsCallbackConfig,
    ops: JaxOps,
    blank: OutputTrackerState,
    state: OutputTrackerState,
    position_of: PositionOf,
) -> Partials:
    """Return what each key that came has, in the order of logging.

    Args:
        config: says what is wanted of each key.
        ops: those that the state was made with.
        blank: an empty state of its slots.
        state: its arrays are on the host, and each has a leading axis of members (at least one), which are joined.
        position_of: returns the update (from 1) and the accumulation step (from 0) of a step.

    Raises:
        NoetherError: for a state that another config made.
    """
    fields = fields_of(config)
    rows, (uses, newest) = _unpacked(ops, fields, blank, state)
    folded = fold_tree(NUMPY, rows)
    statistics = folded._replace(first_nonfinite=_positions(folded.first_nonfinite, position_of))
    slots, uses, newest = state.slots, uses.sum(0), newest.max(0)
    found = Partials(
        tuple(slot.key for slot in slots),
        each(lambda vector: vector[: len(slots)], statistics),
        uses[: len(slots)] * np.array([prod(slot.shape) for slot in slots], np.int64),
        np.array([slot.wide for slot in slots], bool),
        np.array([slot.dtype in WHOLE_DTYPES for slot in slots], bool),
        np.array([fields.weights and slot.key != config.weight for slot in slots], bool),
        {
            slot.key: Newest(_value(state, slot), *position_of(int(newest[at])))
            for at, slot in enumerate(slots)
            if slot.key in state.last and uses[at]
        },
    )
    came = np.flatnonzero(uses[: len(slots)]).tolist()
    return found.take(np.array(sorted(came, key=lambda at: slots[at].order), np.int64))


def _unpacked(
    ops: JaxOps, fields: Fields, blank: OutputTrackerState, state: OutputTrackerState
) -> tuple[Statistics, tuple[Vector, Vector]]:
    """Return what the members have, and how often each key came and when last, a row for each member."""
    leading_axes(state, blank)
    rows, (uses, newest, what) = packing.from_host(ops, fields, np.moveaxis(state.words, 0, 1))
    check_identities(what, packing.from_host(ops, fields, blank.words)[1][2])
    return rows, (uses, newest)


def _value(state: OutputTrackerState, slot: Slot) -> np.ndarray[Any, Any]:
    """Return a key's newest value, the same in every member."""
    return np.asarray(state.last[slot.key][0]).view(jnp.dtype(slot.dtype)).reshape(slot.shape)


def _positions(steps: Vector, position_of: PositionOf) -> Vector:
    """Return the positions of steps by their numbers."""
    found = np.where(steps == np.iinfo(np.int64).max, NEVER, steps)
    for at in np.flatnonzero(found != NEVER).tolist():
        found[at] = encode_position(*position_of(int(found[at])))
    return found
