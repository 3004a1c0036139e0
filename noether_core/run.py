"""Drive the callbacks' hooks, in the right order, for a plain training loop.

For each accumulation step: `track_after_accumulation_step`, the counter still showing what was completed before. After an
update's last one: the counter moves; `track_after_update_step`; `after_update`; at an epoch's end, `after_epoch`; then the same
two of the callbacks that read the log (`reads_log`), which so see what all the others logged, wherever they stand in the
list; a flush. So one entry holds all that was logged for one update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import yaml

from noether_core.callbacks import (
    BestMetricCallback,
    CallbackBase,
    MetricEarlyStopCallback,
    PeriodicCallback,
    ProgressCallback,
    ThroughputCallback,
)
from noether_core.callbacks.record_outputs import OutputRecorder
from noether_core.config.load import CallbackConfig, check_together, load_callbacks, parse_callback
from noether_core.config.loop import (
    BestMetricCallbackConfig,
    MetricEarlyStopCallbackConfig,
    ProgressCallbackConfig,
    ThroughputCallbackConfig,
)
from noether_core.emit.files import write_whole
from noether_core.emit.log_writer import LogWriter
from noether_core.emit.trackers import Tracker, make_trackers
from noether_core.errors import HookOrderError, NoetherError, ScheduleError, listing
from noether_core.reduce.backend import Backend
from noether_core.schedule import UNITS, TrainingIteration, UpdateCounter

Callbacks = str | Path | Sequence[CallbackConfig | Mapping[str, Any] | CallbackBase]


class Run:
    """Track a training run; the front-ends' classes of this name add the framework.

    Args:
        path: the run directory; made if need be.
        callbacks: a YAML file with a `callbacks:` list, or configs, or callback objects.
        updates_per_epoch: the updates of an epoch; None where there are no epochs.
        effective_batch_size: the samples of an update, over all accumulation steps.
        accumulation_steps: how many calls of `step` make an update.
        start: where training starts, if others trained before, such as `{"update": 100}`; None: at the beginning.
        end: where training ends, such as `{"epoch": 5}`; None: when the `with` block does.
        trackers: `"console"`, `"tensorboard"`, `"wandb"`, `"trackio"`, `"mlflow"`; one of these with options, such as
            `{"kind": "wandb", "project": "airfoil", "mode": "online"}`; or objects with `log` and `close`.
        record: a file to write every step's update outputs to, for `noether_core.parity`; None for no recording.

    Raises:
        NoetherError, pydantic.ValidationError: if an argument or a config cannot work.

    Attributes:
        counter: the epochs, updates and samples so far.
        accumulated: the accumulation steps of the update under way.
        callbacks: the callback objects.
        recorder: the one of them that records update outputs, or None.
        log_writer: what they log to; a loop may log values of its own here.
    """

    backend: ClassVar[Backend]
    callback_classes: ClassVar[dict[type[CallbackConfig], type[CallbackBase]]] = {
        BestMetricCallbackConfig: BestMetricCallback,
        MetricEarlyStopCallbackConfig: MetricEarlyStopCallback,
        ProgressCallbackConfig: ProgressCallback,
        ThroughputCallbackConfig: ThroughputCallback,
    }

    def __init__(
        self,
        path: str | Path,
        callbacks: Callbacks,
        *,
        updates_per_epoch: int | None = None,
        effective_batch_size: int = 1,
        accumulation_steps: int = 1,
        start: Mapping[str, int] | TrainingIteration | None = None,
        end: Mapping[str, int] | TrainingIteration | None = None,
        trackers: Sequence[Tracker | str | Mapping[str, Any]] = (),
        record: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        if isinstance(accumulation_steps, bool) or not isinstance(accumulation_steps, int) or accumulation_steps < 1:
            raise ScheduleError(f"Run got accumulation_steps={accumulation_steps!r}; expected an int of at least 1")
        self.accumulation_steps = accumulation_steps
        self.counter = UpdateCounter(
            _iteration(start, "start"), _iteration(end, "end"), updates_per_epoch, effective_batch_size
        )
        given = _configs(callbacks)
        check_together([each for each in given if isinstance(each, CallbackConfig)])
        self.log_writer = LogWriter(self.path, update_counter=self.counter, trackers=make_trackers(trackers, self.path))
        self.callbacks = [self._callback(each) for each in given]
        self.recorder = None
        if record is not None:
            self.recorder = OutputRecorder(record, backend=self.backend, log_writer=self.log_writer)
            self.callbacks.append(self.recorder)
        for callback in self.callbacks:
            if (
                isinstance(callback, PeriodicCallback)
                and callback.interval.unit == "epoch"
                and updates_per_epoch is None
            ):
                raise ScheduleError(
                    f"{callback} counts epochs, but this run has none; give updates_per_epoch, or count updates or samples"
                )
        self.accumulated = 0
        self._times: dict[str, float] | None = None  # of the update under way
        self._state = "new"

    def _callback(self, given: CallbackConfig | CallbackBase) -> CallbackBase:
        if isinstance(given, CallbackBase):
            return given
        chosen = next(
            (self.callback_classes[kind] for kind in type(given).__mro__ if kind in self.callback_classes), None
        )
        if chosen is None:
            raise NoetherError(
                f"Run got a {type(given).__name__}, for which it knows no callback; give the callback object itself, or one of"
                f" {listing(sorted(kind.__name__ for kind in self.callback_classes))}"
            )
        return chosen(given, log_writer=self.log_writer, output_path=self.path)

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Begin training: write `config.yaml` and call `before_training`. Entering the `with` block does this."""
        if self._state != "new":
            raise HookOrderError(f"this run is {self._state}; a Run is used once: make another one")
        write_whole(self.path / "config.yaml", self._config_yaml())
        self._state = "training"
        for callback in self.callbacks:
            callback.before_training(update_counter=self.counter)

    def _config_yaml(self) -> bytes:
        end = self.counter.end_iteration
        document = {
            "updates_per_epoch": self.counter.updates_per_epoch,
            "effective_batch_size": self.counter.effective_batch_size,
            "accumulation_steps": self.accumulation_steps,
            "end": None if end is None else str(end),
            "callbacks": [callback.callback_config.model_dump(exclude_unset=True) for callback in self.callbacks],
        }
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode("utf-8")

    def step(
        self,
        update_outputs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        *,
        batch: Any = None,
        losses: Any = None,
        ends_update: bool | None = None,
        ends_epoch: bool | None = None,
        times: Mapping[str, float] | None = None,
    ) -> None:
        """Count and track one accumulation step, and at an interval's end log and save.

        Args:
            update_outputs: a dict from names to scalars or arrays. A list of dicts is that many accumulation steps: a whole
                update's, where your function does the accumulation itself, or many updates'.
            batch: handed to the hooks.
            losses: handed to the hooks.
            ends_update: whether this step ends an update, where another trainer decides that; None: as
                `accumulation_steps` says.
            ends_epoch: whether an update that ends now ends its epoch too; None: as `updates_per_epoch` says.
            times: seconds by name, such as `{"data": 0.1, "update": 0.4}`; those of an update's accumulation steps are added up
                and handed to the hooks. For calls of at most one update.

        Raises:
            NoetherError: see `TrackAdditionalOutputsCallback`; the step that failed is not counted.
        """
        self._refuse_unless_training()
        many = update_outputs if isinstance(update_outputs, list | tuple) else [update_outputs]
        if times is not None:
            self._add_times(times, self.accumulated + len(many))
        for outputs in many:
            self._accumulation_step(outputs, batch, losses)
            self._end_update(ends_update, ends_epoch)

    def count_step(self) -> None:
        """Count one accumulation step whose update outputs, if any, were reduced elsewhere; see `step`."""
        self._refuse_unless_training()
        self._accumulation_step(None, None, None)
        self._end_update(None, None)

    def _end_update(self, ends_update: bool | None, ends_epoch: bool | None) -> None:
        if (self.accumulated >= self.accumulation_steps) if ends_update is None else ends_update:
            self.accumulated = 0
            self._update(ends_epoch)

    def _refuse_unless_training(self) -> None:
        if self._state != "training":
            advice = "write `with run:` around the loop" if self._state == "new" else "make a new Run"
            raise HookOrderError(f"run.step was called on a run that is {self._state}; {advice}")
        if self._stopped_by is not None:
            raise HookOrderError(
                f"run.step was called at {self.counter.cur_iteration}, after {self._stopped_by} ended the training;"
                " leave the loop when run.is_finished"
            )

    def _add_times(self, times: Mapping[str, float], steps: int) -> None:
        if steps > self.accumulation_steps:
            raise HookOrderError(
                f"run.step got times together with {steps} accumulation steps of an update that has {self.accumulation_steps};"
                " time one update a call, or leave times out"
            )
        before = self._times or {}
        self._times = {**before, **{name: before.get(name, 0.0) + seconds for name, seconds in times.items()}}

    def _accumulation_step(self, outputs: Any, batch: Any, losses: Any) -> None:
        if self.counter.is_finished:
            raise HookOrderError(
                f"run.step was called at {self.counter.cur_iteration}, where training ends (end={self.counter.end_iteration});"
                " leave the loop when run.is_finished, or give a later end"
            )
        for at, callback in enumerate(self.callbacks):
            try:
                callback.track_after_accumulation_step(
                    update_counter=self.counter,
                    batch=batch,
                    losses=losses,
                    update_outputs=outputs,
                    accumulation_steps=max(self.accumulation_steps, self.accumulated + 1),
                    accumulation_step=self.accumulated,
                )
            except Exception:
                for earlier in self.callbacks[:at]:
                    earlier.undo_accumulation_step()
                raise
        self.accumulated += 1

    def _update(self, ends_epoch: bool | None) -> None:
        counter = self.counter
        counter.add_samples(counter.effective_batch_size)
        counter.next_update()
        ends_epoch = counter.is_full_epoch if ends_epoch is None else ends_epoch
        if ends_epoch:
            counter.next_epoch()
        times, self._times = self._times, None
        for callback in self.callbacks:
            callback.track_after_update_step(update_counter=counter, times=times)
        errors = []
        for reads_log in (False, True):
            errors += self._each(reads_log, lambda callback: callback.after_update(update_counter=counter))
            if ends_epoch:
                errors += self._each(reads_log, lambda callback: callback.after_epoch(update_counter=counter))
        self.log_writer.flush()
        if errors:
            raise errors[0]

    def _each(self, reads_log: bool, hook: Callable[[CallbackBase], None]) -> list[Exception]:
        """Call a periodic hook of the callbacks that read the log or don't, whatever the others do; return what was raised."""
        errors = []
        for callback in self.callbacks:
            if callback.reads_log is not reads_log:
                continue
            try:
                hook(callback)
            except Exception as error:
                errors.append(error)
        return errors

    @property
    def is_finished(self) -> bool:
        """Tell whether the run's end is reached, or a callback wants training to end."""
        return self.counter.is_finished or self._stopped_by is not None

    @property
    def _stopped_by(self) -> CallbackBase | None:
        return next((callback for callback in self.callbacks if callback.should_stop), None)

    def finish(self) -> None:
        """End training: emit the interval under way, flush and close. Leaving the `with` block does this."""
        if self._state != "training":
            return
        self._state = "finished"
        errors = []
        for reads_log in (False, True):
            errors += self._each(reads_log, lambda callback: callback.after_training(update_counter=self.counter))
        self.log_writer.close()
        if errors:
            raise errors[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        try:
            self.finish()
        except Exception as second:  # the loop's own error is the one to see
            error.add_note(f"while ending the run, this was raised too: {second!r}")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on from here: plain arrays, numbers and strings."""
        return {
            "iteration": {unit: getattr(self.counter, unit) for unit in UNITS},
            "accumulated": self.accumulated,
            "callbacks": {name: callback.state_dict() for name, callback in self._named().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned. Call it inside the `with` block, before the first step.

        Raises:
            NoetherError: if the state has not this run's callbacks.
        """
        if self._state != "training":
            raise HookOrderError(
                f"load_state_dict was called on a run that is {self._state}; call it inside `with run:`"
            )
        named = self._named()
        if set(state.get("callbacks", {})) != set(named):
            raise NoetherError(
                f"the state has the callbacks {sorted(state.get('callbacks', {}))}, this run {sorted(named)};"
                " load it into a run of the same config"
            )
        for name, callback in named.items():
            callback.load_state_dict(state["callbacks"][name])
        end = self.counter.end_iteration
        self.counter = UpdateCounter(
            TrainingIteration(**state["iteration"]),
            end,
            self.counter.updates_per_epoch,
            self.counter.effective_batch_size,
        )
        self.log_writer.update_counter = self.counter
        self.accumulated = int(state["accumulated"])

    def _named(self) -> dict[str, CallbackBase]:
        return {
            f"{number}:{callback.callback_config.id or callback}": callback
            for number, callback in enumerate(self.callbacks)
        }


def _iteration(given: Mapping[str, int] | TrainingIteration | None, name: str) -> TrainingIteration | None:
    if given is None or isinstance(given, TrainingIteration):
        return given
    if not isinstance(given, Mapping) or len(given) != 1 or not set(given) <= set(UNITS):
        raise ScheduleError(
            f"Run got {name}={given!r}; expected one of {{'epoch': n}}, {{'update': n}}, {{'sample': n}}, or None"
        )
    return TrainingIteration(**given)


def _configs(callbacks: Callbacks) -> list[CallbackConfig | CallbackBase]:
    if isinstance(callbacks, str | Path):
        return list(load_callbacks(callbacks))
    if not isinstance(callbacks, Sequence):
        raise NoetherError(
            f"Run got callbacks={callbacks!r:.80}; expected a YAML file, or a list of configs or callback objects"
        )
    return [
        each if isinstance(each, CallbackBase) else parse_callback(each, f"callbacks[{at}]")
        for at, each in enumerate(callbacks)
    ]
