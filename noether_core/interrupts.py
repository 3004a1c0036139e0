"""Let what changes change as a whole: hold Ctrl-C back meanwhile, and take back what was interrupted nevertheless.

Ctrl-C is a signal, which Python answers between any two instructions of the main thread. `Interrupts` answers it later. What a
handler cannot hold back (a second Ctrl-C, an exception that another thread or a debugger raises here) finds a `Mark` to go back
to, or calls that may be made again.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Self

Handler = Callable[[int, FrameType | None], Any]


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
    """

    def __init__(self, patience: float = 1.0) -> None:
        self._patience = patience
        self._waits_since = 0.0
        self.depth = 0
        self.is_waiting = False
        self._handler: Handler = self._handle  # one object, to be found again
        self._user: Handler | None = None
        self._is_released = False

    def listen(self) -> None:
        """Take the place of the user's handler until `release`."""
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and self._user is None and threading.current_thread() is threading.main_thread():
            self._user = handler
            signal.signal(signal.SIGINT, self._handler)

    def release(self) -> None:
        """Give the user's handler its place back, unless another one has taken it since."""
        self._is_released = True  # if it stays, it passes all on
        if self._user is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is self._handler:
            user = self._user
            while (
                isinstance(other := getattr(user, "__self__", None), Interrupts) and other._is_released and other._user
            ):
                user = other._user
            signal.signal(signal.SIGINT, user)
            self._user = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.depth and not self.is_waiting:
            self.is_waiting, self._waits_since = True, now
        elif self.depth and now - self._waits_since < self._patience:
            pass  # that one will be answered
        elif self._user is not None:
            self.is_waiting = False
            self._user(number, frame)

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

    def __enter__(self) -> Self:
        self.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        self.answer()


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


def complete(interrupt: BaseException, call: Callable[[], Any]) -> None:
    """Go on with what was interrupted by calling it again; of what it raises the interrupt, which the caller raises, tells."""
    try:
        call()
    except Exception as error:
        interrupt.add_note(f"after this interruption, this was raised too: {error!r}")
