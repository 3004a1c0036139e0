"""Feed trackers from bounded queues, each on a thread of its own, so that training never waits for one.

Threads do not survive `os.fork`: in a forked child (a data loader's worker) nothing is taken or closed; the parent goes on.
"""

from __future__ import annotations

import atexit
import copy
import logging
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
from noether_core.text import inert

QUEUE_SIZE = 1000  # entries, per tracker
CLOSING_TIME = 10.0  # seconds


def _shown(value: object) -> str:
    """Return an object's repr, short and safe on a terminal, whatever the object does when it is asked for it."""
    try:
        return inert(f"{value!r:.500}")
    except (Exception, SystemExit, GeneratorExit) as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


class Feed:
    """Hand entries to a tracker in their order; what it cannot take in time is dropped for it, and counted.

    A tracker with a true attribute `inline` is called at once, on the training thread. One that raises gets no more entries and
    is closed, if it will.

    Attributes:
        name: the tracker's repr.
        dropped: how many entries met a full queue.
        error: what the tracker raised first; None if it raised nothing.
        failed_at: `log` or `close`, where that was.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.name = _shown(tracker)
        self.dropped = 0
        self._taken = -1  # the number of the entry that was given last
        self.error: BaseException | None = None
        self.failed_at = ""
        self._entries: queue.SimpleQueue[tuple[int, dict[str, Any]] | None]  # its put never blocks
        self._entries = queue.SimpleQueue()
        self.is_inline = bool(getattr(tracker, "inline", False))
        self._is_abandoned = False
        self._thread: threading.Thread | None = None

    def put(self, entry: dict[str, Any], number: int) -> None:
        """Give one entry, a copy for this tracker alone, without waiting and without raising.

        Args:
            entry: the entry.
            number: greater than those before; of entries of one number the tracker gets the first.
        """
        if self.error is not None:
            return
        if self.is_inline:
            self._log(entry, number)
        elif self._entries.qsize() >= QUEUE_SIZE:
            self.dropped += 1
        else:
            self._entries.put((number, entry))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"feed {self.name:.60}", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while (given := self._entries.get()) is not None and not self._is_abandoned:
            number, entry = given
            self._log(entry, number)
            if self.error is not None:
                return
        self._try("close", self.tracker.close)

    def _log(self, entry: dict[str, Any], number: int) -> None:
        if number <= self._taken:
            return
        self._taken = number
        self._try("log", self.tracker.log, entry)
        if self.error is not None:
            self._try("close", self.tracker.close)

    def _try(self, name: str, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except BaseException as error:
            if self.is_inline and isinstance(error, KeyboardInterrupt | SystemExit):
                raise  # for the training, whose thread this is
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
            parts.append(f"failed to close: {_shown(self.error)}")
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

    def own(self) -> None:
        """Feed from this process, which may be a child of the one that made this."""
        self._process = os.getpid()

    def expect(self) -> None:
        """Close at the end of a program that does not, but after all that is registered for it from now on."""
        if self._open and not self._is_awaited and os.getpid() == self._process:
            atexit.register(self.close)
            self._is_awaited = True

    def put(self, entry: Mapping[str, Any], number: int) -> None:
        """Give an entry to every tracker that has a thread; whoever wrote the entry calls this.

        Args:
            entry: the entry.
            number: greater than those before; given again, the entry is not taken again.
        """
        self._put(entry, number, is_inline=False)

    def put_inline(self, entry: Mapping[str, Any], number: int) -> None:
        """Give an entry to every tracker that has none, and warn of those that failed; whoever logs calls this."""
        self._put(entry, number, is_inline=True)
        self._report_failures()

    def _put(self, entry: Mapping[str, Any], number: int, *, is_inline: bool) -> None:
        if not self._open or os.getpid() != self._process:
            return
        for feed in self._open:
            if feed.is_inline == is_inline:
                feed.put(_copied(entry), number)

    @property
    def dropped(self) -> dict[str, int]:
        """Return how many entries each tracker missed because its queue was full, by the tracker's repr."""
        return {feed.name: feed.dropped for feed in self._all}

    def close(self, time_limit: float = CLOSING_TIME) -> None:
        """Let every tracker empty its queue and close, all at once, for so many seconds at most."""
        atexit.unregister(self.close)
        if os.getpid() != self._process:
            return
        feeds = self._open
        deadline = time.monotonic() + time_limit
        for feed in feeds:
            feed.finish()
        ended = [feed.wait(deadline) for feed in feeds]
        self._open = []
        for feed, has_ended in zip(feeds, ended, strict=True):
            if missed := feed.missed(has_ended, time_limit):
                self._warn(feed, missed)
        self._report_failures()

    def _report_failures(self) -> None:
        """Warn of each tracker that raised, here on the caller's thread."""
        for feed in self._all:
            if feed.failed_at == "log" and feed not in self._reported:
                self._reported.append(feed)
                self._warn(feed, f"failed and gets no more entries: {_shown(feed.error)}")

    def _warn(self, feed: Feed, what: str) -> None:
        remedy = ""
        if self._path is not None:
            kind = getattr(type(feed.tracker), "kind", None)
            tool = kind if isinstance(kind, str) and kind in TOOLS else "csv"
            command = f"noether-parity export {shlex.quote(str(self._path))} --to {tool}"
            remedy = f"; the entries are in the run directory: `{command}` writes them all"
        message = f"tracker {feed.name} {what}{remedy}"
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        except Exception:  # of `-W error`, which is not to end a training whose log is whole
            logging.getLogger(__name__).warning(message)


def _copied(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of an entry, so that no tracker changes what another one gets, or what the log has."""
    return {name: copy.deepcopy(value) if type(value) in (list, dict) else value for name, value in entry.items()}
