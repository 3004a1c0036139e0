"""Name what can go wrong. Each message says what arrived, what was expected, and what to do."""

from __future__ import annotations

import difflib
import logging
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any


class NoetherError(Exception):
    """Mark every error that these packages raise on purpose (config errors are pydantic's `ValidationError`)."""

    __str__ = Exception.__str__  # KeyError's own would show the message's repr


class ConfigFileError(NoetherError):
    """Report a config file that cannot be read as a list of callbacks."""


class ScheduleError(NoetherError, ValueError):
    """Report an iteration, counter or interval that cannot be built or compared."""


class UpdateOutputError(NoetherError, ValueError):
    """Report an update output that cannot be tracked: its key, type, dtype or shape."""


class MissingKeyError(NoetherError, KeyError):
    """Report an exact key that the step's update outputs do not have."""


class DuplicateKeyError(NoetherError, KeyError):
    """Report a key that is logged twice for one update."""


class HookOrderError(NoetherError, RuntimeError):
    """Report hooks called in an order that would give wrong numbers."""


class NonFiniteError(NoetherError, ArithmeticError):
    """Report NaN or infinities that a config with `nonfinite: raise` refuses."""


class RunFormatError(NoetherError, ValueError):
    """Report a file of a run directory that is damaged or of another format."""


class RunLockedError(NoetherError, RuntimeError):
    """Report a run directory that another run, or another process, is writing to.

    Attributes:
        holder: what is known of that process, such as its `pid` and `host`.
    """

    def __init__(self, message: str, holder: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.holder = dict(holder or {})


class ProcessesMissingError(NoetherError, TimeoutError):
    """Report processes that did not come to an interval's end within the time limit.

    Attributes:
        missing: their numbers.
    """

    def __init__(self, message: str, missing: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class MissingDependencyError(NoetherError, ImportError):
    """Report an optional package that a feature needs and this environment lacks."""


_INNER = ("noether_core", "noether_jax", "noether_torch", "pydantic", "contextlib")


def warn(message: str) -> None:
    """Warn, pointing at the line outside of these packages that led here."""
    warnings.warn(message, UserWarning, stacklevel=_level())


def _level() -> int:
    """Return the `stacklevel` of the line outside of these packages that led to our caller's call."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER:
        frame, level = frame.f_back, level + 1
    return level


def tell(message: str) -> None:
    """Warn of what is to stop nothing, as `warn` does; where warnings are errors, by `logging`."""
    if not message:
        return
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=_level())
    except RuntimeWarning:
        logging.getLogger("noether_core").error(message)


def suggest(name: str, options: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest of `options`, or an empty string.

    >>> suggest("los", ["loss", "accuracy"])
    " Did you mean 'loss'?"
    """
    candidates = list(options)
    folded = {option.casefold(): option for option in candidates}
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    close = close or [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)]
    return f" Did you mean {close[0]!r}?" if close else ""


def listing(names: Iterable[str], most: int = 20) -> str:
    """Return names quoted and joined, cut after `most` with a count of the rest.

    >>> listing(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    quoted = [repr(name) for name in names]
    shown, rest = ", ".join(quoted[:most]) or "none", len(quoted) - most
    return shown if rest <= 0 else f"{shown} and {rest} more"
