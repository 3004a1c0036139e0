"""Open a run's directory, its callbacks and its log; log to it, evaluate, and close it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

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
from noether_core.emit.disk import PATIENCE, Durability
from noether_core.emit.disk_thread import is_passing
from noether_core.emit.files import remove_temporaries, write_whole
from noether_core.emit.log_writer import LogWriter
from noether_core.emit.run_log import RunLog
from noether_core.emit.starts import origin_at
from noether_core.emit.trackers import Tracker, make_trackers
from noether_core.emit.trackers.feed import CLOSING_TIME
from noether_core.errors import HookOrderError, NoetherError
from noether_core.forks import in_children
from noether_core.reduce.backend import Backend
from noether_core.reduce.exchange import TIME_LIMIT, Exchange, is_exchange, require_time_limit
from noether_core.run_config import RunConfig
from noether_core.schedule import TrainingIteration, UpdateCounter, iteration_of, require_positive
from noether_core.select import flatten
from noether_core.termination import Termination


class OpenRun:
    """Hold what a run has open between its start and its end; see `noether_core.run.Run`, which adds the training's steps."""

    backend: ClassVar[Backend]
    callback_classes: ClassVar[CallbackClasses] = CORE_CLASSES
    # whether a trainer drives it, which says when an epoch ends and how many samples there were, and stops when it likes
    _is_driven: ClassVar[bool] = False

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
        durability: Durability = "interval",
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
            trackers=make_trackers(trackers if self.is_main else _in_every_process(trackers), self.path),
            keeps_all=False,
            durability=durability,
        )
        self.callbacks = [build_callback(each, self.callback_classes, self.log_writer, self.path) for each in given]
        self.pooling = self._join_processes()
        self.recorder = None if record is None else self._open_recorder(record)
        self._refuse_units(epochs=updates_per_epoch is not None, samples=effective_batch_size is not None)
        self._evaluation: Evaluation | None = None
        self._is_just_loaded = False  # by `load_state_dict`, with no step since
        self._termination, self._state = Termination(self._terminate), "new"

    def _join_processes(self) -> Pooling | None:
        tracking = tracking_callbacks(self.callbacks)
        pooling = None if self.exchange is None else Pooling(self.exchange, tracking, self.path, self.log_writer.disk)
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
        """Begin training: write `config.yaml` and call `before_training`. Entering the `with` block does this.

        Raises:
            RunLockedError: if another run, here or in another process, writes to the run directory.
        """
        if self._state != "new":
            raise HookOrderError(f"this run is {self._state}; a Run is used once: make another one")
        log = self.log_writer.run_log
        try:
            failure = None if log is None else self._open_directory(log)
            if self.pooling is not None:
                self.pooling.begin(self._config.yaml(), failure)
            if failure is not None:
                raise failure
            self._state = "training"
            in_children(self, OpenRun._leave_to_parent)
            self._termination.install()
            self.log_writer.begin(origin_at(self._start, self._config.about()))
            for callback in self.callbacks:
                callback.before_training(update_counter=self.counter)
        except BaseException:
            self._termination.remove()
            if log is not None:
                log.let_go()
            raise

    def _open_directory(self, log: RunLog) -> Exception | None:
        """Be the one that writes to the run directory; return what is against it, which other processes are to be told.

        A directory that cannot be written is refused here; a disk that is full may have room later.
        """
        config, data = self.path / "config.yaml", self._config.yaml()
        try:
            log.hold(self._give_way if self._is_driven else None)
            remove_temporaries(self.path)
            write_whole(config, data)
        except (NoetherError, OSError) as error:
            if isinstance(error, NoetherError) or not is_passing(error):
                return error
            self.log_writer.disk.put_file(config, data)
        return None

    def _give_way(self) -> None:
        """End this run, whose trainer may have failed without saying so, for another one in its directory."""
        if self._state == "training":
            self._state = "ended by another one in its directory"
            self._termination.remove()
            self.log_writer.close()

    def _leave_to_parent(self) -> None:
        """Write nothing in a forked child: not by a step, nor at its end, which may leave the `with` block."""
        if self._state == "training":
            self._state = "forked"

    @property
    def _config(self) -> RunConfig:
        processes = 1 if self.exchange is None else self.exchange.count
        return RunConfig(self.counter, self.accumulation_steps, self.callbacks, processes)

    def _refuse_unless_open(self, method: str) -> None:
        if self._state == "training":
            return
        if self._state == "forked":
            raise HookOrderError(
                f"run.{method} was called in process {os.getpid()}, which was forked from the one that has the run open; call"
                " it there, or make a run in another directory after the fork"
            )
        advice = "write `with run:` around the loop" if self._state == "new" else "make a new Run"
        raise HookOrderError(f"run.{method} was called on a run that is {self._state}; {advice}")

    def _call(self, *due: str) -> None:
        """Call periodic hooks of all callbacks, flush what they log, and raise the first error."""
        pooled = () if self.pooling is None else self.pooling.before(due, self.counter)
        errors = [*pooled, *hooks.periodic(self.callbacks, due, self.counter)]
        self.log_writer.flush()
        if errors:
            raise errors[0]

    # ------------------------------------------------------------------ values of one's own

    def log(self, values: Mapping[str, Any]) -> None:
        """Log values of your own at the current iteration, into the entry that its update has.

        In `evaluate` their keys get its prefix. They are in the file within a second, or as `durability` says.

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
    def evaluate(self, prefix: str = "eval", *, processes: Literal[1] | None = None) -> Iterator[None]:
        """Evaluate: what is tracked by `step` and logged by `log` in this context goes under `{prefix}/`.

        Its steps are no training steps: nothing counts them, and the intervals under way stay as they are. At its end, what the
        tracking callbacks name of its outputs is logged, reduced over all of them, and every callback's `at_eval` is called. If
        it raises, what it tracked is dropped.

        Args:
            prefix: such as `eval` or `test`.
            processes: 1 if this process evaluates without the others; None: all do, each its part.

        Raises:
            HookOrderError: outside of training, or within another evaluation.
            NoetherError: for a prefix that cannot be one.
        """
        self._refuse_unless_open("evaluate")
        if processes is not None and is_exchange(processes, "run.evaluate"):
            raise NoetherError("run.evaluate got an Exchange as processes; expected 1 or None: the run has one for all")
        if self._evaluation is not None:
            raise HookOrderError(
                "run.evaluate was called within run.evaluate; end the first evaluation before the next"
            )
        self._evaluation = Evaluation(self.callbacks, prefix, alone=processes == 1)
        try:
            yield
            self._refuse_unless_open("evaluate")
            self._evaluation.log(self.log_writer, self.counter)
        finally:
            self._evaluation = None
            self.log_writer.flush()
        self._call("at_eval")

    @property
    def is_finished(self) -> bool:
        """Tell whether the run's end is reached, or a callback wants training to end."""
        return self.counter.is_finished or any(callback.should_stop for callback in self.callbacks)

    def finish(self) -> None:
        """End training: emit the interval under way, flush and close. Leaving the `with` block does this.

        Of several processes one that ends early waits for the others' intervals to end, and gives them what it has.
        """
        self._finish(failed=False)

    def _finish(self, *, failed: bool, time_limit: float = CLOSING_TIME) -> None:
        if self._state != "training":
            return
        self._state = "finished"
        due = () if self._is_just_loaded else ("after_training",)  # whoever saved the interval under way has logged it
        try:
            errors = self._finish_pooling(failed=failed, has_rest=bool(due))
            self.log_writer.begin_provisional()
            errors += hooks.periodic(self.callbacks, due, self.counter)
        finally:
            self.log_writer.close(time_limit)
            self._termination.remove()
        if errors:
            raise errors[0]

    def _finish_pooling(self, *, failed: bool, has_rest: bool) -> list[Exception]:
        if self.pooling is None:
            return []
        if failed:
            self.pooling.abandon(self.counter)
            return []
        try:
            return self.pooling.finish(self.counter, has_rest=has_rest, writer=self.log_writer)
        except Exception as error:
            return [error]

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.finish()
            return
        try:
            self._finish(failed=True)
        except BaseException as second:  # the loop's own error is the one to see, also when Ctrl-C is hit once more
            error.add_note(f"while ending the run, this was raised too: {second!r}")
            self.log_writer.disk.close(PATIENCE)

    def _terminate(self, is_inside: bool) -> None:
        """End the run, for the process is about to; if these packages still run, write at least what was flushed."""
        if is_inside:
            self.log_writer.disk.close(PATIENCE)
        else:
            self._finish(failed=True, time_limit=PATIENCE)


def _in_every_process(trackers: Sequence[Tracker | str | Mapping[str, Any]]) -> list[Tracker]:
    return [
        each for each in trackers if not isinstance(each, str | Mapping) and getattr(each, "in_every_process", False)
    ]
