"""Drive a run whose update outputs are reduced inside of the user's own compiled function.

A `Tracked` is what the function carries: for each callback a window of one or more rows, each the state of one interval. Which
row a step belongs to is known beforehand, from the run's counter alone, so that one call may scan over several intervals.
The host counts along, and only at an interval's end fetches the windows, all in one transfer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.callbacks import TrackAdditionalOutputsCallback
from noether_core.errors import HookOrderError, NoetherError
from noether_core.reduce.partial import Partials, no_partials
from noether_core.run import Run
from noether_jax.output_tracker import AxisName, OutputTracker, OutputTrackerState
from noether_jax.slots import Slot, slots_of


class Window(NamedTuple):
    """Hold the intervals that one call can touch.

    Attributes:
        rows: the states of the intervals; each array has them as its leading axis.
        ends: int32 [rows], the positions at which the rows end; the last one is out of reach.
    """

    rows: OutputTrackerState
    ends: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tracked:
    """Hold all that a compiled function carries for a run. A pytree of fixed structure; it may be donated.

    Attributes:
        position: int32, how many accumulation steps the training has made, those before `run.init` too.
        windows: one for each callback that tracks update outputs.
    """

    position: Array
    windows: tuple[Window, ...]


def track(output_trackers: tuple[OutputTracker, ...], tracked: Tracked, outputs: Mapping[str, Any]) -> Tracked:
    """Return `tracked` with one accumulation step's outputs merged in."""
    position = tracked.position

    def updated(tracker: OutputTracker, window: Window) -> Window:
        row = jnp.sum(position >= window.ends, dtype=jnp.int32)
        state = jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, row, keepdims=False), window.rows)
        new = tracker.update(state, outputs, position)
        rows = jax.tree.map(lambda rows, new: jax.lax.dynamic_update_index_in_dim(rows, new, row, 0), window.rows, new)
        return Window(rows, window.ends)

    windows = tuple(updated(*each) for each in zip(output_trackers, tracked.windows, strict=True))
    return Tracked(position + jnp.int32(1), windows)


@jax.jit
def _renewed(tracked: Tracked, blank: Tracked, done: tuple[np.int32, ...]) -> Tracked:
    """Return `tracked` for the next call: the interval under way in each window's first row, the others empty."""

    def renewed(window: Window, blank: Window, number: Array) -> Window:
        def carried(rows: jax.Array, empty: jax.Array) -> jax.Array:
            first = jax.lax.dynamic_index_in_dim(jnp.concatenate([rows, empty[:1]]), number, keepdims=True)
            return jnp.concatenate([first, empty[1:]])

        return Window(jax.tree.map(carried, window.rows, blank.rows), blank.ends)

    windows = tuple(renewed(*each) for each in zip(tracked.windows, blank.windows, done, strict=True))
    return Tracked(tracked.position + jnp.int32(0), windows)


@dataclass
class _WindowSource:
    """Give one callback what its window holds."""

    fused: Fused
    number: int
    callback: TrackAdditionalOutputsCallback
    tracker: OutputTracker
    slots: tuple[Slot, ...]
    done: int = 0  # rows of the fetched window that were emitted

    def ends(self) -> Iterator[int]:
        """Yield the positions at which the callback's interval ends, from the counter's present place on."""
        run, counter = self.fused.run, self.fused.run.counter
        ends = self.callback.interval.ends(
            counter.cur_iteration, counter.updates_per_epoch, counter.effective_batch_size
        )
        return (update * run.accumulation_steps for update in ends)

    def blank(self, steps: int) -> Window:
        """Return the window of a call of so many accumulation steps, empty, in NumPy arrays."""
        counter, interval = self.fused.run.counter, self.callback.interval
        per_unit = {
            "update": 1.0,
            "sample": 1 / counter.effective_batch_size,
            "epoch": counter.updates_per_epoch or 1,
        }[interval.unit]
        shortest = max(1, int(interval.n * per_unit)) * self.fused.run.accumulation_steps
        rows = 1 + -(-(steps - 1) // shortest)
        ends = np.array([*islice(self.ends(), rows - 1), np.iinfo(np.int32).max], np.int32)
        state = self.tracker.blank(self.slots)
        return Window(jax.tree.map(lambda array: np.broadcast_to(array, (rows, *array.shape)), state), ends)

    def partials(self) -> Partials:
        """Return what each key has of the interval under way."""
        window = self.fused.fetched().windows[self.number]
        if self.done >= window.rows.words.shape[0]:
            return no_partials(self.tracker.fields)
        row = jax.tree.map(lambda rows: rows[self.done], window.rows)
        return self.tracker.partials(row, self.fused.decode_position)

    def reset(self) -> None:
        """Go on to the next interval's row."""
        self.done += 1


class Fused:
    """Count along with a `Tracked`, and hand its rows to the callbacks at the intervals' ends.

    For the arguments see `noether_jax.Run.init`; `loaded` is how many accumulation steps `load_state_dict` brought.
    """

    def __init__(
        self, run: Run, example: Mapping[str, Any], steps_per_call: int, axis_name: AxisName | None, loaded: int
    ) -> None:
        if isinstance(steps_per_call, bool) or not isinstance(steps_per_call, int) or steps_per_call < 1:
            raise NoetherError(f"run.init got steps_per_call={steps_per_call!r}; expected an int of at least 1")
        self.run = run
        self._counter = run.counter
        self._steps_per_call = steps_per_call
        self._loaded = loaded
        self._begun = self._position = run.counter.update * run.accumulation_steps + run.accumulated
        self._fetched: Tracked | None = None
        callbacks = [each for each in run.callbacks if isinstance(each, TrackAdditionalOutputsCallback)]
        self.output_trackers = tuple(OutputTracker(callback.config, axis_name) for callback in callbacks)
        self._sources = [
            _WindowSource(self, number, callback, tracker, slots_of(callback.config, example))
            for number, (callback, tracker) in enumerate(zip(callbacks, self.output_trackers, strict=True))
        ]
        for callback, source in zip(callbacks, self._sources, strict=True):
            callback.note_example(example)
            callback.sources[1:] = [source]
        self.tracked: Tracked = jax.tree.map(jnp.asarray, self._blank())
        self._next_end = self._end()

    def _blank(self) -> Tracked:
        """Return the windows of the next call, empty, in NumPy arrays."""
        windows = [source.blank(self._steps_per_call) for source in self._sources]
        return Tracked(np.int32(self._position), tuple(windows))

    def decode_position(self, step: int) -> tuple[int, int]:
        """Return the update (from 1) and the accumulation step of a step."""
        update, accumulation_step = divmod(step, self.run.accumulation_steps)
        return update + 1, accumulation_step

    def step(self, tracked: Tracked, steps: int) -> Tracked:
        """Count accumulation steps, emit what they completed, and return what the next call is to carry."""
        if self.run.counter is not self._counter:
            raise HookOrderError("the run's state was loaded after run.init; call run.init after load_state_dict")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= self._steps_per_call:
            raise HookOrderError(
                f"run.step got steps={steps!r}; expected 1 to {self._steps_per_call}: give run.init the most that one call"
                " makes as steps_per_call"
            )
        self.tracked, self._fetched = tracked, None
        self._position += steps
        is_end = self._position >= self._next_end
        if is_end:
            self.fetched()
        errors = []
        for _ in range(steps):
            try:
                self.run.count_step()
            except Exception as error:
                errors.append(error)
        if is_end:
            self._renew()
        if errors:
            raise errors[0]
        return self.tracked

    def _renew(self) -> None:
        self.tracked = _renewed(self.tracked, self._blank(), tuple(np.int32(source.done) for source in self._sources))
        self._fetched = None
        for source in self._sources:
            source.done = 0
        self._next_end = self._end()

    def _end(self) -> int:
        """Return the position at which the next interval ends."""
        return min((next(source.ends()) for source in self._sources), default=sys.maxsize)

    def fetched(self) -> Tracked:
        """Return the windows on the host; one transfer, and none if they are there already."""
        if self._fetched is None:
            if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.tracked)):
                raise HookOrderError(
                    "what run.step returned last was donated, and run.step has not seen what came of it; call run.step with it"
                    " before state_dict, tracked_values or the end of the run"
                )
            fetched: Tracked = jax.device_get(self.tracked)
            self._check(fetched)
            self._fetched = fetched
        return self._fetched

    def _check(self, fetched: Tracked) -> None:
        """Refuse what has seen other steps than the run counted, or again those that `load_state_dict` brought."""
        position = int(fetched.position)
        if position != self._position:
            raise HookOrderError(
                f"run.track was called {position - self._begun} times since run.init, and run.step counted"
                f" {self._position - self._begun} accumulation steps; call run.step once for each call of run.track, or say"
                " steps=n; after a restart, make the run with the start at which the checkpoint was saved"
            )
        begun = [position - int(np.sum(window.rows.step)) for window in fetched.windows]
        if min(begun, default=position) < self._loaded:
            raise HookOrderError(
                "what run.step got holds steps that load_state_dict has brought already, and that would count twice; carry what"
                " run.init returns after it (of an optimizer: with_records(state, optimizer.init(params))), or leave it out and"
                " make the run with the start at which the checkpoint was saved"
            )
