"""Know with which other processes a tracking callback pools its intervals: a run says, or the callback finds out by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from noether_core.callbacks.pooling import Member, Pooling
from noether_core.emit.log_writer import LogWriter, ScalarWriter
from noether_core.reduce.backend import Backend
from noether_core.reduce.exchange import TIME_LIMIT, Exchange, is_exchange
from noether_core.schedule import Counter


class Partners:
    """Hold what a callback's intervals are pooled by.

    Args:
        member: the callback.
        backend: knows the processes that the framework was told of.
        processes: what talks to them; None: what the backend has; 1: nothing does.
        path: the run directory.
        writer: what the callback logs to.

    Attributes:
        drives: whether the callback is nobody else's, so that it begins and finishes the pooling by its own hooks.
    """

    def __init__(
        self,
        member: Member,
        backend: Backend,
        processes: Exchange | Literal[1] | None,
        path: Path | None,
        writer: ScalarWriter,
    ) -> None:
        self._disk = getattr(writer, "disk", None)
        self._member, self._backend, self._processes, self._path = member, backend, processes, path
        is_exchange(processes, str(member), backend.name)
        self._pooling: Pooling | None = None
        self._is_known = False
        self.drives = False

    def join(self, pooling: Pooling | None) -> None:
        """Pool together with the other callbacks of a run, which drives the pooling; None: with nobody."""
        self._pooling, self._is_known = pooling, True

    @property
    def pooling(self) -> Pooling | None:
        """Return what pools the intervals with those of other processes; None where there are none."""
        if not self._is_known:
            exchange = self._backend.exchange(TIME_LIMIT) if self._processes is None else self._processes
            if exchange is not None and exchange != 1:
                self._pooling, self.drives = Pooling(exchange, [self._member], self._path, self._disk), True
            self._is_known = True
        return self._pooling

    def begin(self, config: bytes) -> None:
        """Begin the pooling, if the callback drives it; see `Pooling.begin`."""
        if self.pooling is not None and self.drives:
            self.pooling.begin(config)

    def finish(self, update_counter: Counter, writer: LogWriter | None) -> None:
        """Finish the pooling, if the callback drives it; see `Pooling.finish`. Raises the first error."""
        if self.pooling is None or not self.drives:
            return
        if errors := self.pooling.finish(update_counter, has_rest=True, writer=writer):
            raise errors[0]

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes files."""
        return self.pooling is None or self.pooling.is_main

    def logs_to(self, writer: ScalarWriter) -> bool:
        """Tell whether this process logs: where a run, or memory, collects what each process logs, all do."""
        return self.is_main or not self.drives or getattr(writer, "is_in_memory", False)
