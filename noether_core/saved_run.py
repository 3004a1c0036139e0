"""Save the state of an open run, and go on from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noether_core.callbacks import CallbackBase
from noether_core.callbacks.build import tracking_callbacks
from noether_core.emit.starts import origin_after
from noether_core.errors import HookOrderError, NoetherError
from noether_core.interrupts import Mark, in_turn
from noether_core.logged_run import LoggedRun
from noether_core.reduce.state import damaged
from noether_core.run_state import Standing, load_run_state, read_standing, save_run_state
from noether_core.schedule import UNITS, UpdateCounter


class SavedRun(LoggedRun):
    """Add to a run its state; see `noether_core.run.Run`, which adds the training's steps."""

    _samples: int | None = None  # of the update under way, where `step` was told
    _times: Mapping[str, float] | None = None  # likewise
    _has_outputs = False  # has the update under way
    _state_at_end: dict[str, Any] | Exception | None = None  # what could not be told is raised when it is asked for

    @in_turn
    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on from here: plain arrays, numbers and strings.

        What was logged so far is with the operating system first, unless the disk stalls: no checkpoint is ahead of its log.
        After the run's end it is the state of before its end, which gave out what it had of the intervals under way.
        """
        if isinstance(self._state_at_end, Exception):
            raise self._state_at_end
        if self._state_at_end is not None:
            return {**self._state_at_end}
        self._end_update()  # if Ctrl-C came twice
        self.log_writer.disk.wait()
        return self._current_state()

    def _keep_state(self) -> None:
        if self._state_at_end is None:
            try:
                self._state_at_end = self._current_state()
            except Exception as error:
                self._state_at_end = error

    def _current_state(self) -> dict[str, Any]:
        log = self.log_writer.start_log
        return {
            "iteration": {unit: getattr(self.counter, unit) for unit in UNITS},
            "accumulated": self.accumulated,
            "samples": -1 if self._samples is None else self._samples,
            "times": dict(self._times or {}),
            "has_outputs": self._has_outputs,
            "start": "" if log is None or log.origin is None else log.origin.saved(),
            "callbacks": {name: callback.state_dict() for name, callback in self._named().items()},
        }

    @in_turn
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned. Call it inside the `with` block; what was logged after it is superseded.

        It logs nothing itself: not in a run that makes no more steps, nor in one that has ended.

        Raises:
            NoetherError: if the state has not this run's callbacks.
        """
        if self._state == "new":
            raise HookOrderError("load_state_dict was called on a run that is new; call it inside `with run:`")
        with self.interrupts:
            self._end_update()
            self.log_writer.flush()  # what is pending is no part of what may be taken back
            parts = [part for callback in self.callbacks for part in callback.stateful()]
            mark, begun = Mark([self, self.log_writer, *parts]), self.log_writer.start_log
            try:
                self._load(read_standing(state, self._named()))
            except BaseException as error:
                if self.log_writer.start_log is begun:  # it is not loaded whole
                    mark.go_back()
                if isinstance(error, NoetherError) or not isinstance(error, Exception):
                    raise
                raise damaged(error) from error

    def _load(self, standing: Standing) -> None:
        """Go on from a state; what the log is told comes last."""
        origin = origin_after(standing.start or "", standing.iteration, self._about_start())
        for callback, state in zip(self.callbacks, standing.callbacks, strict=True):
            callback.load_state_dict(state)
        start, before = standing.iteration, self.counter
        self.counter = UpdateCounter(start, before.end_iteration, before.updates_per_epoch, before.effective_batch_size)
        self._is_just_loaded, self._state_at_end = True, None
        self.accumulated, self._samples, self._times = standing.accumulated, standing.samples, standing.times
        self._has_outputs = standing.has_outputs
        self.log_writer.update_counter = self.counter
        if self._state == "training":
            self.log_writer.begin(origin)

    @in_turn
    def save_state(self, path: str | Path) -> None:
        """Write `state_dict()` to a file, which appears whole or not at all. All processes of a run call it, at one step.

        Raises:
            ProcessesMissingError: if some processes do not come.
            NoetherError, OSError: if it cannot be written.
        """
        with self.interrupts:
            save_run_state(path, self.state_dict(), self.exchange)

    @in_turn
    def load_state(self, path: str | Path) -> None:
        """Go on from what `save_state` wrote, in as many processes or not; see `load_state_dict`.

        As many processes go on each with its own; of another number the main process goes on with the intervals under way of
        all that saved, the others with empty ones.

        Raises:
            RunFormatError: for a file that is missing, damaged, or no state.
            NoetherError: if the state has not this run's callbacks.
            ProcessesMissingError: if some processes do not come.
        """
        self._refuse_unless_open("load_state")
        with self.interrupts:
            self.load_state_dict(load_run_state(path, self.exchange, self.is_replicated))

    def is_replicated(self, name: str, key: str) -> bool:
        """Tell whether the callback of that name in a state takes a key as one that every process has alike."""
        tracking = tracking_callbacks([callback for named, callback in self._named().items() if named == name])
        return any(each.config.is_replicated(key) for each in tracking)

    def _named(self) -> dict[str, CallbackBase]:
        return {
            f"{number}:{callback.callback_config.id or callback}": callback
            for number, callback in enumerate(self.callbacks)
        }
