"""Save what a step computed: the statistics of updates as columns, and arrays of the first ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from noether_core.callbacks.base import CallbackBase
from noether_core.callbacks.emission import save_arrays
from noether_core.config.loop import ProbeCallbackConfig
from noether_core.emit.log_writer import BoundLogWriter
from noether_core.errors import HookOrderError, NoetherError
from noether_core.interrupts import Mark
from noether_core.probes.block import (
    ARRAYS,
    DIRECTORY,
    ROW_BYTES,
    STATISTICS,
    Row,
    encode_arrays_of,
    encode_rows,
    row_of,
)
from noether_core.probes.probed import Due, HostProbed, Probed, joined
from noether_core.probes.stages import in_order
from noether_core.probes.walk import Reader, named
from noether_core.reduce.backend import Backend
from noether_core.schedule import Counter

MOST_ROWS, MOST_BYTES = 512, 2**22  # of a file of statistics
MOST_WRITES = 100  # of the same file
MOST_OF_ARRAYS = 2**25  # bytes of a file of arrays, unless one array has more
_DELAY = 1.0  # seconds that rows wait at most, for a training that goes on


class Source(Protocol):
    """Read what steps compute, where the loop does not hand it over."""

    def prepare(self, due: Due) -> None:
        """Be ready for an update of which this is due."""

    def take(self, due: Due) -> Sequence[Probed]:
        """Return what was read since the last call."""

    def remove(self) -> None:
        """Read nothing any more."""


class ProbeCallback(CallbackBase):
    """Take what was probed of a step, and save it: its statistics, and its arrays if it has any.

    The front-ends' classes of this name add the framework; use those. What `probe` returned is found among the update outputs;
    a loop that gives none to `run.step` hands it to `add`. Of `batch` and `losses`, if `run.step` is given them, `data/...` and
    `loss/...` are made where that has none. Statistics are saved whatever is due, for somebody asked for them, arrays if due.

    Args:
        callback_config: a `ProbeCallbackConfig`.
        **arguments: see `CallbackBase`.

    Attributes:
        out: the directory of the files; None where this process saves none: of several, the first one does.
        sources: read what the loop does not hand over.

    Raises:
        NoetherError: without a run directory.
    """

    backend: Backend
    framework: ClassVar[str]
    reader: ClassVar[Reader]
    callback_config: ProbeCallbackConfig

    def __init__(self, callback_config: ProbeCallbackConfig, **arguments: Any) -> None:
        super().__init__(callback_config, **arguments)
        if self.output_path is None:
            raise NoetherError(f"{self} saves what it probes, but output_path is None; give the run directory")
        writer = self.log_writer
        is_silent = isinstance(writer, BoundLogWriter) and writer.is_in_memory
        self.out: Path | None = None
        if not is_silent:
            self.out = self.output_path.joinpath("update_outputs", callback_config.id or "", DIRECTORY)
        self.sources: list[Source] = []
        self._given: tuple[Probed, ...] = ()
        self._steps: tuple[tuple[Probed, ...], ...] = ()  # of the update under way
        self._position = (-1, -1)
        self._before: tuple[Any, ...] = (self._position, (), ())
        self._rows: tuple[Row, ...] = ()  # of the file under way
        self._first = ""  # its iteration
        self._saved = self._writes = 0  # rows that are in the file, and how often it was written
        self._saved_at = 0.0

    def measured(self, values: Mapping[str, Any], due: Due) -> Probed:
        """Return what is probed of values by key; the front-ends' classes do."""
        raise NotImplementedError

    def due(self, update: int) -> Due:
        """Return what is probed of an update, counted from 1."""
        config = self.callback_config
        has_arrays = update <= config.arrays or update in config.arrays_at
        every = config.every_n_updates or 1
        return Due(has_arrays or update % every == 0, config.array_limit if has_arrays else 0)

    def add(self, probed: Any) -> None:
        """Take what `probe` returned, for the accumulation step that is counted next."""
        self._given = (*self._given, *_found(probed))

    # ------------------------------------------------------------------ each accumulation step

    def track_after_accumulation_step(
        self,
        *,
        update_counter: Counter,
        update_outputs: Any = None,
        batch: Any = None,
        losses: Any = None,
        accumulation_step: int = 0,
        **_: Any,
    ) -> None:
        """Take what was probed of this step. Nothing waits for the device."""
        before = self._position, self._given, self._steps
        update = update_counter.update
        parts = [*self._given, *_found(update_outputs)]
        due = self.due(update + 1)
        if not due.arrays:
            parts = [part.without_arrays() for part in parts]
        if due:
            parts += [found for source in self.sources for found in source.take(due)]
            parts += self._beside(parts, batch, losses, due)
        if self.out is None:
            parts = []
        self._given = ()
        kept = self._steps if self._position[0] == update else ()
        self._steps = (*kept, tuple(parts)) if parts else kept
        self._before, self._position = before, (update, accumulation_step)

    def _beside(self, parts: Sequence[Probed], batch: Any, losses: Any, due: Due) -> list[Probed]:
        """Return what is probed of what `run.step` got beside the update outputs, of stages that nobody has."""
        stages = {key.partition("/")[0] for part in parts for key in part.keys}
        values: dict[str, Any] = {}
        for stage, given in (("data", batch), ("loss", losses)):
            if given is not None and stage not in stages:
                values |= named(self.reader, stage, given)
        return [self.measured(values, due)] if values else []

    def has_tracked(self, update: int, accumulation_step: int) -> bool:
        """Tell whether the last `track_after_accumulation_step` was this step's."""
        return self._position == (update, accumulation_step)

    def undo_accumulation_step(self) -> None:
        """Forget the last `track_after_accumulation_step`."""
        self._position, self._given, self._steps = self._before

    # ------------------------------------------------------------------ each update

    def track_after_update_step(self, *, update_counter: Counter, **_: Any) -> None:
        """Save what was probed of the update that has ended. This waits for the device, if there is any."""
        if self._steps:
            self._take(update_counter)
        self.prepare(update_counter)
        if len(self._rows) > self._saved and time.monotonic() - self._saved_at >= _DELAY:
            self.flush()

    def prepare(self, update_counter: Counter) -> None:
        """Let the sources be ready for the next update."""
        for source in self.sources:
            source.prepare(self.due(update_counter.update + 1))

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Let the sources be ready for the first update."""
        self.prepare(update_counter)

    def _take(self, update_counter: Counter) -> None:
        update, iteration = update_counter.update, str(update_counter.cur_iteration)
        probed = self._on_host()
        if probed.arrays:
            self._save_arrays(probed, update, iteration)
        if not self._rows:
            self._first = iteration
        if not self._rows or self._rows[-1].update < update:  # else Ctrl-C came twice, and this is called once more
            self._rows = (*self._rows, row_of(update, probed))
        self._steps = ()
        if len(self._rows) >= MOST_ROWS or len(self._rows) * len(probed.keys) * ROW_BYTES >= MOST_BYTES:
            self.flush()
            self._end_file()

    def _end_file(self) -> None:
        self._rows, self._saved, self._writes = (), 0, 0

    def _on_host(self) -> HostProbed:
        """Return what the update under way had, all in one transfer."""
        parts = [part for step in self._steps for part in step]
        leaves = iter(self.backend.to_numpy([leaf for part in parts for leaf in part.leaves()]))
        hosted = {id(part): part.on_host([next(leaves) for _ in part.leaves()]) for part in parts}
        return joined([[hosted[id(part)] for part in step] for step in self._steps])

    def _about(self) -> dict[str, Any]:
        """Return what a file says of itself: of which start it is, so that a reader knows what of it stands."""
        writer = self.log_writer.writer if isinstance(self.log_writer, BoundLogWriter) else None
        log = None if writer is None else writer.start_log
        start = None if log is None or log.origin is None else log.origin.id
        return {"framework": self.framework, "start": start}

    def _save_arrays(self, probed: HostProbed, update: int, iteration: str) -> None:
        assert self.out is not None
        parts: list[list[str]] = [[]]
        room = MOST_OF_ARRAYS
        for key in in_order(probed.arrays):
            room -= probed.arrays[key].nbytes
            if room < 0 and parts[-1]:
                parts.append([])
                room = MOST_OF_ARRAYS - probed.arrays[key].nbytes
            parts[-1].append(key)
        for number, keys in enumerate(parts):
            path = self.out.joinpath(ARRAYS, str(number) if number else "", f"{iteration}.safetensors")
            error = save_arrays(self.log_writer, path, encode_arrays_of(probed, keys, self._about(), update))
            if error is not None:
                self._warn_once("dtype", str(error))

    def flush(self) -> None:
        """Save the statistics that are not saved yet: the file under way, whole."""
        if self.out is None or len(self._rows) == self._saved:
            return
        path = self.out / STATISTICS / f"{self._first}.safetensors"
        save_arrays(self.log_writer, path, encode_rows(self._rows, self._about()))
        self._saved, self._saved_at, self._writes = len(self._rows), time.monotonic(), self._writes + 1
        if self._writes >= MOST_WRITES:
            self._end_file()

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Save what is not saved yet, and let the sources go."""
        self.flush()
        for source in self.sources:
            source.remove()
        self.sources = []

    # ------------------------------------------------------------------ its state

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: nothing, but what was probed before is saved first, so that none is ahead of it."""
        self.flush()
        if isinstance(self.log_writer, BoundLogWriter):
            self.log_writer.disk.wait()
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin another file: what is probed from here on is of another start."""
        with Mark(self.stateful()):
            self.flush()
            self._end_file()
            self._steps, self._given, self._position = (), (), (-1, -1)


def _found(outputs: Any) -> list[Probed]:
    """Return what was probed among update outputs."""
    if isinstance(outputs, Probed):
        return [outputs]
    values = outputs.values() if isinstance(outputs, Mapping) else ()
    return [value for value in values if isinstance(value, Probed)]


def probe_callbacks(callbacks: Sequence[CallbackBase]) -> list[ProbeCallback]:
    """Return those of a run's callbacks that probe.

    Raises:
        HookOrderError: if there are none.
    """
    found = [callback for callback in callbacks if isinstance(callback, ProbeCallback)]
    if not found:
        raise HookOrderError(
            "this run has no ProbeCallback; give it one: Run(..., callbacks=[{'kind': 'ProbeCallback'}])"
        )
    return found
