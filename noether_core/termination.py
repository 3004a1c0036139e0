"""End a run when the process is told to terminate or its terminal is gone, and then let that have its effect."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from noether_core.forks import in_children
from noether_core.signal_handlers import Link, lasting

_OURS = ("noether_core", "noether_jax", "noether_torch")
_AGAIN = 0.005  # seconds until a signal that came within our code is sent again
_MOST_WAIT = 1.0  # seconds until it is no longer waited for

SIGNALS = tuple(number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None)


class Termination(Link):
    """Handle a signal where nobody else does: call `end`, then do what would have been done without this.

    A signal that comes while these packages run is handled when they have returned, a second later at most.

    Args:
        end: a method, told the signal's name and whether they have not; this does not keep alive what it is of.
        number: the signal.
    """

    def __init__(self, end: Callable[[str, bool], None], number: signal.Signals) -> None:
        self._number = number
        self._end = weakref.WeakMethod(end)
        self._is_over = False
        self._deadline: float | None = None

    def install(self) -> None:
        """Begin to handle the signal, if this is the main thread and nobody else but another run does."""
        found = signal.getsignal(self._number)
        before = lasting(found)
        is_ours = isinstance(found, Termination) and (before is signal.SIG_DFL or isinstance(before, Termination))
        is_free = found is signal.SIG_DFL and not _is_caught(self._number)
        if threading.current_thread() is threading.main_thread() and (is_ours or is_free):
            self.before = before
            signal.signal(self._number, self)
            in_children(self, Termination._forget)

    def remove(self) -> None:
        """Handle it no more."""
        self._is_over = True
        if self.before is None or threading.current_thread() is not threading.main_thread():
            return
        number, following = self._number, lasting(self)
        if signal.getsignal(number) is self:
            signal.signal(number, following)

    @property
    def is_over(self) -> bool:
        """Tell whether it is removed, or nobody has any more what it is to end."""
        return self._is_over or self._end() is None

    def _forget(self) -> None:
        """Leave a forked child as it would be without the handler."""
        number = self._number
        if signal.getsignal(number) is self:
            signal.signal(number, signal.SIG_DFL)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        is_inside = _is_ours(frame)
        now = time.monotonic()
        self._deadline = self._deadline or now + _MOST_WAIT
        if is_inside and now < self._deadline:
            _thread.start_new_thread(_send_again, (number,))
            return
        end = None if self._is_over else self._end()
        if end is not None:
            with contextlib.suppress(Exception, KeyboardInterrupt):  # the process is to end
                end(self._number.name, is_inside)
        self._is_over = True
        signal.signal(number, lasting(self) or signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _is_caught(number: signal.Signals) -> bool:
    """Tell whether a handler is in place that Python does not know: a library's, such as that of `jax.distributed`."""
    with contextlib.suppress(OSError):  # only Linux says it
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _is_ours(frame: FrameType | None) -> bool:
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name != __name__ and name.partition(".")[0] in _OURS:
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    time.sleep(_AGAIN)
    os.kill(os.getpid(), number)
