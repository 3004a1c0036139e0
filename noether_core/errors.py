"""Name what can go wrong. Each message says what arrived, what was expected, and what to do."""

from __future__ import annotations

import difflib
import logging
import sys
import warnings
from collections.abc import Iterable, Mapping
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

from noether_core.text import message


class NoetherError(Exception):
    """Mark every error that these packages raise on purpose (config errors are pydantic's `ValidationError`).

    Its text is inert: whatever a file holds that it quotes cannot steer the terminal that a traceback is printed to.
    """

    def __str__(self) -> str:
        return message(Exception.__str__(self))  # KeyError's own would show the message's repr


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
    """Report NaN or infinities that a config with `nonfinite: raise` refuses.

    Attributes:
        capsule: the file that has the newest values of all keys, for `noether-parity show`; None if none was written.
    """

    capsule: Path | None = None


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


class RunDirectoryError(NoetherError, OSError):
    """Report a run directory that cannot be made or written."""


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


_MOST_NAME = 500  # characters of one name in a message
_MOST_OPTIONS = 2000  # that a closest one is sought among
_INNER = ("noether_core", "noether_jax", "noether_torch", "pydantic", "contextlib")


def warn(text: str) -> None:
    """Warn, pointing at the line outside of these packages that led here."""
    warnings.warn(message(text), UserWarning, stacklevel=_level())


def _level() -> int:
    """Return the `stacklevel` of the line outside of these packages that led to our caller's call."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER:
        frame, level = frame.f_back, level + 1
    return level


def tell(text: str) -> None:
    """Warn of what is to stop nothing, as `warn` does; where warnings are errors, by `logging`."""
    if not text:
        return
    try:
        warnings.warn(message(text), RuntimeWarning, stacklevel=_level())
    except RuntimeWarning:
        logging.getLogger("noether_core").error(message(text))


def suggest(name: str, options: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest of `options`, or an empty string.

    >>> suggest("los", ["loss", "accuracy"])
    " Did you mean 'loss'?"
    """
    if len(name) > _MOST_NAME:  # the search takes the product of the lengths
        return ""
    candidates = [option for option in islice(options, _MOST_OPTIONS) if len(option) <= _MOST_NAME]
    folded = {option.casefold(): option for option in candidates}
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    close = close or [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)]
    return f" Did you mean {close[0]!r}?" if close else ""


def refuse_unexpected(owner: type, unknown: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raise `TypeError` for keyword arguments that a class does not take, with the closest of those that it takes.

    Args:
        owner: the class; what its bases take, it takes.
        unknown: names of the arguments that nobody took.
        known: names of others that it takes.

    >>> refuse_unexpected(RunLockedError, ["mesage"])
    Traceback (most recent call last):
    TypeError: RunLockedError got an unexpected argument 'mesage'. Did you mean 'message'?
    """
    for name in unknown:
        takes = [
            each.name
            for base in owner.__mro__
            if "__init__" in vars(base)
            for each in signature(vars(base)["__init__"]).parameters.values()
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self"
        ]
        raise TypeError(f"{owner.__name__} got an unexpected argument {name!r:.200}.{suggest(name, [*takes, *known])}")


def listing(names: Iterable[str], most: int = 20) -> str:
    """Return names quoted and joined, cut after `most` with a count of the rest.

    >>> listing(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    quoted = [f"{name!r:.{_MOST_NAME}}" for name in names]
    shown, rest = ", ".join(quoted[:most]) or "none", len(quoted) - most
    return shown if rest <= 0 else f"{shown} and {rest} more"
