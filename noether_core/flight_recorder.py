"""Keep the newest values of all that a run tracks, and write them to a capsule when it fails."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import platform
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from noether_core.algebra.position import decode_position
from noether_core.callbacks.base import CallbackBase
from noether_core.callbacks.build import tracking_callbacks
from noether_core.emit.capsule import Step, encode_capsule, write_capsule
from noether_core.emit.starts import versions
from noether_core.errors import NoetherError, NonFiniteError
from noether_core.reduce.accumulate import OutputAccumulator
from noether_core.reduce.latest import Latest
from noether_core.schedule import UNITS
from noether_core.text import message

STEPS = 32
_MOST_STEPS = 4096
_MOST_CAPSULES = 16  # of a run
_MOST_FRAMES = 30  # of a traceback, the innermost
_MOST_TEXT = 100_000  # characters of a config, or of a traceback

logger = logging.getLogger(__name__)


class FlightRecorder:
    """Keep the newest values of every tracked key where they are, on the device, and write them to the run directory.

    A run that fails does that by itself: at a value that is not finite, where a config says `nonfinite: raise`, and at whatever
    ends its `with` block or, outside of one, the process. Nothing here fails the run, or hides what did.

    Args:
        path: the run directory.
        callbacks: the run's.
        about: says where the run stands, its iteration, its config and all else that a capsule is to tell; None while it is not
            under way.
        steps: how many values of a key are kept; None: 32, but none of what compiled functions track; 0: there are no capsules.
        write: writes a file; tells whether it is there.

    Attributes:
        steps: how many values of each key are kept.
        in_compiled: how many of what a compiled function tracks.

    Raises:
        NoetherError: for another number of steps.
    """

    def __init__(
        self,
        path: Path,
        callbacks: Sequence[CallbackBase],
        about: Callable[[], dict[str, Any] | None],
        steps: int | None,
        write: Callable[[Path, bytes], bool],
    ) -> None:
        require_steps(steps, "Run")
        self.steps, self.in_compiled = STEPS if steps is None else steps, steps or 0
        self._path, self._callbacks, self._about = path, tracking_callbacks(callbacks), about
        self._write_file = write
        self._written = 0
        at_exit = partial(_write_at_exit, weakref.ref(self))
        atexit.register(at_exit)
        weakref.finalize(self, atexit.unregister, at_exit).atexit = False
        for source in (source for callback in self._callbacks for source in callback.sources):
            if isinstance(source, OutputAccumulator) and self.steps:
                source.keep_recent(self.steps)

    def see(self, errors: Sequence[Exception]) -> None:
        """Write a capsule for each error that is of values which are not finite."""
        for error in errors:
            if isinstance(error, NonFiniteError):
                self.write(error)

    def write(self, reason: BaseException | str) -> Path | None:
        """Write a capsule, and return its path; None where there is none to be written, or it cannot be.

        Args:
            reason: what ends the run: an exception, which gets a note of it, or the name of a signal. Of one that says that all
                went well, such as `SystemExit(0)`, there is none, and of each error of values one. Nor is there one before
            anything is tracked: it would hold nothing.
        """
        if isinstance(reason, NonFiniteError) and reason.capsule is not None:
            return reason.capsule
        if not self.steps or self._written >= _MOST_CAPSULES or _is_well(reason):
            return None
        path: Path | None
        try:
            if (about := self._about()) is None:
                return None
            notes: list[str] = []
            values = list(self._values(notes))
            if not values and not notes:
                return None
            self._written += 1
            path = self._write(reason, about, values, notes)
            told = f"the newest values of all keys: noether-parity show {str(path)!r}"
        except Exception as error:  # the run's own error is the one to see
            path, told = None, f"no capsule of the newest values could be written: {error!r:.500}"
        if isinstance(reason, NonFiniteError):
            reason.capsule = path
        if isinstance(reason, BaseException):
            with contextlib.suppress(Exception):
                reason.add_note(told)
        else:
            logger.warning("%s: %s", reason, message(told))
        return path

    def _write(
        self, reason: BaseException | str, about: dict[str, Any], values: Sequence[_Newest], notes: Sequence[str]
    ) -> Path:
        iteration = about["iteration"]
        what = {
            "reason": _described(reason),
            **about,
            "config": about["config"][:_MOST_TEXT],
            "time": time.time(),
            "host": platform.node(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "versions": versions(),
            "notes": notes,
        }
        name = "_".join(f"{unit[0].upper()}{iteration[unit]}" for unit in UNITS)
        return write_capsule(self._path, name, encode_capsule(what, values, self.steps), self._write_file)

    def _values(self, notes: list[str]) -> Iterator[_Newest]:
        """Yield the newest values of each key; what could not be read is noted."""
        seen: set[str] = set()
        for callback in self._callbacks:
            for source in callback.sources:
                try:
                    found = source.newest()
                except Exception as error:  # the device may be what failed
                    notes.append(message(f"{callback}: its newest values could not be read: {error!r}", 500))
                    continue
                if found is None:
                    notes.append(
                        f"{callback}: what a compiled function tracked was not kept; Run(flight_recorder=N) keeps it"
                    )
                    continue
                for latest in found:
                    if latest.key not in seen:  # of another callback: the same values
                        seen.add(latest.key)
                        yield _Newest(latest, message(callback, 200))


@dataclass(frozen=True)
class _Newest:
    """Give the newest values of a key to a capsule."""

    latest: Latest
    callback: str

    @property
    def key(self) -> str:
        return self.latest.key

    @property
    def elements(self) -> int:
        return self.latest.elements

    @property
    def is_odd(self) -> bool:
        return self.latest.is_odd

    def newest(self, most: int) -> Iterator[tuple[Step, Any]]:
        for position, value in self.latest.newest(most):
            yield decode_position(position), value


def require_steps(steps: Any, who: str) -> None:
    """Raise `NoetherError` unless steps are a number of them that a flight recorder can keep, or None."""
    if steps is not None and (type(steps) is not int or not 0 <= steps <= _MOST_STEPS):
        raise NoetherError(
            f"{who} got flight_recorder={steps!r:.80}; expected how many of the newest values of each key to keep, at most"
            f" {_MOST_STEPS}, 0 to write no capsule, or None"
        )


def _write_at_exit(found: weakref.ref[FlightRecorder]) -> None:
    """Write a capsule where an exception that nobody handles has ended the process, outside of a `with` block."""
    recorder, error = found(), getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if recorder is not None and isinstance(error, BaseException):
        recorder.write(error)


def _is_well(reason: BaseException | str) -> bool:
    return isinstance(reason, GeneratorExit) or (isinstance(reason, SystemExit) and reason.code in (None, 0))


def _described(reason: BaseException | str) -> dict[str, str]:
    """Return what there is to say of what ended a run, whatever its class does when it is asked."""
    if isinstance(reason, str):
        return {"kind": reason, "message": "", "traceback": ""}
    try:
        text = message(reason)
    except Exception:
        text = "(its text cannot be had)"
    try:
        lines = traceback.format_exception(type(reason), reason, reason.__traceback__, limit=-_MOST_FRAMES)
        trace = "".join(lines)[-_MOST_TEXT:]
    except Exception:
        trace = ""
    return {"kind": type(reason).__qualname__, "message": text, "traceback": trace}
