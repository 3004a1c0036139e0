"""Give a callback what its window of intervals holds, and check that it is what was to come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import jax
import numpy as np

from noether_core.callbacks import TrackAdditionalOutputsCallback
from noether_core.errors import HookOrderError
from noether_core.reduce.latest import Latest
from noether_core.reduce.partial import Partials, no_partials, spread
from noether_core.run import Run
from noether_jax.output_tracker import OutputTracker
from noether_jax.recent import latest_of
from noether_jax.slots import Slot
from noether_jax.tracker_state import OutputTrackerState
from noether_jax.transfers import Rows
from noether_jax.windows import Remembering, Window


class Fetching(Protocol):
    """List what is needed of the run around a window."""

    run: Run

    def fetched(self) -> Rows:
        """Return what this process has of the windows, on the host."""

    def decode_position(self, step: int) -> tuple[int, int]:
        """Return the update (from 1) and the accumulation step of a step."""


@dataclass
class WindowSource:
    """Give one callback what its window holds.

    Attributes:
        fused: the run around it.
        number: of the window.
        callback: the callback.
        tracker: made the window's rows.
        slots: what they hold.
        earliest, latest: the positions at which the interval under way can have begun.
        done: rows of the fetched window that were emitted.
    """

    fused: Fetching
    number: int
    callback: TrackAdditionalOutputsCallback
    tracker: OutputTracker
    slots: tuple[Slot, ...]
    earliest: int
    latest: int
    done: int = 0

    def next_ends(self) -> Iterator[int]:
        """Yield the positions at which the callback's interval ends, from the counter's present place on."""
        run, counter = self.fused.run, self.fused.run.counter
        ends = self.callback.interval.ends(
            counter.cur_iteration, counter.updates_per_epoch, counter.effective_batch_size
        )
        return (update * run.accumulation_steps for update in ends)

    def rows(self, steps: int) -> OutputTrackerState:
        """Return the rows of the window of a call of so many accumulation steps, empty, in NumPy arrays."""
        counter, interval = self.fused.run.counter, self.callback.interval
        per_unit = {
            "update": 1.0,
            "sample": 1 / counter.effective_batch_size,
            "epoch": counter.updates_per_epoch or 1,
        }[interval.unit]
        shortest = max(1, int(interval.n * per_unit)) * self.fused.run.accumulation_steps
        rows = 1 + -(-(steps - 1) // shortest)
        state = self.tracker.blank(self.slots)
        empty: OutputTrackerState = jax.tree.map(lambda array: np.broadcast_to(array, (rows, *array.shape)), state)
        return empty

    def lay(self, rows: int) -> np.ndarray[Any, Any]:
        """Return the positions at which so many rows end, from the counter's present place on."""
        self.done = 0
        self.ends = np.array([*islice(self.next_ends(), rows - 1), np.iinfo(np.int32).max], np.int32)
        return self.ends

    def check(self, window: Window, position: int) -> None:
        """Refuse a window, on the host, with other steps than those of the interval under way and of what follows it."""
        if np.shape(window.ends)[1:] != self.ends.shape or not (window.ends == self.ends).all():
            raise self._misused("its intervals end elsewhere than this run's")
        for begun in (position - np.sum(window.rows.step, -1)).tolist():
            if begun < self.earliest or begun > self.latest:
                raise self._misused(
                    f"{position - begun} steps were tracked where {position - self.latest} were to come"
                )

    def _misused(self, what: str) -> HookOrderError:
        return HookOrderError(
            f"run.step got what does not belong to the interval of {self.callback} under way: {what}. Take what run.step"
            " returns, and give the compiled function that: tracked = run.step(tracked). From a checkpoint, make the run with"
            " the config, steps_per_call and start at which it was saved"
        )

    def partials(self) -> Partials:
        """Return what each key has of the interval under way."""
        fetched = self.fused.fetched()
        none = no_partials(self.tracker.fields)
        if self.done >= len(self.ends) or not fetched.is_counted.size:
            return none
        is_elsewhere = not fetched.is_counted.any()
        window = fetched.tree.windows[self.number]
        row = jax.tree.map(lambda rows: rows[fetched.is_counted | is_elsewhere, self.done], window.rows)
        found = self.tracker.partials(row, self.fused.decode_position)
        # a key whose values another process counts is there, with no element, so that all have the same keys
        return spread(none, found.keys) if is_elsewhere else found

    def newest(self) -> list[Latest] | None:
        """Return what the newest steps had of each key; None if the run keeps none of what is compiled."""
        fetched = self.fused.fetched()
        if not isinstance(fetched.tree, Remembering):
            return None
        if not fetched.is_counted.any():
            return []
        recent = jax.tree.map(lambda array: array[fetched.is_counted], fetched.tree.recent[self.number])
        return latest_of(self.tracker.ops, self.tracker.fields, self.slots, recent, self.fused.decode_position)

    def reset(self) -> None:
        """Go on to the next interval's row."""
        self.done += 1
        self.earliest = self.latest = self.fused.run.counter.update * self.fused.run.accumulation_steps
