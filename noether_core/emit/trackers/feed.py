"""Feed trackers from bounded queues, each on a thread of its own, so that training never waits for one.

Threads do not survive `os.fork`: in a forked child (a data loader's worker) nothing is taken or closed; the parent goes on.
"""

from __future__ import annotations

import atexit
import os
import queue
import shlex
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from noether_core.emit.trackers import TOOLS, Tracker

QUEUE_SIZE = 1000  # entries, per tracker
CLOSING_TIME = 10.0  # seconds


class Feed:
    """Hand entries to a tracker in their order; what it cannot take in time is dropped for it, and counted.

    A tracker with a true attribute `inline` is called at once, on the training thread. One that raises gets no more entries and
    is closed, if it will.

    Attributes:
        dropped: how many entries met a full queue.
        error: what the tracker raised first; None if it raised nothing.
        failed_at: `log` or `close`, where that was.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.dropped = 0
        self.error: BaseException | None = None
        self.failed_at = ""
        self._entries: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()  # its put never blocks
        self.is_inline = bool(getattr(tracker, "inline", False))
        self._is_abandoned = False
        self._thread: threading.Thread | None = None

    def put(self, entry: Mapping[str, Any]) -> None:
        """Give one entry, without waiting and without raising."""
        if self.error is not None:
            return
        if self.is_inline:
            self._log(dict(entry))
        elif self._entries.qsize() >= QUEUE_SIZE:
            self.dropped += 1
        else:
            self._entries.put(dict(entry))  # a copy, so that no tracker changes what another one gets
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"feed {self.tracker!r:.60}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (entry := self._entries.get()) is not None and not self._is_abandoned:
            self._log(entry)
            if self.error is not None:
                return
        self._try("close", self.tracker.close)

    def _log(self, entry: dict[str, Any]) -> None:
        self._try("log", self.tracker.log, entry)
        if self.error is not None:
            self._try("close", self.tracker.close)

    def _try(self, name: str, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except BaseException as error:
            if self.is_inline and not isinstance(error, Exception):
                raise  # Ctrl-C, on the training thread
            if self.error is None:  # the first one is the one to see
                self.error, self.failed_at = error, name

    def finish(self) -> None:
        """Ask for the end: once the queue is empty, the tracker is closed. Returns at once."""
        if self.error is not None:
            return
        if self._thread is None:
            self._try("close", self.tracker.close)
        else:
            self._entries.put(None)

    def wait(self, deadline: float) -> bool:
        """Wait for the end until `time.monotonic()` is `deadline`; tell whether it came. If not, no more entries are taken."""
        if self._thread is None:
            return True
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._is_abandoned = self._thread.is_alive()
        return not self._is_abandoned

    def missed(self, has_ended: bool, time_limit: float) -> str:
        """Return what the tracker missed, in words; nothing for one that failed to log, which is warned about then."""
        if self.failed_at == "log":
            return ""
        parts = []
        if self.dropped:
            parts.append(f"missed {self.dropped} entries, which met a full queue")
        if self.error is not None:
            parts.append(f"failed to close: {self.error!r}")
        left = self._entries.qsize()  # with the end's mark for the entry that is being taken
        if not has_ended:
            what = f"take the last {left} entries" if left else "close"
            parts.append(f"did not {what} within {time_limit:g} s")
        return " and ".join(parts)


class Feeds:
    """Feed all trackers of a log, and warn once of each that fails or misses something: the run directory has it."""

    def __init__(self, trackers: Sequence[Tracker], run_path: Path | None) -> None:
        self._all = [Feed(tracker) for tracker in trackers]
        self._open = self._all
        self._reported: list[Feed] = []
        self._path = run_path
        self._is_awaited = False
        self._process = os.getpid()

    def expect(self) -> None:
        """Close at the end of a program that does not, but after all that is registered for it from now on."""
        if self._open and not self._is_awaited and os.getpid() == self._process:
            atexit.register(self.close)
            self._is_awaited = True

    def put(self, entry: Mapping[str, Any]) -> None:
        """Give an entry to every tracker that has a thread; whoever wrote the entry calls this."""
        self._put(entry, is_inline=False)

    def put_inline(self, entry: Mapping[str, Any]) -> None:
        """Give an entry to every tracker that has none, and warn of those that failed; whoever logs calls this."""
        self._put(entry, is_inline=True)
        self._report_failures()

    def _put(self, entry: Mapping[str, Any], *, is_inline: bool) -> None:
        if not self._open or os.getpid() != self._process:
            return
        for feed in self._open:
            if feed.is_inline == is_inline:
                feed.put(entry)

    @property
    def dropped(self) -> dict[str, int]:
        """Return how many entries each tracker missed because its queue was full, by the tracker's repr."""
        return {repr(feed.tracker): feed.dropped for feed in self._all}

    def close(self, time_limit: float = CLOSING_TIME) -> None:
        """Let every tracker empty its queue and close, all at once, for so many seconds at most."""
        atexit.unregister(self.close)
        if os.getpid() != self._process:
            return
        feeds, self._open = self._open, []
        deadline = time.monotonic() + time_limit
        for feed in feeds:
            feed.finish()
        ended = [feed.wait(deadline) for feed in feeds]
        for feed, has_ended in zip(feeds, ended, strict=True):
            if missed := feed.missed(has_ended, time_limit):
                self._warn(feed, missed)
        self._report_failures()

    def _report_failures(self) -> None:
        """Warn of each tracker that raised, here on the caller's thread."""
        for feed in self._all:
            if feed.failed_at == "log" and feed not in self._reported:
                self._reported.append(feed)
                self._warn(feed, f"failed and gets no more entries: {feed.error!r}")

    def _warn(self, feed: Feed, what: str) -> None:
        remedy = ""
        if self._path is not None:
            kind = getattr(feed.tracker, "kind", None)
            command = f"noether-parity export {shlex.quote(str(self._path))} --to {kind if kind in TOOLS else 'csv'}"
            remedy = f"; the entries are in the run directory: `{command}` writes them all"
        warnings.warn(f"tracker {feed.tracker!r} {what}{remedy}", RuntimeWarning, stacklevel=4)
