"""Drive the callbacks' hooks, in the order that `noether_core.callbacks.hooks` has, for a plain training loop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from noether_core.callbacks import CallbackBase, hooks
from noether_core.callbacks.build import (
    CORE_CLASSES,
    CallbackClasses,
    Callbacks,
    build_callback,
    read_callbacks,
    refuse_units,
)
from noether_core.callbacks.evaluation import Evaluation
from noether_core.callbacks.record_outputs import OutputRecorder
from noether_core.emit.files import write_whole
from noether_core.emit.log_writer import LogWriter
from noether_core.emit.starts import Origin
from noether_core.emit.trackers import Tracker, make_trackers
from noether_core.errors import HookOrderError, NoetherError, ScheduleError
from noether_core.reduce.backend import Backend
from noether_core.schedule import UNITS, TrainingIteration, UpdateCounter, iteration_of, require_positive
from noether_core.select import flatten


class Run:
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
    callback_classes: ClassVar[CallbackClasses] = CORE_CLASSES
    _is_driven: ClassVar[bool] = (
        False  # by a trainer, which says when an epoch ends, how many samples there were, and goes on as it likes
    )

    def __init__(
        self,
        path: str | Path,
        callbacks: Callbacks,
        *,
        updates_per_epoch: int | None = None,
        effective_batch_size: int | None = None,
        accumulation_steps: int = 1,
        start: Mapping[str, int] | TrainingIteration | None = None,
        end: Mapping[str, int] | TrainingIteration | None = None,
        trackers: Sequence[Tracker | str | Mapping[str, Any]] = (),
        record: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        require_positive("Run", accumulation_steps=accumulation_steps)
        self.accumulation_steps = accumulation_steps
        self.counter = UpdateCounter(
            iteration_of(start, "start"), iteration_of(end, "end"), updates_per_epoch, effective_batch_size or 1
        )
        self._start = self.counter.cur_iteration
        given = read_callbacks(callbacks)
        self.log_writer = LogWriter(self.path, update_counter=self.counter, trackers=make_trackers(trackers, self.path))
        self.callbacks = [build_callback(each, self.callback_classes, self.log_writer, self.path) for each in given]
        self.recorder = None
        if record is not None:
            self.recorder = OutputRecorder(record, backend=self.backend, log_writer=self.log_writer)
            self.callbacks.append(self.recorder)
        if not self._is_driven:
            refuse_units(self.callbacks, epochs=updates_per_epoch is not None, samples=effective_batch_size is not None)
        self.accumulated = 0
        self._samples: int | None = None  # of the update under way, where `step` was told
        self._evaluation: Evaluation | None = None
        self._is_just_loaded = False
        self._times: dict[str, float] | None = None  # of the update under way
        self._state = "new"

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Begin training: write `config.yaml` and call `before_training`. Entering the `with` block does this."""
        if self._state != "new":
            raise HookOrderError(f"this run is {self._state}; a Run is used once: make another one")
        write_whole(self.path / "config.yaml", self._config_yaml())
        self._state = "training"
        self.log_writer.begin(self._origin(self._start if self._start.update else None, None))
        for callback in self.callbacks:
            callback.before_training(update_counter=self.counter)

    def _origin(self, iteration: TrainingIteration | None, parent: str | None) -> Origin:
        config = hashlib.sha256(self._config_yaml()).hexdigest()
        return Origin(iteration, parent, {"config": config, "processes": self.backend.processes()[1]})

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
        samples: int | None = None,
        ends_update: bool | None = None,
        ends_epoch: bool | None = None,
        times: Mapping[str, float] | None = None,
    ) -> None:
        """Count and track one accumulation step, and at an interval's end log and save; in `evaluate`, track it for that alone.

        Args:
            update_outputs: a dict from names to scalars or arrays. A list of dicts is that many accumulation steps: a whole
                update's, where your function does the accumulation itself, or many updates'.
            batch: handed to the hooks.
            losses: handed to the hooks.
            samples: how many samples this step had; None: its share of `effective_batch_size`, unless another step of the
                update says.
            ends_update: whether this step ends an update, where another trainer decides that; None: as
                `accumulation_steps` says.
            ends_epoch: whether an update that ends now ends its epoch too; None: as `updates_per_epoch` says.
            times: seconds by name, such as `{"data": 0.1, "update": 0.4}`; those of an update's accumulation steps are added up
                and handed to the hooks. For calls of at most one update.

        Raises:
            NoetherError: see `TrackAdditionalOutputsCallback`; the step that failed is not counted.
        """
        many = update_outputs if isinstance(update_outputs, (list, tuple)) else (update_outputs,)
        if self._evaluation is not None:
            for outputs in many:
                self._evaluation.step(outputs, losses)
            return
        self._refuse_unless_training()
        if samples is not None:
            self._add_samples(samples)
        if times is not None:
            self._add_times(times, self.accumulated + len(many))
        for outputs in many:
            self._accumulation_step(outputs, batch, losses, ends_update, ends_epoch)

    def count_step(self) -> None:
        """Count one accumulation step whose update outputs, if any, were reduced elsewhere; see `step`."""
        self._refuse_unless_training()
        self._accumulation_step(None, None, None, None, None)

    def _refuse_unless_open(self, method: str) -> None:
        if self._state != "training":
            advice = "write `with run:` around the loop" if self._state == "new" else "make a new Run"
            raise HookOrderError(f"run.{method} was called on a run that is {self._state}; {advice}")

    def _refuse_unless_training(self) -> None:
        self._refuse_unless_open("step")
        for callback in self.callbacks:
            if callback.should_stop and not self._is_driven:
                raise HookOrderError(
                    f"run.step was called at {self.counter.cur_iteration}, after {callback} ended the training;"
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

    def _add_samples(self, samples: int) -> None:
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise ScheduleError(f"run.step got samples={samples!r}; expected an int of at least 0")
        self._samples = samples + (self._samples or 0)

    def _accumulation_step(
        self, outputs: Any, batch: Any, losses: Any, ends_update: bool | None, ends_epoch: bool | None
    ) -> None:
        step, steps, counter = self.accumulated, self.accumulation_steps, self.counter
        if counter.is_finished and not self._is_driven:
            raise HookOrderError(
                f"run.step was called at {counter.cur_iteration}, where training ends (end={counter.end_iteration});"
                " leave the loop when run.is_finished, or give a later end"
            )
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
        if (step + 1 >= steps) if ends_update is None else ends_update:
            self._end_update(ends_epoch)

    def _end_update(self, ends_epoch: bool | None) -> None:
        counter = self.counter
        self.accumulated = 0
        counter.add_samples(counter.effective_batch_size if self._samples is None else self._samples)
        self._samples = None
        counter.next_update()
        ends_epoch = counter.is_full_epoch if ends_epoch is None else ends_epoch
        if ends_epoch:
            counter.next_epoch()
        times, self._times = self._times, None
        for callback in self.callbacks:
            callback.track_after_update_step(update_counter=counter, times=times)
        self._call("after_update", "after_epoch") if ends_epoch else self._call("after_update")

    def _call(self, *due: str) -> None:
        """Call periodic hooks of all callbacks, flush what they log, and raise the first error."""
        errors = hooks.periodic(self.callbacks, due, self.counter)
        self.log_writer.flush()
        if errors:
            raise errors[0]

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

    # ------------------------------------------------------------------ values of one's own

    def log(self, values: Mapping[str, Any]) -> None:
        """Log values of your own at the current iteration, into the entry that its update has.

        In `evaluate` their keys get its prefix. They are in the file when this returns.

        Args:
            values: a dict from names to numbers (single-element arrays too), strings, or lists of these; nested dicts are
                flattened with `/`.

        Raises:
            HookOrderError: before the run has started, or after it has ended.
            DuplicateKeyError: if a key was logged for this update already; all the others are logged.
            NoetherError: for a value that cannot be logged, likewise.
        """
        self._refuse_unless_open("log")
        prefix = "" if self._evaluation is None else f"{self._evaluation.prefix}/"
        errors = self.log_writer.bind("run.log").add_values(
            {prefix + key: value for key, value in flatten(values).items()}
        )
        if self._evaluation is None:
            errors += hooks.periodic(self.callbacks, ("after_log",), self.counter)
        self.log_writer.flush()
        if errors:
            raise errors[0]

    @contextmanager
    def evaluate(self, prefix: str = "eval") -> Iterator[None]:
        """Evaluate: what is tracked by `step` and logged by `log` in this context goes under `{prefix}/`.

        Its steps are no training steps: nothing counts them, and the intervals under way stay as they are. At its end, what the
        tracking callbacks name of its outputs is logged, reduced over all of them, and every callback's `at_eval` is called. If
        it raises, what it tracked is dropped.

        Args:
            prefix: such as `eval` or `test`.

        Raises:
            HookOrderError: outside of training, or within another evaluation.
            NoetherError: for a prefix that cannot be one.
        """
        self._refuse_unless_open("evaluate")
        if self._evaluation is not None:
            raise HookOrderError(
                "run.evaluate was called within run.evaluate; end the first evaluation before the next"
            )
        self._evaluation = Evaluation(self.callbacks, prefix)
        try:
            yield
            self._evaluation.log(self.log_writer, self.counter)
        finally:
            self._evaluation = None
            self.log_writer.flush()
        self._call("at_eval")

    # ------------------------------------------------------------------ the end, and checkpoints

    @property
    def is_finished(self) -> bool:
        """Tell whether the run's end is reached, or a callback wants training to end."""
        return self.counter.is_finished or any(callback.should_stop for callback in self.callbacks)

    def finish(self) -> None:
        """End training: emit the interval under way, flush and close. Leaving the `with` block does this."""
        if self._state != "training":
            return
        self._state = "finished"
        due = () if self._is_just_loaded else ("after_training",)  # whoever saved the interval under way has logged it
        errors = hooks.periodic(self.callbacks, due, self.counter)
        self.log_writer.close()
        if errors:
            raise errors[0]

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
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
            "samples": -1 if self._samples is None else self._samples,
            "start": self.log_writer.start_id or "",
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
        named = self._named()
        if set(state.get("callbacks", {})) != set(named):
            raise NoetherError(
                f"the state has the callbacks {sorted(state.get('callbacks', {}))}, this run {sorted(named)};"
                " load it into a run of the same config"
            )
        for name, callback in named.items():
            callback.load_state_dict(state["callbacks"][name])
        start, before = TrainingIteration(**state["iteration"]), self.counter
        self.counter = UpdateCounter(start, before.end_iteration, before.updates_per_epoch, before.effective_batch_size)
        self._is_just_loaded = True
        if self._state == "training":
            self.log_writer.begin(self._origin(start if start.update else None, state.get("start") or None))
        self.log_writer.update_counter = self.counter
        self.accumulated = int(state["accumulated"])
        samples = int(state.get("samples", -1))
        self._samples = None if samples < 0 else samples

    def _named(self) -> dict[str, CallbackBase]:
        return {
            f"{number}:{callback.callback_config.id or callback}": callback
            for number, callback in enumerate(self.callbacks)
        }
