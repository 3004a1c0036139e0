"""Write what a run logs and saves on a thread of its own, in the order given, so that training never waits for the disk.

What is handed over is with the operating system within a second (some hundredths, as a rule), so that it outlives the
process. Files are durable then, lines five seconds later, so that they outlive the machine. With `durability="flush"` a flush
waits until they are.

If the disk stalls or fails, nothing is raised. What it does not take is kept and tried again, with growing pauses, and what
comes after that waits: 256 MiB at most, where a line counts 1 KiB more than its bytes, and a file 64 KiB; three quarters of it
are for files. Who hands over more than that waits as long as the disk works; when it has not moved for two seconds, or fails,
what comes is dropped and counted.

Threads do not survive `os.fork`: in a forked child nothing is written; the parent goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from noether_core.emit.disk_thread import DiskThread, Job, Mark, Synced
from noether_core.emit.files import write_whole
from noether_core.emit.missing import Missing, words
from noether_core.errors import NoetherError, tell

Durability = Literal["interval", "flush"]
MOST_BYTES, LINE_COST, FILE_COST = 2**28, 2**10, 2**16
MOST_OF_FILES = 3 * MOST_BYTES // 4
MOST_DELAY = 1.0  # seconds until the operating system has what was handed over
PATIENCE = 2.0  # seconds in which a disk that works gets somewhere
CLOSING_PATIENCE = 10.0  # the same, when what is lost then is lost for good
_POLL = 0.05  # seconds
_CHUNK = 2**22  # bytes


_File = tuple[Path, bytes, bool, object]  # and what it keeps alive


class Disk:
    """Write jobs in the order they were given. The thread is there from the first one on.

    Args:
        durability: what `settle` waits for: `flush`, that all is durable; `interval`, nothing.

    Attributes:
        durability: as given.
        missing: what was dropped.
    """

    def __init__(self, durability: Durability = "interval") -> None:
        require_durability(durability, "Run")
        self.durability = durability
        self.missing = Missing()
        self._thread = DiskThread(self)
        self._cost_given = self._cost_settled = 0
        self._lock = threading.RLock()  # of who hands over; a signal handler may do so in the middle of that
        self._is_running = self._has_ended = self._is_told = False
        self._news: deque[str] = deque()
        self._process: int | None = None  # that writes
        self._at_exit = partial(_close_at_exit, weakref.ref(self))
        weakref.finalize(self, atexit.unregister, self._at_exit).atexit = False

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a LogWriter, or a callback that logs to one, cannot be copied or pickled: it writes to a file; make another one"
        )

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether this is a forked child of the process that writes."""
        return self._process is not None and self._process != os.getpid()

    @property
    def _is_idle(self) -> bool:
        """Tell whether there is neither a thread nor anything to write."""
        return not self._is_running and self._cost_given <= self._thread.cost_done

    @property
    def trouble(self) -> BaseException | None:
        """Return what keeps the disk from taking the next job; None while it works."""
        return self._thread.trouble

    # ------------------------------------------------------------------ handing over

    def put(self, job: Job) -> bool:
        """Hand a job over; tell whether it was not dropped."""
        if self.is_elsewhere:
            return False
        if self._has_ended or (not self._fits(job) and not self._wait_for_room(job)):
            job.lost(job.item)
            return False
        self.hand_over(job)
        return True

    def hand_over(self, job: Job) -> None:
        """Hand a job over, however much waits."""
        if self.is_elsewhere:
            return
        with self._lock:
            if self._cost_given <= self._thread.cost_done:
                self._thread.moved_at = time.monotonic()
            self._thread.given.put(job)
            self._cost_given += job.cost  # a moment later, so that Ctrl-C does not make it more than there is
            if not self._is_running:
                self._start()

    def put_file(self, path: Path, data: bytes, *, is_durable: bool = True, keeps: object = None) -> bool:
        """Hand over a whole file; tell whether it was not dropped.

        Args:
            path: the file.
            data: what it is to hold.
            is_durable: whether it is to outlive the machine.
            keeps: is kept alive until it is written.
        """
        return self.put(Job(self._write_file, (path, data, is_durable, keeps), len(data) + FILE_COST, self._lose_file))

    def call(self, function: Callable[[], None]) -> bool:
        """Hand over a call that does something with files; where it raises an OSError it is made again."""
        return self.put(Job(_call, function, LINE_COST, nothing))

    def note_written(self, file: Synced) -> None:
        """Note, on the thread, that a file is to be made durable."""
        self._thread.note_written(file)

    def _start(self) -> None:
        self._process = os.getpid()
        atexit.register(self._at_exit)
        self._is_running = self._thread.start()

    def _write_file(self, items: deque[_File]) -> None:
        path, data, is_durable, _ = items[0]
        self.write_now(path, data, is_durable=is_durable)
        items.popleft()

    def write_now(self, path: Path, data: bytes, *, is_durable: bool = True) -> None:
        """Write a whole file, on the thread."""
        write_whole(path, self._parts(data), is_durable=is_durable)

    def _parts(self, data: bytes) -> Iterator[memoryview]:
        for at in range(0, len(data), _CHUNK):
            self._thread.moved_at = time.monotonic()
            yield memoryview(data)[at : at + _CHUNK]

    def _lose_file(self, item: _File) -> None:
        self.missing.add_file("/".join(item[0].parts[-3:]))  # as in `update_outputs/U3/E0_U3_S3.safetensors`

    # ------------------------------------------------------------------ waiting

    @property
    def has_room(self) -> bool:
        """Tell whether there is room for much more."""
        return self._cost_given - self._thread.cost_done < MOST_BYTES // 2 and not self._has_ended

    def _fits(self, job: Job) -> bool:
        waits = self._cost_given - self._thread.cost_done
        return waits + job.cost <= (MOST_BYTES if job.is_line else MOST_OF_FILES) or waits <= 0

    @property
    def is_stuck(self) -> bool:
        """Tell whether the disk fails, or has not moved for a while."""
        is_busy = self._cost_given > self._thread.cost_done
        return self.trouble is not None or (is_busy and time.monotonic() - self._thread.moved_at > PATIENCE)

    def _wait_for_room(self, job: Job) -> bool:
        while not self._fits(job):
            if self.is_stuck:
                return False
            self._thread.hurry()
            time.sleep(0.001)
        return True

    def wait(self, *, is_durable: bool = False, patience: float = PATIENCE, insists: bool = False) -> bool:
        """Wait until all that was handed over is written; tell whether it is. If the disk stalls or fails, this gives up.

        Args:
            is_durable: whether until it is durable.
            patience: seconds that the disk may stall.
            insists: whether to wait where it stalls or fails already, and to have it tried again at once.
        """
        if self._is_idle or self.is_elsewhere:
            return True
        if self._has_ended or (self.is_stuck and not insists):
            return False
        return self._wait_for(Mark(queue.SimpleQueue(), is_durable), patience, insists=insists)

    def _wait_for(self, mark: Mark, patience: float, *, insists: bool) -> bool:
        thread = self._thread
        thread.given.put(mark)
        thread.hurry()
        since, done = time.monotonic(), thread.cost_done
        while True:
            with self._lock:
                if not thread.is_alive:  # it was told to end, or the interpreter does
                    thread.write_here()
            with contextlib.suppress(queue.Empty):
                mark.passed.get(timeout=_POLL)
                return True
            trouble = thread.trouble
            if trouble is not None and not insists:
                return False
            now = time.monotonic()
            since = now if thread.cost_done != done else max(since, thread.moved_at if trouble is None else 0.0)
            done = thread.cost_done
            if now - since > (patience if trouble is None else min(patience, PATIENCE)):
                return False
            if insists:
                thread.hurry()

    def settle(self) -> None:
        """Wait as `durability` says, and warn if the disk does not take what was handed over."""
        if self.durability == "flush" and self._cost_settled != self._cost_given:
            given = self._cost_given
            self.wait(is_durable=True)
            self._cost_settled = given
        self.report()

    def close(self, patience: float = CLOSING_PATIENCE) -> None:
        """Write all that waits, make it durable, and end the thread; what the disk does not take is dropped, with a warning."""
        if self._is_idle or self._has_ended or self.is_elsewhere:
            return
        if self._wait_for(Mark(queue.SimpleQueue(), is_durable=True, ends=True), patience, insists=True):
            self._thread.join(PATIENCE)
            said = self._last_words() if self.missing else ""
            self._thread, self._cost_given, self._is_running = DiskThread(self), 0, False
            tell(said)
        else:
            self._has_ended = True
            self._thread.abandon(PATIENCE)
            tell(self._last_words())
        while self._news:
            tell(self._news.popleft())
        atexit.unregister(self._at_exit)

    def when_still(self, call: Callable[[], None]) -> None:
        """Call when nothing is written any more: now, or when a call of the operating system that hangs has come back."""
        self._thread.when_still(call)

    # ------------------------------------------------------------------ what is wrong, in words

    def say(self, text: str) -> None:
        """Have a warning said, on the thread that hands over, when it next reports or closes."""
        self._news.append(text)

    def report(self) -> None:
        """Warn, once, if the disk does not take what was handed over; and of what there is to `say`."""
        while self._news:
            tell(self._news.popleft())
        cause = self._thread.first_trouble
        if self._is_told or (cause is None and not self.missing):
            return
        self._is_told = True
        tell(
            f"the disk {'has stalled' if cause is None else f'does not take what this run logs: {cause!s:.300}'}. Training goes"
            " on; what is logged and saved meanwhile waits in memory, and is written when the disk takes it, which is tried"
            f" every few seconds; what comes beyond {MOST_BYTES >> 20} MiB is dropped, and the log says what that was: make"
            " room, or look after the disk"
        )

    def _last_words(self) -> str:
        cause = self._thread.first_trouble or "it had stalled"
        if not self.missing:
            return (
                f"the disk did not make durable what this run logged ({cause!s:.300}); it is with the operating system"
            )
        return (
            f"missing in the run directory, for the disk did not take it ({cause!s:.300}): {words(self.missing.all())}; the"
            " newest entries are in `log_writer.log_entries`"
        )


def require_durability(durability: Any, owner: str) -> None:
    """Refuse what is no `Durability`, with the name of what was given it."""
    if durability not in get_args(Durability):
        raise NoetherError(f"{owner} got durability={durability!r:.80}; expected 'interval' or 'flush'")


def _close_at_exit(found: weakref.ref[Disk]) -> None:
    """Close, at the end of a program that did not."""
    if (disk := found()) is not None:
        disk.close(PATIENCE)


def nothing(item: Any) -> None:
    """Lose what nobody misses."""


def _call(items: deque[Callable[[], None]]) -> None:
    items[0]()
    items.popleft()
