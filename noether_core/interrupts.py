"""Let what changes change as a whole: hold Ctrl-C back meanwhile, and take back what was interrupted nevertheless.

Ctrl-C is a signal, which Python answers between any two instructions of the main thread. `Interrupts` answers it later. What a
handler cannot hold back (a second Ctrl-C, an exception that another thread or a debugger raises here) finds a `Mark` to go back
to, or calls that may be made again.

Calls of several threads come one after the other, whole: `in_turn`.
"""

from __future__ import annotations

import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import wraps
from types import FrameType
from typing import Any, Self, TypeVar, cast

from noether_core.signal_handlers import Link, lasting

Handler = Callable[[int, FrameType | None], Any]
Method = TypeVar("Method", bound=Callable[..., Any])


class Interrupts:
    """Answer Ctrl-C after what is under way, by whatever handler the user has.

    One that comes when another has waited for a second is answered at once: what is under way may be waiting for a disk, or for
    another process. It listens in the main thread, and where SIGINT has a Python handler: elsewhere Ctrl-C raises nothing here.

    Args:
        patience: how many seconds one waits before another is answered at once.

    >>> interrupts = Interrupts()
    >>> with interrupts:
    ...     pass  # nothing comes in between

    Attributes:
        depth: above zero while it is held back.
        is_waiting: whether one has come meanwhile.
        lock: held by the thread whose call is under way; a signal handler on that thread may come in between.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self._patience = patience
        self._waits_since = 0.0
        self.depth = 0
        self.is_waiting = False
        self.lock = threading.RLock()
        self._handler: _Handler | None = None  # which has the place of the user's

    def listen(self) -> None:
        """Take the place of the user's handler until `release`."""
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and self._handler is None and threading.current_thread() is threading.main_thread():
            self._handler = _Handler(self, lasting(handler))
            signal.signal(signal.SIGINT, self._handler)

    def release(self) -> None:
        """Give the user's handler its place back, unless another one has taken it since."""
        handler = self._handler
        if handler is None:
            return
        handler.is_released = True  # if it stays, it passes all on
        is_there = signal.getsignal(signal.SIGINT) is handler
        if is_there and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, lasting(handler))
        self._handler = None

    def holds_back(self) -> bool:
        """Tell of one that has come whether it is held back; another one that will be answered stands for it."""
        now = time.monotonic()
        if self.depth and not self.is_waiting:
            self._waits_since, self.is_waiting = now, True
            if not self.depth:  # another thread has ended what was under way, and maybe not seen this one
                self.is_waiting = False
                return False
        elif not self.depth or now - self._waits_since >= self._patience:
            self.is_waiting = False
            return False
        return True

    def answer(self) -> None:
        """Answer the one that has come, if nothing is under way."""
        if self.is_waiting and not self.depth:
            self.is_waiting = False
            signal.raise_signal(signal.SIGINT)  # in the main thread, whichever this is

    def end(self) -> None:
        """End all that is under way, and answer the one that has come."""
        self.depth = 0
        if self.is_waiting:
            self.answer()

    def forget(self) -> None:
        """Forget what is under way: in a forked child, it is the parent's."""
        self.depth, self.is_waiting = 0, False
        self.lock = threading.RLock()  # another thread may have had it, which the child has not

    def __enter__(self) -> Self:
        self.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.depth = max(0, self.depth - 1)  # in a child that was forked within it is 0 already
        self.answer()


class _Handler(Link):
    """Ask `Interrupts` of each signal; what they do not hold back is for the handler before this."""

    def __init__(self, interrupts: Interrupts, before: Handler) -> None:
        self._interrupts = weakref.ref(interrupts)
        self.before = before
        self.is_released = False

    @property
    def is_over(self) -> bool:
        return self.is_released or self._interrupts() is None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        handler: Any = self
        while isinstance(handler, _Handler):  # of many runs, say: no call within a call
            interrupts = handler._interrupts()
            if interrupts is not None and not handler.is_released and interrupts.holds_back():
                return
            handler = handler.before
        handler(number, frame)


class Mark:
    """Remember the attributes of objects, to go back to them. What an attribute refers to is to be changed by nobody.

    >>> from types import SimpleNamespace
    >>> counts = SimpleNamespace(steps=1)
    >>> mark = Mark([counts]); counts.steps = 2; mark.go_back(); counts.steps
    1

    A `with` block that raises goes back.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        self._kept = [(now := vars(each), now.copy()) for each in objects]

    def go_back(self) -> None:
        """Give the objects the attributes that they had."""
        for attributes, kept in self._kept:
            attributes.update(kept)
            for name in attributes.keys() - kept.keys():
                del attributes[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.go_back()


def in_turn(method: Method) -> Method:
    """Let a method of what has `interrupts` wait until no other thread is in one of these; those of one thread may nest."""

    @wraps(method)
    def call(owner: Any, *arguments: Any, **named: Any) -> Any:
        with owner.interrupts.lock:  # the interpreter answers no signal between this and what lets go of it
            return method(owner, *arguments, **named)

    return cast("Method", call)


def complete(interrupt: BaseException, call: Callable[[], Any]) -> None:
    """Go on with what was interrupted by calling it again; of what it raises the interrupt, which the caller raises, tells."""
    try:
        call()
    except Exception as error:
        interrupt.add_note(f"after this interruption, this was raised too: {error!r}")
