"""Make what a run is made of: its callbacks, its log, and what talks to the other processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Never, NoReturn

from noether_core.callbacks.build import (
    CORE_CLASSES,
    CallbackClasses,
    Callbacks,
    Keys,
    build_callbacks,
    read_callbacks,
    refuse_units,
    tracking_callbacks,
)
from noether_core.callbacks.evaluation import Evaluation
from noether_core.callbacks.pooling import Pooling
from noether_core.callbacks.record_outputs import OutputRecorder
from noether_core.config.base import NamedCallbackConfig
from noether_core.emit.card import card
from noether_core.emit.disk import Durability
from noether_core.emit.files import checked_path
from noether_core.emit.log_writer import LogWriter
from noether_core.emit.reader import read_run
from noether_core.emit.trackers import Tracker, in_every_process, make_trackers
from noether_core.errors import NoetherError, refuse_unexpected
from noether_core.explanation import Explained, explain_outputs
from noether_core.flight_recorder import FlightRecorder
from noether_core.interrupts import Interrupts
from noether_core.reduce.backend import Backend
from noether_core.reduce.exchange import TIME_LIMIT, Exchange, is_exchange, require_time_limit
from noether_core.run_config import RunConfig
from noether_core.schedule import UNITS, TrainingIteration, UpdateCounter, iteration_of, require_positive


class MadeRun:
    """Hold what a run is made of; see `noether_core.run.Run`, whose arguments these are."""

    backend: ClassVar[Backend]
    callback_classes: ClassVar[CallbackClasses] = CORE_CLASSES
    # whether a trainer drives it, which says when an epoch ends and how many samples there were, and stops when it likes
    _is_driven: ClassVar[bool] = False
    _evaluation: Evaluation | None = None
    accumulated = 0
    _state = "new"
    _is_just_loaded = False  # by `load_state_dict`, with no step since

    def __init__(
        self,
        path: str | Path,
        keys: Keys | None = None,
        callbacks: Callbacks | None = None,
        *,
        every: int | None = None,
        log_as: str | None = None,
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
        flight_recorder: int | None = None,
        **unknown: Never,
    ) -> None:
        refuse_unexpected(type(self), unknown)
        require_positive("Run", accumulation_steps=accumulation_steps)
        self.path, self.accumulation_steps = checked_path(path, "Run").absolute(), accumulation_steps
        self.counter = _counter_of(start, end, updates_per_epoch, effective_batch_size)
        given = read_callbacks(keys, callbacks, every=every, log_as=log_as)
        self._start, self.exchange = self.counter.cur_iteration, self._exchange_of(processes, time_limit)
        self.log_writer = LogWriter(
            self.path if self.is_main else None,
            update_counter=self.counter,
            trackers=make_trackers(trackers if self.is_main else in_every_process(trackers), self.path),
            keeps_all=False,
            durability=durability,
        )
        self.callbacks = build_callbacks(given, self.callback_classes, self.log_writer, self.path)
        self.flight_recorder = FlightRecorder(self.path, self.callbacks, self._about, flight_recorder, self._write)
        self.pooling = self._join_processes()
        self.recorder = None if record is None else self._open_recorder(record)
        self._refuse_units(epochs=updates_per_epoch is not None, samples=effective_batch_size is not None)
        self.interrupts = Interrupts()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be copied or pickled: it writes to its directory, and no other run may. Make another Run, in"
            " another directory; what a process or a checkpoint needs to go on with it is run.state_dict()"
        )

    def __repr__(self) -> str:
        """Return what it is, where, in which state, and how far."""
        counter = self.counter
        words = [f"{unit} {getattr(counter, unit):,}" for unit in UNITS if getattr(counter, unit) or unit == "update"]
        name = f"{type(self).__module__.partition('.')[0]}.{type(self).__name__}"
        return f"<{name} {str(self.path)!r}: {self._state}, {', '.join(words)}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the curves of what is in its files, as HTML that loads nothing and runs nothing."""
        try:
            series = read_run(self.path).series
        except (NoetherError, OSError):  # before it has started, say
            series = {}
        return card(repr(self), "", series)

    def explain(self, update_outputs: Any) -> Explained:
        """Say what the run would track of update outputs like these, and log it under which names. Nothing is tracked.

        Args:
            update_outputs: as `step` takes; `jax.ShapeDtypeStruct`s will do.

        Returns:
            What prints as `noether-parity explain` does; `is_clean` tells whether every entry matches and nothing would fail.

        Raises:
            UpdateOutputError: for what are no update outputs.
        """
        configs = [callback.callback_config for callback in self.callbacks]
        return explain_outputs([each for each in configs if isinstance(each, NamedCallbackConfig)], update_outputs)

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

    def _write(self, path: Path, data: bytes) -> bool:
        """Write a file after what was logged; tell whether it is there."""
        return self.log_writer.disk.put_file(path, data) and self.log_writer.disk.wait()

    def _about(self) -> dict[str, Any] | None:
        """Return what a capsule tells of a run under way; None if this is not."""
        if self._state != "training":
            return None
        exchange, log = self.exchange, self.log_writer.start_log
        return {
            "iteration": {unit: getattr(self.counter, unit) for unit in UNITS},
            "accumulation_step": self.accumulated,
            "start": None if log is None or log.origin is None else log.origin.id,
            "process": [0, 1] if exchange is None else [exchange.index, exchange.count],
            "config": self._config.yaml().decode("utf-8", "replace"),
        }

    @property
    def _config(self) -> RunConfig:
        processes = 1 if self.exchange is None else self.exchange.count
        return RunConfig(self.counter, self.accumulation_steps, self.callbacks, processes)


def _counter_of(start: Any, end: Any, updates_per_epoch: int | None, effective_batch_size: int | None) -> UpdateCounter:
    batch_size = 1 if effective_batch_size is None else effective_batch_size
    return UpdateCounter(iteration_of(start, "start"), iteration_of(end, "end"), updates_per_epoch, batch_size)
