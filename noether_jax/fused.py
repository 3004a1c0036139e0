"""Drive a run whose update outputs are reduced inside of the user's own compiled function.

A `Tracked` is what the function carries: for each callback a window of one or more rows, each the state of one interval. Which
row a step belongs to is known beforehand, from the run's counter alone, so that one call may scan over several intervals.
The host counts along, and only at an interval's end fetches the windows, all in one transfer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from noether_core.callbacks import TrackAdditionalOutputsCallback
from noether_core.errors import HookOrderError, NoetherError
from noether_core.interrupts import Mark, complete
from noether_core.run import Run
from noether_jax.flax_state import make_serializable
from noether_jax.members import Members
from noether_jax.meshes import laid_like, no_mesh
from noether_jax.output_tracker import OutputTracker
from noether_jax.recent import no_steps
from noether_jax.slots import slots_of
from noether_jax.tracker_state import other_state
from noether_jax.transfers import Rows, rows_to_host, to_device
from noether_jax.window_source import WindowSource
from noether_jax.windows import Remembering, Tracked, Window, check_is_one, renewed

Tree = TypeVar("Tree")


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
        make_serializable(Remembering, "position", "windows", "recent")
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
            WindowSource(
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
        self.tracked: Tracked = self._placed(self._tracked(run.flight_recorder.in_compiled))
        self._next_end = self._end()
        for callback, source in zip(callbacks, self._sources, strict=True):
            callback.note_example(example)
            callback.sources[1:] = [source]

    def _tracked(self, kept: int) -> Tracked:
        """Return what is carried, empty, in NumPy arrays; with room for so many of the newest steps."""
        position, windows = np.int32(self._position), tuple(map(Window, self._rows, self._lay()))
        if not kept:
            return Tracked(position, windows)
        recent = tuple(no_steps(each.tracker.ops, len(each.slots), each.tracker.fields, kept) for each in self._sources)
        return Remembering(position, windows, recent)

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
        before, begun = (self.tracked, self._fetched, self._position), self._counted()
        sources = Mark(self._sources)
        errors: list[Exception] = []
        try:
            self.tracked, self._fetched = tracked, None
            self._position += steps
            if self._position >= self._next_end:
                self.fetched()
            self._count(begun + steps, errors, batch, losses)
        except BaseException as error:
            if self._counted() == begun:
                self.tracked, self._fetched, self._position = before
                sources.go_back()
            elif not isinstance(error, Exception):
                complete(error, lambda: self._count(begun + steps, errors, batch, losses))
            raise
        if errors:
            raise errors[0]
        return self.tracked

    def _counted(self) -> int:
        return self.run.counter.update * self.run.accumulation_steps + self.run.accumulated

    def _count(self, until: int, errors: list[Exception], batch: Any, losses: Any) -> None:
        """Count so far, and renew what is carried at an interval's end. Where this was interrupted, it may be called again."""
        while self._counted() < until:
            before = self._counted()
            try:
                self.run.count_step(batch, losses)
            except Exception as error:
                errors.append(error)
                if self._counted() == before:
                    break
        if self._position >= self._next_end:
            self._renew()

    def _renew(self) -> None:
        mark = Mark([self, *self._sources])
        try:
            done = np.array([source.done for source in self._sources], np.int32)
            with jax.transfer_guard("allow"), no_mesh():
                ends = self._lay() if self.members is None else self.members.spread(self._lay())
                new = renewed(self.tracked, self._blanks, ends, done, axis=int(self.members is not None))
                self.tracked = jax.tree.map(laid_like, new, self.tracked)
            self._fetched = None
            self._next_end = self._end()
        except BaseException:
            mark.go_back()
            raise

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
                f"what run.step got holds {position - self._begun} calls of run.track since run.init, and run.step counted"
                f" {self._position - self._begun} accumulation steps; give each call of run.track what the run.step before it"
                " returned, and call run.step once for each, or say steps=n; after a restart, make the run with the start at"
                " which the checkpoint was saved"
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
