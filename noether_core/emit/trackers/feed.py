"""Feed one tracker from a bounded queue, on a thread of its own, so that training never waits for it.

Fork safety: threads do not survive `os.fork`, so in a forked child (a data loader's worker) a feed takes nothing and closes
nothing; the parent's goes on.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from noether_core.emit.trackers import Tracker

QUEUE_SIZE = 1000  # entries, per tracker


class Feed:
    """Hand entries to a tracker in their order; what it cannot take in time is dropped for it, and counted.

    A tracker with a true attribute `inline` is called at once, on the training thread.

    Attributes:
        tracker: the one that is fed.
        dropped: how many entries met a full queue.
        error: what the tracker raised. It gets no more entries and is closed, if it will; None if it raised nothing.
        failed_at: `log` or `close`, where `error` was raised; None if it raised nothing.
    """

    def __init__(self, tracker: Tracker, size: int = QUEUE_SIZE) -> None:
        self.tracker = tracker
        self.dropped = 0
        self.error: BaseException | None = None
        self.failed_at: str | None = None
        self._size = size
        self._entries: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()  # its put never blocks
        self._given = 0
        self._taken = 0
        self._is_inline = bool(getattr(tracker, "inline", False))
        self._is_finished = False
        self._is_abandoned = False
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def put(self, entry: Mapping[str, Any]) -> None:
        """Give one entry, without waiting and without raising."""
        if self.error is not None or self._is_finished or not self.is_ours:
            return
        if self._is_inline:
            self._log(dict(entry))
            return
        if self._entries.qsize() >= self._size:
            self.dropped += 1
            return
        self._given += 1
        self._entries.put(dict(entry))  # a copy, so that no tracker changes what another one gets
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"feed {self.tracker!r:.60}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (entry := self._entries.get()) is not None and not self._is_abandoned:
            self._log(entry)
            if self.error is not None:
                return
            self._taken += 1
        self._close()

    def _log(self, entry: dict[str, Any]) -> None:
        try:
            self.tracker.log(entry)
        except BaseException as error:
            if self._is_inline and not isinstance(error, Exception):
                raise  # Ctrl-C, on the training thread
            self.error, self.failed_at = error, "log"
            self._close()

    def _close(self) -> None:
        try:
            self.tracker.close()
        except BaseException as error:
            if self._is_inline and not isinstance(error, Exception):
                raise
            if self.error is None:  # the first one is the one to see
                self.error, self.failed_at = error, "close"

    def finish(self) -> None:
        """Ask for the end: once the queue is empty, the tracker is closed. Returns at once."""
        if self._is_finished or self.error is not None:
            return
        self._is_finished = True
        if self._thread is None:
            self._close()
        else:
            self._entries.put(None)

    def wait(self, deadline: float) -> bool:
        """Wait for the end until `time.monotonic()` is `deadline`; tell whether it came. If not, no more entries are taken."""
        if self._thread is None:
            return True
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._is_abandoned = self._thread.is_alive()
        return not self._is_abandoned

    @property
    def is_ours(self) -> bool:
        """Tell whether this is the process that feeds, and not one forked from it."""
        return os.getpid() == self._process

    @property
    def left(self) -> int:
        """Return how many entries the tracker was given and has not yet taken."""
        return self._given - self._taken
