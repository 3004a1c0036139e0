"""Write jobs one after the other on a thread; keep and try again what the disk does not take."""

from __future__ import annotations

import contextlib
import errno
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

LINGER = 0.05  # seconds that the thread waits for more to write at once
FSYNC_EVERY = 5.0  # seconds
_PAUSES = (0.1, 0.3, 1.0, 3.0, 5.0)  # seconds between two tries
_AT_ONCE = 1000  # lines
# of one file or its name, wherever it is; all else is the disk's, or that of the network behind it, and may pass
_OF_ONE_FILE = frozenset(
    code
    for name in (
        *("EACCES", "EPERM", "ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ELOOP", "EMLINK", "ENAMETOOLONG"),
        *("EILSEQ", "EINVAL", "EBADF", "EXDEV", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EOVERFLOW", "ESPIPE", "ETXTBSY"),
    )
    if (code := getattr(errno, name, None)) is not None
)


def is_passing(error: BaseException) -> bool:
    """Tell whether an error is the disk's, and may pass."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _OF_ONE_FILE


class Synced(Protocol):
    """List what is needed of a file that was written to."""

    def sync(self) -> None:
        """Make it durable."""


class Job(NamedTuple):
    """Hold something to write.

    Attributes:
        write: called with the item, or those of lines in a row that have the same `write`; takes out what is written.
        item: what it writes.
        cost: how much of the queue it takes.
        lost: called with the item if it is dropped.
        is_line: whether it is a line of the log, which is tried until the end, whatever the operating system says of it.
        number: of jobs with one number the first is done; the numbers grow. None: it has none.
    """

    write: Callable[[deque[Any]], None]
    item: Any
    cost: int
    lost: Callable[[Any], None]
    is_line: bool = False
    number: int | None = None


class Mark(NamedTuple):
    """Say when all before it is written: then `passed` has an item.

    Attributes:
        is_durable: whether it is to be durable too.
        ends: whether this is the end.
    """

    passed: queue.SimpleQueue[None]
    is_durable: bool
    ends: bool = False


class DiskThread:
    """Write jobs in the order they were given.

    Args:
        owner: who gives them; when nobody has it any more, the thread ends.

    Attributes:
        given: where the next ones are put; a signal handler may do so in the middle of that.
        cost_done: of all jobs that are no more.
        trouble: what keeps the disk from taking the next job; None while it works.
        first_trouble: what did so first.
        moved_at: `time.monotonic()` when a call of the operating system was made, or when it came back.
    """

    def __init__(self, owner: object) -> None:
        self._owner = weakref.ref(owner, self._end_of_owner)
        self.given: queue.SimpleQueue[Job | Mark] = queue.SimpleQueue()
        self.cost_done = 0
        self.trouble: BaseException | None = None
        self.first_trouble: BaseException | None = None
        self.moved_at = time.monotonic()
        self._newest = -1  # of the numbers
        self._hurried: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting: deque[Job | Mark] = deque()
        self._tries, self._sync_at = 0, 0.0
        self._unsynced: dict[Synced, None] = {}
        self._is_abandoned = self._is_given_up = False
        self._at_end: list[Callable[[], None]] = []
        self._thread: weakref.ref[threading.Thread] | None = None  # the interpreter holds it while it runs

    def _end_of_owner(self, _: object) -> None:
        self.given.put(Mark(queue.SimpleQueue(), is_durable=True, ends=True))

    def start(self) -> bool:
        """Start the thread, if need be; tell whether there can be one. Where not, what was given is written here and now."""
        if self.is_alive:  # Ctrl-C came before that could be told
            return True
        thread = threading.Thread(target=self._run, name="noether disk", daemon=True)
        self._thread = weakref.ref(thread)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or there are too many
            self.write_here()
            return False
        return True

    def write_here(self) -> None:
        """Write what was given on the caller's thread, as far as the disk takes it at once."""
        self._take_given()
        while self._waiting:
            self._do_first()
            if self.trouble is not None:
                return

    @property
    def is_alive(self) -> bool:
        """Tell whether the thread runs."""
        thread = None if self._thread is None else self._thread()
        return thread is not None and thread.is_alive()

    def hurry(self) -> None:
        """Have it write, or try again, at once."""
        self._hurried.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the thread's end."""
        if self._thread is not None and (thread := self._thread()) is not None:
            thread.join(seconds)

    def abandon(self, seconds: float) -> None:
        """Have it try each of those that wait once more, and then no more; what the disk does not take is lost."""
        self._is_abandoned = True
        self.hurry()
        if self.is_alive:
            self.join(seconds)
        else:
            self._try_each()
        self._take_given()
        self._is_given_up = True  # where it hangs
        for job in list(self._waiting):
            if isinstance(job, Job):
                job.lost(job.item)

    def when_still(self, call: Callable[[], None]) -> None:
        """Call when this writes no more: now, or at the thread's end."""
        self._at_end.append(call)
        if not (self._is_abandoned and self.is_alive):
            self._end()

    def _end(self) -> None:
        while self._at_end:
            self._at_end.pop()()

    # ------------------------------------------------------------------ on the thread

    def note_written(self, file: Synced) -> None:
        """Note that a file is to be made durable."""
        if not self._unsynced:
            self._sync_at = time.monotonic() + FSYNC_EVERY
        self._unsynced[file] = None

    def _run(self) -> None:
        while not self._is_abandoned:
            if not self._waiting:
                self._take_next()
            self._take_given()
            if self._unsynced and time.monotonic() >= self._sync_at and not self._try(self._sync):
                self._pause_after_failure()
            if self._waiting and self._do_first():
                return
        self._try_each()
        self._end()

    def _try_each(self) -> None:
        """Try each job once, so that what is written last, such as what is missing, comes after what the disk takes of them."""
        self._take_given()
        while self._waiting and not self._is_given_up:
            job = self._waiting[0]
            if isinstance(job, Job):
                items = deque([job.item])
                self._try(partial(job.write, items))
                if items:
                    job.lost(job.item)
            self._waiting.popleft()

    def _take_next(self) -> None:
        """Wait for the next job, at most until something is to be made durable."""
        wait = max(0.0, self._sync_at - time.monotonic()) if self._unsynced else None
        with contextlib.suppress(queue.Empty):
            self._take(self.given.get(timeout=wait))
            if self._waiting and isinstance(self._waiting[0], Job):
                self._pause(LINGER)

    def _take_given(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self.given.get_nowait())

    def _take(self, job: Job | Mark) -> None:
        if isinstance(job, Job) and job.number is not None:
            if job.number <= self._newest:
                self.cost_done += job.cost
                return
            self._newest = job.number
        self._waiting.append(job)

    def _pause(self, seconds: float) -> None:
        """Wait, unless somebody waits for us."""
        with contextlib.suppress(queue.Empty):
            self._hurried.get(timeout=seconds)
            while True:
                self._hurried.get_nowait()

    def _pause_after_failure(self) -> None:
        self._pause(_PAUSES[min(self._tries, len(_PAUSES)) - 1])

    def _do_first(self) -> bool:
        """Do the first of the jobs that wait, and those of its kind that follow; tell whether this is the end."""
        first = self._waiting[0]
        if isinstance(first, Mark):
            if first.is_durable and not self._try(self._sync):
                self._pause_after_failure()
                return self._owner() is None and self._tries > len(_PAUSES)
            self._waiting.popleft()
            first.passed.put(None)
            return first.ends
        items = deque(job.item for job in _alike(self._waiting, first))
        count = len(items)
        is_done = self._try(lambda: first.write(items))
        for _ in range(count - len(items)):
            self._pop()
        if not is_done:
            if len(items) < count:
                self._tries = 1
            self._after_failure(self._waiting[0] if items else None)
        return False

    def _pop(self) -> Job:
        job = self._waiting.popleft()
        assert isinstance(job, Job)
        self.cost_done += job.cost
        return job

    def _after_failure(self, job: Job | Mark | None) -> None:
        """Give a job up that no better disk would take, after some tries; else pause."""
        error = self.trouble
        may_pass = (
            error is None or is_passing(error) or (isinstance(error, OSError) and isinstance(job, Job) and job.is_line)
        )
        if job is not None and self._tries > len(_PAUSES) and not may_pass:
            given_up = self._pop()
            given_up.lost(given_up.item)
            self._tries, self.trouble = 0, None
        else:
            self._pause_after_failure()

    def _try(self, function: Callable[[], None]) -> bool:
        """Call a function; tell whether it raised nothing."""
        self.moved_at = time.monotonic()
        try:
            function()
        except BaseException as error:  # this thread goes on, whatever it is
            self._tries += 1
            error.__traceback__ = error.__context__ = error.__cause__ = None  # these hold what was to be written
            self.trouble, self.first_trouble = error, self.first_trouble or error
            return False
        finally:
            self.moved_at = time.monotonic()
        self._tries, self.trouble = 0, None
        return True

    def _sync(self) -> None:
        self._sync_at = time.monotonic() + FSYNC_EVERY
        for file in list(self._unsynced):
            file.sync()
            del self._unsynced[file]


def _alike(jobs: deque[Job | Mark], first: Job) -> Iterator[Job]:
    """Yield the first job, or lines that are written by what writes the first one."""
    for job in islice(jobs, _AT_ONCE if first.is_line else 1):
        if not isinstance(job, Job) or job.write != first.write:
            return
        yield job
