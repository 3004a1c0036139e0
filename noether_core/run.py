"""Drive the callbacks' hooks, in the order that `noether_core.callbacks.hooks` has, for a plain training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from noether_core.callbacks import CallbackBase, hooks
from noether_core.callbacks.build import tracking_callbacks
from noether_core.emit.starts import origin_after
from noether_core.emit.trackers.feed import CLOSING_TIME
from noether_core.errors import HookOrderError, NoetherError, ScheduleError
from noether_core.open_run import OpenRun
from noether_core.run_state import load_run_state, save_run_state
from noether_core.schedule import UNITS, TrainingIteration, UpdateCounter
from noether_core.select import unstack


class Run(OpenRun):
    """Track a training run; the front-ends' classes of this name add the framework.

    Args:
        path: the run directory; made if need be.
        callbacks: a YAML file with a `callbacks:` list, or configs, or callback objects.
        updates_per_epoch: the updates of an epoch; None where there are no epochs.
        effective_batch_size: the samples of an update, over all accumulation steps; `step` may say of one that it had others.
            None: 1, and a callback that counts samples is refused.
        accumulation_steps: how many calls of `step` make an update.
        start: where training starts, if others trained before, such as `{"update": 100}`; None: at the beginning.
        end: where training ends, such as `{"epoch": 5}`; None: when the `with` block does.
        trackers: `"console"`, `"tensorboard"`, `"wandb"`, `"trackio"`, `"mlflow"`; one of these with options, such as
            `{"kind": "wandb", "project": "airfoil", "mode": "online"}`; or objects with `log` and `close`.
        record: a file to write every step's update outputs to, for `noether_core.parity`; None for no recording. Of several
            processes each has its own: `{record}.process1` and so on.
        processes: what talks to the other processes, whose values are pooled with this one's at each interval's end; None: all
            that the framework was told of; 1: none, what this process has is logged alone.
        time_limit: seconds that a process waits for the others.
        durability: `interval`: what is logged and saved outlives the process a second later, and the machine six seconds
            later. `flush`: it is on the disk when `step`, `log` and `evaluate` return. If the disk does not take it, training
            goes on, with a warning: `noether_core.emit.disk`.

    Raises:
        NoetherError, pydantic.ValidationError: if an argument or a config cannot work.

    Attributes:
        counter: the epochs, updates and samples so far.
        accumulated: the accumulation steps of the update under way.
        callbacks: the callback objects.
        recorder: the one of them that records update outputs, or None.
        log_writer: what they log to; values of your own go to `log`.
    """

    _samples: int | None = None  # of the update under way, where `step` was told
    _times: Mapping[str, float] | None = None  # likewise
    _has_outputs = False  # has the update under way
    _state_at_end: dict[str, Any] | Exception | None = None  # what could not be told is raised when it is asked for

    def step(
        self,
        update_outputs: Any = None,
        *,
        steps: int | None = None,
        batch: Any = None,
        losses: Any = None,
        samples: int | None = None,
        ends_update: bool | None = None,
        ends_epoch: bool | None = None,
        times: Mapping[str, float] | None = None,
    ) -> None:
        """Count and track one accumulation step, and at an interval's end log and save; in `evaluate`, track it for that alone.

        Args:
            update_outputs: a dict from names to scalars or arrays, or another record of them: a NamedTuple, a dataclass. A list
                of these is that many accumulation steps, of one update or of many.
            steps: how many there are in one record of arrays with a leading axis of steps, as `jax.lax.scan` returns.
            batch: handed to the hooks.
            losses: handed to the hooks.
            samples: how many this step had; None: its share of `effective_batch_size`, unless another step of the update says.
            ends_update: whether this step ends an update, where another trainer decides that; None: as
                `accumulation_steps` says.
            ends_epoch: whether an update that ends now ends its epoch too; None: as `updates_per_epoch` says.
            times: seconds by name, such as `{"data": 0.1, "update": 0.4}`; those of an update's accumulation steps are added up
                and handed to the hooks. For calls of at most one update.

        Raises:
            NoetherError: see `TrackAdditionalOutputsCallback`; the step that failed is not counted.
        """
        many = _each_step(update_outputs) if steps is None else unstack(update_outputs, steps)
        if self._evaluation is not None:
            self._evaluation.add(many, losses)
            return
        self._refuse_unless_training()
        is_plain = samples is None and times is None
        with nullcontext() if is_plain else self._uncounted_if_refused(samples, times, len(many)):
            for outputs in many:
                self._accumulation_step(outputs, batch, losses, ends_update, ends_epoch)

    @contextmanager
    def _uncounted_if_refused(
        self, samples: int | None, times: Mapping[str, float] | None, steps: int
    ) -> Iterator[None]:
        """Count samples and times, and take them back if the call raises before any of its steps is counted."""
        before = self.counter.update, self.accumulated
        kept = self._samples, self._times
        try:
            self._add_samples(samples)
            self._add_times(times, self.accumulated + steps)
            yield
        except BaseException:
            if (self.counter.update, self.accumulated) == before:
                self._samples, self._times = kept
            raise

    def count_step(self, batch: Any = None, losses: Any = None) -> None:
        """Count one accumulation step whose update outputs, if any, were reduced elsewhere; see `step`."""
        self._refuse_unless_training()
        self._has_outputs = True
        self._accumulation_step(None, batch, losses, None, None)

    def _refuse_unless_training(self) -> None:
        self._refuse_unless_open("step")
        for callback in self.callbacks:
            if callback.should_stop and not self._is_driven:
                raise HookOrderError(
                    f"run.step was called at {self.counter.cur_iteration}, after {callback} ended the training;"
                    " leave the loop when run.is_finished"
                )

    def _add_times(self, times: Mapping[str, float] | None, steps: int) -> None:
        if times is None:
            return
        if steps > self.accumulation_steps:
            raise HookOrderError(
                f"run.step got times together with {steps} accumulation steps of an update that has {self.accumulation_steps};"
                " time one update a call, or leave times out"
            )
        before = self._times or {}
        self._times = {**before, **{name: before.get(name, 0.0) + seconds for name, seconds in times.items()}}

    def _add_samples(self, samples: int | None) -> None:
        if samples is None:
            return
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise ScheduleError(f"run.step got samples={samples!r}; expected an int of at least 0")
        self._samples = samples + (self._samples or 0)

    def _accumulation_step(
        self, outputs: Any, batch: Any, losses: Any, ends_update: bool | None, ends_epoch: bool | None
    ) -> None:
        step, steps, counter = self.accumulated, self.accumulation_steps, self.counter
        ends_update = step + 1 >= steps if ends_update is None else ends_update
        if counter.is_finished and not self._is_driven:
            raise HookOrderError(
                f"run.step was called at {counter.cur_iteration}, where training ends (end={counter.end_iteration});"
                " leave the loop when run.is_finished, or give a later end"
            )
        has_outputs = self._has_outputs or outputs is not None
        if ends_update and not has_outputs and not self._is_driven:  # a trainer may skip a batch
            for callback in self.callbacks:
                callback.track_no_outputs()
        arguments = {
            "update_counter": counter,
            "batch": batch,
            "losses": losses,
            "update_outputs": outputs,
            "accumulation_steps": steps if step < steps else step + 1,  # an outer trainer may make more
            "accumulation_step": step,
        }
        hooks.accumulation_step(self.callbacks, arguments)
        self._is_just_loaded = False
        self.accumulated = step + 1
        self._has_outputs = has_outputs
        if ends_update:
            self._end_update(ends_epoch)

    def _end_update(self, ends_epoch: bool | None) -> None:
        counter = self.counter
        counter.add_samples(self._share(self.accumulated) if self._samples is None else self._samples)
        self.accumulated, self._samples, self._has_outputs = 0, None, False
        counter.next_update()
        ends_epoch = counter.is_full_epoch if ends_epoch is None else ends_epoch
        if ends_epoch:
            counter.next_epoch()
        times, self._times = self._times, None
        for callback in self.callbacks:
            callback.track_after_update_step(update_counter=counter, times=times)
        self._call("after_update", "after_epoch") if ends_epoch else self._call("after_update")

    def _share(self, steps: int) -> int:
        """Return how many of `effective_batch_size` samples these accumulation steps had, if all had the same number."""
        whole, rest = divmod(self.counter.effective_batch_size, self.accumulation_steps)
        return self.counter.effective_batch_size if rest else whole * steps

    def end_epoch(self) -> None:
        """Say that the last update ended an epoch, where that is not known before the update; see also `step`'s `ends_epoch`.

        What epochs' ends log goes into that update's entry.
        """
        self._refuse_unless_open("end_epoch")
        self.counter.next_epoch()
        try:
            self._call("after_epoch")
        finally:
            self.log_writer.restate()

    # ------------------------------------------------------------------ the end, and checkpoints

    def _finish(self, *, failed: bool, time_limit: float = CLOSING_TIME) -> None:
        if self._state == "training":
            try:
                self._state_at_end = self._current_state()
            except Exception as error:
                self._state_at_end = error
        super()._finish(failed=failed, time_limit=time_limit)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on from here: plain arrays, numbers and strings.

        What was logged so far is with the operating system first, unless the disk stalls: no checkpoint is ahead of its log.
        After the run's end it is the state of before its end, which gave out what it had of the intervals under way.
        """
        if isinstance(self._state_at_end, Exception):
            raise self._state_at_end
        if self._state_at_end is not None:
            return {**self._state_at_end}
        self.log_writer.disk.wait()
        return self._current_state()

    def _current_state(self) -> dict[str, Any]:
        log = self.log_writer.run_log
        return {
            "iteration": {unit: getattr(self.counter, unit) for unit in UNITS},
            "accumulated": self.accumulated,
            "samples": -1 if self._samples is None else self._samples,
            "start": "" if log is None or log.origin is None else log.origin.saved(),
            "callbacks": {name: callback.state_dict() for name, callback in self._named().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned. Call it inside the `with` block; what was logged after it is superseded.

        It logs nothing itself: not in a run that makes no more steps, nor in one that has ended.

        Raises:
            NoetherError: if the state has not this run's callbacks.
        """
        if self._state == "new":
            raise HookOrderError("load_state_dict was called on a run that is new; call it inside `with run:`")
        start = TrainingIteration(**{unit: int(number) for unit, number in state["iteration"].items()})
        origin = origin_after(str(state.get("start", "")), start, self._config.about())
        named = self._named()
        if set(state.get("callbacks", {})) != set(named):
            raise NoetherError(
                f"the state has the callbacks {sorted(state.get('callbacks', {}))}, this run {sorted(named)};"
                " load it into a run of the same config"
            )
        for name, callback in named.items():
            callback.load_state_dict(state["callbacks"][name])
        before = self.counter
        self.counter = UpdateCounter(start, before.end_iteration, before.updates_per_epoch, before.effective_batch_size)
        self._is_just_loaded = True
        self._state_at_end = None
        if self._state == "training":
            self.log_writer.begin(origin)
        self.log_writer.update_counter = self.counter
        self.accumulated = int(state["accumulated"])
        samples = int(state.get("samples", -1))
        self._samples = None if samples < 0 else samples

    def save_state(self, path: str | Path) -> None:
        """Write `state_dict()` to a file, which appears whole or not at all. All processes of a run call it, at one step.

        Raises:
            ProcessesMissingError: if some processes do not come.
            NoetherError, OSError: if it cannot be written.
        """
        save_run_state(path, self.state_dict(), self.exchange)

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


def _each_step(update_outputs: Any) -> Sequence[Any]:
    return update_outputs if isinstance(update_outputs, list) else (update_outputs,)
