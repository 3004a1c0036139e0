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
from typing import Any, TypeVar

import jax
import numpy as np

from noether_core.callbacks import TrackAdditionalOutputsCallback
from noether_core.errors import HookOrderError, NoetherError
from noether_core.reduce.partial import Partials, no_partials, spread
from noether_core.run import Run
from noether_jax.flax_state import make_serializable
from noether_jax.members import Members
from noether_jax.meshes import laid_like, no_mesh
from noether_jax.output_tracker import OutputTracker
from noether_jax.slots import Slot, slots_of
from noether_jax.tracker_state import OutputTrackerState, other_state
from noether_jax.transfers import Rows, rows_to_host, to_device
from noether_jax.windows import Tracked, Window, check_is_one, renewed

Tree = TypeVar("Tree")


@dataclass
class _WindowSource:
    """Give one callback what its window holds."""

    fused: Fused
    number: int
    callback: TrackAdditionalOutputsCallback
    tracker: OutputTracker
    slots: tuple[Slot, ...]
    earliest: int  # the position at which the interval under way can have begun
    latest: int
    done: int = 0  # rows of the fetched window that were emitted

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

    def reset(self) -> None:
        """Go on to the next interval's row."""
        self.done += 1
        self.earliest = self.latest = self.fused.run.counter.update * self.fused.run.accumulation_steps


def _laid_by(run: Run, callback: TrackAdditionalOutputsCallback) -> str:
    """Return what decides where a callback's intervals end."""
    counter = run.counter
    by_unit = {"epoch": counter.updates_per_epoch, "sample": counter.effective_batch_size}
    return f"{callback.interval} {run.accumulation_steps} {by_unit.get(callback.interval.unit)}"


class Fused:
    """Count along with a `Tracked`, and hand its rows to the callbacks at the intervals' ends.

    For the arguments see `noether_jax.Run.init`; `loaded` is how many accumulation steps `load_state_dict` brought.
    """

    def __init__(
        self, run: Run, example: Mapping[str, Any], steps_per_call: int, members: Members | None, loaded: int
    ) -> None:
        if isinstance(steps_per_call, bool) or not isinstance(steps_per_call, int) or steps_per_call < 1:
            raise NoetherError(f"run.init got steps_per_call={steps_per_call!r}; expected an int of at least 1")
        make_serializable(Tracked, "position", "windows")
        self.run = run
        self._counter = run.counter
        self._steps_per_call = steps_per_call
        self._loaded = loaded
        self._begun = self._position = run.counter.update * run.accumulation_steps + run.accumulated
        self._fetched: Rows | None = None
        self.members = members
        names = None if members is None else members.names
        callbacks = [each for each in run.callbacks if isinstance(each, TrackAdditionalOutputsCallback)]
        self.output_trackers = tuple(
            OutputTracker(callback.config, names, meaning=_laid_by(run, callback)) for callback in callbacks
        )
        self._sources = [
            _WindowSource(
                self,
                number,
                callback,
                tracker,
                slots_of(callback.config, example),
                self._last_end(callback),
                self._begun,
            )
            for number, (callback, tracker) in enumerate(zip(callbacks, self.output_trackers, strict=True))
        ]
        self._rows = tuple(source.rows(steps_per_call) for source in self._sources)
        self._blanks = self._placed(self._rows)
        self.tracked: Tracked = self._placed(
            Tracked(np.int32(self._position), tuple(map(Window, self._rows, self._lay())))
        )
        self._next_end = self._end()
        for callback, source in zip(callbacks, self._sources, strict=True):
            callback.note_example(example)
            callback.sources[1:] = [source]

    def _placed(self, tree: Tree) -> Tree:
        """Return a pytree of NumPy arrays on the device, or in each member's row."""
        placed: Tree = to_device(tree) if self.members is None else self.members.spread(tree)
        return placed

    def _last_end(self, callback: TrackAdditionalOutputsCallback) -> int:
        """Return the position at which the callback's interval ended last, before the counter's present place."""
        counter = self.run.counter
        return self.run.accumulation_steps * callback.interval.last_end(
            counter.cur_iteration, counter.updates_per_epoch, counter.effective_batch_size
        )

    def _lay(self) -> tuple[np.ndarray[Any, Any], ...]:
        """Return where the rows of the next call's windows end."""
        return tuple(source.lay(len(rows.step)) for source, rows in zip(self._sources, self._rows, strict=True))

    def decode_position(self, step: int) -> tuple[int, int]:
        """Return the update (from 1) and the accumulation step of a step."""
        update, accumulation_step = divmod(step, self.run.accumulation_steps)
        return update + 1, accumulation_step

    def check_step(self, tracked: Tracked, steps: int) -> None:
        """Refuse what this run cannot count, as far as can be told without waiting for the device."""
        if self.run.counter is not self._counter:
            raise HookOrderError("the run's state was loaded after run.init; call run.init after load_state_dict")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= self._steps_per_call:
            raise HookOrderError(
                f"run.step got steps={steps!r}; expected 1 to {self._steps_per_call}: give run.init the most that one call"
                " makes as steps_per_call"
            )
        if isinstance(tracked.position, jax.core.Tracer):
            raise HookOrderError(
                "run.step was called while JAX traced a function, where it would be called once and never again; call run.track"
                " inside of it, return what that returns, and call run.step outside"
            )
        leading = np.shape(tracked.position)
        if self.members is None:
            check_is_one(leading, "run.step")
        else:
            self.members.check_outside(leading, "run.step")

    def refuse(self, steps: int, **told: Any) -> None:
        """Refuse arguments of `run.step`, as far as they are not None, that what a compiled function tracked cannot honour."""
        for name, value in told.items():
            if value is not None and (reason := self._reason_against(name, steps)):
                raise HookOrderError(
                    f"run.step got {name} together with what run.track returned: {reason}. Leave {name} out, or give the update"
                    " outputs themselves to run.step"
                )

    def _reason_against(self, name: str, steps: int) -> str | None:
        if name == "losses":
            return f"it made {steps} steps; track the losses too, as update outputs" if steps > 1 else None
        if name == "samples":
            if any(source.callback.interval.unit == "sample" for source in self._sources):
                return "the intervals of samples were laid out by effective_batch_size"
            is_one = self.run.accumulated + steps <= self.run.accumulation_steps
            return None if is_one else f"it made {steps} steps, of several updates"
        by = {"ends_update": "accumulation_steps", "ends_epoch": "updates_per_epoch"}[name]
        return f"its intervals were laid out by {by}"

    def step(self, tracked: Tracked, steps: int, batch: Any = None, losses: Any = None) -> Tracked:
        """Count accumulation steps, emit what they completed, and return what the next call is to carry."""
        before = self.tracked, self._fetched, self._position
        self.tracked, self._fetched = tracked, None
        self._position += steps
        is_end = self._position >= self._next_end
        if is_end:
            try:
                self.fetched()
            except Exception:
                self.tracked, self._fetched, self._position = before
                raise
        errors = []
        for _ in range(steps):
            try:
                self.run.count_step(batch, losses)
            except Exception as error:
                errors.append(error)
        if is_end:
            self._renew()
        if errors:
            raise errors[0]
        return self.tracked

    def _renew(self) -> None:
        done = np.array([source.done for source in self._sources], np.int32)
        with jax.transfer_guard("allow"), no_mesh():
            ends = self._lay() if self.members is None else self.members.spread(self._lay())
            new = renewed(self.tracked, self._blanks, ends, done, axis=int(self.members is not None))
            self.tracked = jax.tree.map(laid_like, new, self.tracked)
        self._fetched = None
        self._next_end = self._end()

    def _end(self) -> int:
        """Return the position at which the next interval ends."""
        return min((next(source.next_ends()) for source in self._sources), default=sys.maxsize)

    def fetched(self) -> Rows:
        """Return what this process has of the windows, on the host; one transfer, and none if they are there already."""
        if self._fetched is None:
            if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(self.tracked)):
                raise HookOrderError(
                    "what run.step returned last was donated, and run.step has not seen what came of it; call run.step with it"
                    " before state_dict, tracked_values or the end of the run"
                )
            fetched = rows_to_host(self.tracked, has_rows=self.members is not None)
            self._check(fetched.tree)
            self._fetched = fetched
        return self._fetched

    def _check(self, fetched: Tracked) -> None:
        """Refuse what has seen other steps than the run counted, or again those that `load_state_dict` brought."""
        position = next((each for each in fetched.position.tolist() if each != self._position), self._position)
        if position != self._position:
            raise HookOrderError(
                f"run.track was called {position - self._begun} times since run.init, and run.step counted"
                f" {self._position - self._begun} accumulation steps; call run.step once for each call of run.track, or say"
                " steps=n; after a restart, make the run with the start at which the checkpoint was saved"
            )
        if len(fetched.windows) != len(self._sources):
            raise other_state(f"it has {len(fetched.windows)} windows, and {len(self._sources)} callbacks track")
        most = max((int(steps) for window in fetched.windows for steps in np.sum(window.rows.step, -1)), default=0)
        if position - most < self._loaded:
            raise HookOrderError(
                "what run.step got holds steps that load_state_dict has brought already, and that would count twice; carry what"
                " run.init returns after it (of an optimizer: with_records(state, optimizer.init(params))), or leave it out and"
                " make the run with the start at which the checkpoint was saved"
            )
        for source, window in zip(self._sources, fetched.windows, strict=True):
            source.check(window, position)
        log = self.run.log_writer.run_log
        if position - most < self._begun and log is not None:  # it carries what an earlier start began
            log.carry_since((position - most) // self.run.accumulation_steps)
