"""Drive the callbacks' hooks, in the order that `noether_core.callbacks.hooks` has, for a plain training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from noether_core.callbacks import CallbackBase, hooks
from noether_core.errors import HookOrderError, ScheduleError
from noether_core.interrupts import complete, in_turn
from noether_core.saved_run import SavedRun
from noether_core.select import unstack


class Run(SavedRun):
    """Track a training run; the front-ends' classes of this name add the framework.

    Args:
        path: the run directory; made if need be.
        keys: the update outputs of which the mean is tracked: a name, or a list of names, each a whole key. None, without
            `callbacks`: every output that is a single number, also one that comes later; of arrays a line says that they are
            left alone. A list may hold configs and callback objects too, and a `Path`, or a string that ends in `.yaml` or
            `.yml`, is a file, both as for `callbacks`.
        callbacks: a YAML file with a `callbacks:` list, or a list of configs and callback objects, beside the `keys`.
        every: the updates of an interval of the `keys`; None: 50.
        log_as: a template of the names that the `keys` are logged under, such as `train/{key}`, with the fields `{key}`,
            `{reduction}` and `{interval}`; None: `{key}/{interval}`.
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
        flight_recorder: how many of the newest values of each tracked key the run keeps, on its device, for a capsule that it
            writes to `capsules/` when it fails: at values that are not finite where a config says `nonfinite: raise`, and at an
            exception. None: 32 of what `step` gets, which costs nothing; a number: also of what a compiled JAX function tracks,
            in arrays that it carries; 0: no capsule is written.

    Raises:
        NoetherError, pydantic.ValidationError: if an argument or a config cannot work.

    Attributes:
        counter: the epochs, updates and samples so far. A step that Ctrl-C interrupts is counted, tracked and logged wholly
            or not at all: this and `accumulated` tell.
        accumulated: the accumulation steps of the update under way.
        callbacks: the callback objects.
        recorder: the one of them that records update outputs, or None.
        log_writer: what they log to; values of your own go to `log`.
        flight_recorder: writes capsules; `noether_core.flight_recorder`.
    """

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
            update_outputs: a dict from names to scalars or arrays, or a NamedTuple or a dataclass; a list is that many steps.
            steps: how many there are in one record of arrays with a leading axis of steps, as `jax.lax.scan` returns.
            batch: handed to the hooks.
            losses: handed to the hooks.
            samples: how many this step had; None: its share of `effective_batch_size`, unless another step of the update says.
            ends_update: whether it ends an update, where another trainer decides that; None: as `accumulation_steps` says.
            ends_epoch: whether an update that ends now ends its epoch too; None: as `updates_per_epoch` says.
            times: seconds by name, such as `{"data": 0.1}`, for calls of at most one update, of which they are added up.

        Raises:
            NoetherError: see `TrackAdditionalOutputsCallback`; the step that failed is not counted.
        """
        many = _each_step(update_outputs) if steps is None else unstack(update_outputs, steps)
        with self.interrupts.lock:  # as `in_turn`, only faster
            if self._evaluation is not None:
                return self._track_in_evaluation(many, losses)
            self._refuse_unless_training()
            is_told = samples is not None or times is not None
            try:
                self.interrupts.depth = 1  # as `with self.interrupts`, only faster
                with self._unless_refused(samples, times, len(many)) if is_told else nullcontext():
                    for outputs in many:
                        self._accumulation_step(outputs, batch, losses, ends_update, ends_epoch)
            finally:
                self.interrupts.end()

    def _track_in_evaluation(self, many: Sequence[Any], losses: Any) -> None:
        evaluation = self._own_evaluation("step")
        assert evaluation is not None
        with self.interrupts:
            evaluation.add(many, losses)

    @contextmanager
    def _unless_refused(self, samples: int | None, times: Mapping[str, float] | None, steps: int) -> Iterator[None]:
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

    @in_turn
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
        done: list[CallbackBase] = []
        update, kept = counter.update, (self._samples, self._times, self._has_outputs)
        try:
            hooks.accumulation_step(self.callbacks, arguments, done)
            self._is_just_loaded = False
            if ends_update:
                self._count_update(ends_epoch)
                self._end_update()
            else:
                self._has_outputs = has_outputs
                self.accumulated = step + 1
        except BaseException as error:
            if (counter.update, self.accumulated) == (update, step):  # it is not counted
                hooks.undo_accumulation_step(self.callbacks, done, update, step)
                (self._samples, self._times, self._has_outputs), self._unended = kept, None
            elif self._unended is not None:
                complete(error, self._end_update)
            raise

    def _count_update(self, ends_epoch: bool | None) -> None:
        """Count the update whose last accumulation step is tracked, by one assignment in the end."""
        counter = self.counter
        samples = self._share(self.accumulated + 1) if self._samples is None else self._samples
        update, sample = counter.update + 1, counter.sample + samples
        if ends_epoch is None:
            ends_epoch = counter.updates_per_epoch is not None and update % counter.updates_per_epoch == 0
        epoch = counter.epoch + bool(ends_epoch)
        hooks_due = ("after_update", "after_epoch") if ends_epoch else ("after_update",)
        self._unended = hooks_due, self._times
        self._samples, self._times, self._has_outputs = None, None, False
        counter.epoch, counter.update, counter.sample, self.accumulated = epoch, update, sample, 0

    def _share(self, steps: int) -> int:
        """Return how many of `effective_batch_size` samples these accumulation steps had, if all had the same number."""
        whole, rest = divmod(self.counter.effective_batch_size, self.accumulation_steps)
        return self.counter.effective_batch_size if rest else whole * steps

    @in_turn
    def end_epoch(self) -> None:
        """Say that the last update ended an epoch, where that is not known before the update; see also `step`'s `ends_epoch`.

        What epochs' ends log goes into that update's entry.
        """
        self._refuse_unless_open("end_epoch")
        with self.interrupts:
            before = self.counter.epoch
            try:
                self._unended = ("after_epoch",), None
                self.counter.next_epoch()
                self._end_update()
            except BaseException as error:
                if self.counter.epoch == before:
                    self._unended = None
                elif self._unended is not None:
                    complete(error, self._end_update)
                raise


def _each_step(update_outputs: Any) -> Sequence[Any]:
    return update_outputs if isinstance(update_outputs, list) else (update_outputs,)
