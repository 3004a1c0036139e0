"""Open a run's directory, its callbacks and its log; log to it, evaluate, and close it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml

from noether_core.callbacks import hooks
from noether_core.callbacks.build import (
    CORE_CLASSES,
    CallbackClasses,
    Callbacks,
    build_callback,
    read_callbacks,
    refuse_units,
    tracking_callbacks,
)
from noether_core.callbacks.evaluation import Evaluation
from noether_core.callbacks.pooling import Pooling
from noether_core.callbacks.record_outputs import OutputRecorder
from noether_core.config.load import as_entry
from noether_core.config.yaml_file import with_checksum
from noether_core.emit.files import write_whole
from noether_core.emit.log_writer import LogWriter
from noether_core.emit.starts import Origin
from noether_core.emit.trackers import Tracker, in_every_process, make_trackers
from noether_core.errors import HookOrderError
from noether_core.flight_recorder import FlightRecorder
from noether_core.interrupts import Interrupts, complete
from noether_core.reduce.backend import Backend
from noether_core.reduce.exchange import TIME_LIMIT, Exchange, is_exchange, require_time_limit
from noether_core.schedule import UNITS, TrainingIteration, UpdateCounter, iteration_of, require_positive


class OpenRun:
    """Hold what a run has open between its start and its end; see `noether_core.run.Run`, which adds the training's steps."""

    backend: ClassVar[Backend]
    callback_classes: ClassVar[CallbackClasses] = CORE_CLASSES
    # whether a trainer drives it, which says when an epoch ends and how many samples there were, and stops when it likes
    _is_driven: ClassVar[bool] = False
    # the hooks of an update's end that are to be called, and its times, until they have been
    _unended: tuple[tuple[str, ...], Mapping[str, float] | None] | None = None
    _evaluation: Evaluation | None = None

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
        processes: Exchange | Literal[1] | None = None,
        time_limit: float = TIME_LIMIT,
        flight_recorder: int | None = None,
    ) -> None:
        self.path = Path(path)
        require_positive("Run", accumulation_steps=accumulation_steps)
        self.accumulation_steps, self.accumulated = accumulation_steps, 0
        batch_size = 1 if effective_batch_size is None else effective_batch_size
        self.counter = UpdateCounter(
            iteration_of(start, "start"), iteration_of(end, "end"), updates_per_epoch, batch_size
        )
        self._start = self.counter.cur_iteration
        given = read_callbacks(callbacks)
        self.exchange = self._exchange_of(processes, time_limit)
        self.log_writer = LogWriter(
            self.path if self.is_main else None,
            update_counter=self.counter,
            trackers=make_trackers(trackers if self.is_main else in_every_process(trackers), self.path),
            keeps_all=False,
        )
        self.callbacks = [build_callback(each, self.callback_classes, self.log_writer, self.path) for each in given]
        self.flight_recorder = FlightRecorder(self.path, self.callbacks, self._about, flight_recorder)
        self.pooling = self._join_processes()
        self.recorder = None if record is None else self._open_recorder(record)
        self._refuse_units(epochs=updates_per_epoch is not None, samples=effective_batch_size is not None)
        self.interrupts = Interrupts()
        self._is_just_loaded = False  # by `load_state_dict`, with no step since
        self._state = "new"

    def _join_processes(self) -> Pooling | None:
        tracking = tracking_callbacks(self.callbacks)
        pooling = None if self.exchange is None else Pooling(self.exchange, tracking, self.path)
        for callback in tracking:
            callback.partners.join(pooling)
        return pooling

    def _open_recorder(self, path: str | Path) -> OutputRecorder:
        """Return what records the update outputs of this process, each to a file of its own."""
        if self.exchange is not None and self.exchange.index:
            path = f"{path}.process{self.exchange.index}"
        recorder = OutputRecorder(path, backend=self.backend, log_writer=self.log_writer)
        self.callbacks.append(recorder)
        return recorder

    def _exchange_of(self, processes: Exchange | Literal[1] | None, time_limit: float) -> Exchange | None:
        require_time_limit(time_limit, "Run")
        if is_exchange(processes, "Run", self.backend.name):
            return processes
        return self.backend.exchange(time_limit) if processes is None else None

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes the log and the arrays: of several, the first one does."""
        return self.exchange is None or self.exchange.index == 0

    def _refuse_units(self, *, epochs: bool, samples: bool) -> None:
        if not self._is_driven:
            refuse_units(self.callbacks, epochs=epochs, samples=samples)

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Begin training: write `config.yaml` and call `before_training`. Entering the `with` block does this."""
        if self._state != "new":
            raise HookOrderError(f"this run is {self._state}; a Run is used once: make another one")
        if self.pooling is not None:
            self.pooling.begin(self._config_yaml())
        if self.is_main:
            write_whole(self.path / "config.yaml", with_checksum(self._config_yaml()))
        self._state = "training"
        self.interrupts.listen()
        self.log_writer.begin(self._origin(self._start if self._start.update else None, None))
        for callback in self.callbacks:
            callback.before_training(update_counter=self.counter)

    def _origin(self, iteration: TrainingIteration | None, parent: str | None) -> Origin:
        config = hashlib.sha256(self._config_yaml()).hexdigest()
        return Origin(
            iteration, parent, {"config": config, "processes": 1 if self.exchange is None else self.exchange.count}
        )

    def _about(self) -> dict[str, Any] | None:
        """Return what a capsule tells of a run under way; None if this is not."""
        if self._state != "training":
            return None
        exchange = self.exchange
        return {
            "iteration": {unit: getattr(self.counter, unit) for unit in UNITS},
            "accumulation_step": self.accumulated,
            "start": self.log_writer.start_id,
            "process": [0, 1] if exchange is None else [exchange.index, exchange.count],
            "config": self._config_yaml().decode("utf-8", "replace"),
        }

    def _config_yaml(self) -> bytes:
        end = self.counter.end_iteration
        document = {
            "updates_per_epoch": self.counter.updates_per_epoch,
            "effective_batch_size": self.counter.effective_batch_size,
            "accumulation_steps": self.accumulation_steps,
            "end": None if end is None else str(end),
            "callbacks": [as_entry(callback.callback_config) for callback in self.callbacks],
        }
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode("utf-8")

    def _refuse_unless_open(self, method: str) -> None:
        if self._state != "training":
            advice = "write `with run:` around the loop" if self._state == "new" else "make a new Run"
            raise HookOrderError(f"run.{method} was called on a run that is {self._state}; {advice}")
        if self._unended is not None:  # Ctrl-C came twice
            self._end_update()

    def _end_update(self) -> None:
        """Call the hooks of an update's end, or an epoch's, and flush. Where this was interrupted, it may be called again."""
        if self._unended is None:
            return
        due, times = self._unended
        try:
            if due[0] == "after_update":
                for callback in self.callbacks:
                    callback.track_after_update_step(update_counter=self.counter, times=times)
            self._call(*due)
        except Exception:
            self._has_ended_update()
            raise
        except BaseException:
            if self.pooling is not None:  # the other processes do not come again
                self._has_ended_update()
            raise
        self._has_ended_update()

    def _has_ended_update(self) -> None:
        if self._unended == (("after_epoch",), None):
            self.log_writer.restate()
        self._unended = None

    def _call(self, *due: str) -> None:
        """Call periodic hooks of all callbacks, flush what they log, and raise the first error."""
        pooled = () if self.pooling is None else self.pooling.before(due, self.counter)
        errors = [*pooled, *hooks.periodic(self.callbacks, due, self.counter)]
        self.log_writer.flush()
        if errors:
            self.flight_recorder.see(errors)
            raise errors[0]

    @property
    def is_finished(self) -> bool:
        """Tell whether the run's end is reached, or a callback wants training to end."""
        return self.counter.is_finished or any(callback.should_stop for callback in self.callbacks)

    def finish(self) -> None:
        """End training: emit the interval under way, flush and close. Leaving the `with` block does this.

        Of several processes one that ends early waits for the others' intervals to end, and gives them what it has.
        """
        self._finish(failed=False)

    def _finish(self, *, failed: bool) -> None:
        if self._state != "training":
            return
        with self.interrupts:
            try:
                self._end(failed=failed)
                self._state = "finished"
            except BaseException as error:
                if not isinstance(error, Exception):
                    complete(error, self.log_writer.close if self.pooling else lambda: self._end(failed=failed))
                self._state = "finished"
                raise
            finally:
                if self._state == "finished":  # else Ctrl-C came twice: it can be called again
                    self.interrupts.release()

    def _end(self, *, failed: bool) -> None:
        errors: list[Exception] = []
        try:
            self._end_update()
        except Exception as error:
            errors.append(error)
        due = () if self._is_just_loaded else ("after_training",)  # whoever saved the interval under way has logged it
        if self.pooling is not None:
            errors += self.pooling.end(self.counter, failed=failed, has_rest=bool(due), writer=self.log_writer)
        errors += hooks.periodic(self.callbacks, due, self.counter)
        self.flight_recorder.see(errors)  # while it is under way
        self.log_writer.close()
        if errors:
            raise errors[0]

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.finish()
            return
        try:
            with self.interrupts:
                self.flight_recorder.write(error)
                self._finish(failed=True)
        except Exception as second:  # the loop's own error is the one to see
            error.add_note(f"while ending the run, this was raised too: {second!r}")
