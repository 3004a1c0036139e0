"""Hold what a compiled function carries for a run: windows of intervals, and which row of them a step goes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.errors import NoetherError
from noether_jax.members import Members, as_row, own_row
from noether_jax.meshes import together
from noether_jax.output_tracker import OutputTracker
from noether_jax.recent import Recent, with_step
from noether_jax.tracker_state import OutputTrackerState, other_state
from noether_jax.transfers import ours


class Window(NamedTuple):
    """Hold the intervals that one call can touch.

    Attributes:
        rows: the states of the intervals; each array has them as its leading axis (behind that of members).
        ends: int32 [rows], the positions at which the rows end; the last one is out of reach.
    """

    rows: OutputTrackerState
    ends: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tracked:
    """Hold all that a compiled function carries for a run. A pytree of fixed structure; it may be donated.

    With `axis_name` each array has a leading axis of members.

    Attributes:
        position: int32, how many accumulation steps the training has made, those before `run.init` too.
        windows: one for each callback that tracks update outputs.
    """

    position: Array
    windows: tuple[Window, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Remembering(Tracked):
    """Hold the newest steps too.

    Attributes:
        recent: of each window a ring.
    """

    recent: tuple[Recent, ...]


def track(
    output_trackers: tuple[OutputTracker, ...],
    tracked: Tracked,
    outputs: Mapping[str, Any],
    members: Members | None = None,
) -> Tracked:
    """Return `tracked` with one accumulation step's outputs merged in; with `members`, inside of what is mapped over these."""
    if len(output_trackers) != len(tracked.windows):
        raise other_state(f"it has {len(tracked.windows)} windows, and {len(output_trackers)} callbacks track")
    is_row = is_row_of(members, tracked, "run.track")

    keeps_rows = isinstance(tracked, Remembering)

    def updated(tracker: OutputTracker, window: Window, position: Array) -> tuple[Window, jax.Array | None]:
        row = jnp.sum(position >= window.ends, dtype=jnp.int32)
        state = jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, row, keepdims=False), window.rows)
        new, kept = tracker.updated(state, outputs, position, keeps_rows)
        rows = jax.tree.map(lambda rows, new: jax.lax.dynamic_update_index_in_dim(rows, new, row, 0), window.rows, new)
        return Window(rows, window.ends), kept

    with ours(), together(tracked) as shared:
        held = shared.taken(tracked)
        held = own_row(held) if is_row else held
        found = [updated(*each, held.position) for each in zip(output_trackers, held.windows, strict=True)]
        new = replace(held, position=held.position + jnp.int32(1), windows=tuple(window for window, _ in found))
        if isinstance(held, Remembering):
            kept = zip(held.recent, found, strict=True)
            rings = tuple(with_step(ring, row, held.position) for ring, (_, row) in kept if row is not None)
            new = Remembering(new.position, new.windows, rings)
        new = as_row(new) if is_row else new
    return shared.given(new, tracked)


def is_row_of(members: Members | None, tracked: Tracked, method: str) -> bool:
    """Tell whether this is one member's part of a `Tracked`, with its leading axis of one.

    Raises:
        NoetherError: for the parts of several, or leading axes that only `jax.vmap` gave.
    """
    leading = np.shape(tracked.position)
    return check_is_one(leading, method) if members is None else members.is_row(leading, method)


def check_is_one(leading: tuple[int, ...], method: str) -> bool:
    """Raise `NoetherError` for leading axes that `jax.vmap` gave."""
    if leading:
        raise NoetherError(
            f"{method} got what run.track returned with the leading axes {leading}, as jax.vmap gives; expected one: map over"
            " the training alone and track its outputs outside, or join the members with run.init(..., axis_name=...)"
        )
    return False


@partial(jax.jit, static_argnames="axis")
def renewed(
    tracked: Tracked, blanks: tuple[OutputTrackerState, ...], ends: tuple[Array, ...], done: Array, *, axis: int
) -> Tracked:
    """Return `tracked` for the next call: the interval under way in each window's first row, the others empty.

    `axis` is that of the rows: 1 behind an axis of members, else 0.
    """

    def of_one(rows: OutputTrackerState, blank: OutputTrackerState, number: Array) -> OutputTrackerState:
        def carried(rows: jax.Array, empty: jax.Array) -> jax.Array:
            head, rest = jax.lax.split(empty, (1, empty.shape[axis] - 1), axis)
            first = jax.lax.dynamic_index_in_dim(jnp.concatenate([rows, head], axis), number, axis, keepdims=True)
            return jnp.concatenate([first, rest], axis)

        found: OutputTrackerState = jax.tree.map(carried, rows, blank)
        return found

    with together(tracked, blanks, ends, gathers=False) as shared:
        held, blanks, ends = shared.taken((tracked, blanks, ends))
        rows = [of_one(window.rows, *each) for window, *each in zip(held.windows, blanks, done, strict=True)]
        windows = tuple(map(Window, rows, map(jnp.asarray, ends)))
        new = replace(held, position=held.position + jnp.int32(0), windows=windows)
    return shared.given(new, tracked)
