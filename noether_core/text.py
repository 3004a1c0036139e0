"""Put values into words that are safe and short on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from noether_core.silence import SILENT

MOST_MESSAGE = 10_000  # characters of a message
_MOST_TEXT = 200  # characters of a logged text that a table shows
_BARS = "▁▂▃▄▅▆▇█"
_ROUNDING = 1e-12  # of the larger of two means


def inert(text: str) -> str:
    r"""Return text with every character that could steer a terminal written as an escape.

    >>> inert("loss\x1b[31m")
    'loss\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def message(text: object, most: int = MOST_MESSAGE) -> str:
    r"""Return what a message says, its lines kept, but inert and cut to so many characters.

    >>> message("config.yaml:\n\x1b]0;title\x07")
    'config.yaml:\n\\x1b]0;title\\x07'
    >>> message("a" * 50, most=20)
    'aaaaaaaaaaaaaaaaaaaa… (30 more characters)'
    """
    words = str(text)
    rest = f"… ({len(words) - most} more characters)" if len(words) > most else ""
    return "\n".join(map(inert, words[:most].split("\n"))) + rest


def as_utf8(text: str) -> bytes:
    """Return text in UTF-8, half of a surrogate pair as an escape."""
    return text.encode("utf-8", "backslashreplace")


def for_json(value: Any) -> Any:
    r"""Return what every parser of JSON takes: what is not finite by its name, half of a surrogate pair as an escape.

    Keys of dicts become text; so does what JSON has no form for.

    >>> for_json({1: (float("nan"), "\ud800")})
    {'1': ['NaN', '\\ud800']}
    """
    if isinstance(value, Mapping):
        return {for_json(str(key)): for_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int | float | None):
        return value
    return as_utf8(str(value)).decode()


def number(value: Any) -> str:
    """Return a logged number in at most about ten characters, an int whole; of anything else the beginning.

    >>> number(0.123456789), number(True), number(12)
    ('0.123457', 'True', '12')
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    text = inert(str(value))
    return text if isinstance(value, int) or len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "…"


def numbers_apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers in six digits, or in as many as tell them apart.

    >>> numbers_apart(0.5, 0.25), numbers_apart(1.00826, 1.00826007)
    (('0.5', '0.25'), ('1.00826', '1.0082601'))
    """
    words = [(f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in range(6, 18)]
    return next((each for each in words if each[0] != each[1]), words[0])


def as_float(value: float | int) -> float:
    """Return a number as binary64; an int beyond it is an infinity.

    >>> as_float(True), as_float(-10**400)
    (1.0, -inf)
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@SILENT
def sparkline(values: Sequence[float | int] | np.ndarray[Any, Any], width: int = 24) -> str:
    """Return numbers as a line of bars, `·` for what is not finite; more than `width` are averaged in groups.

    What is apart by less than rounding may make of means is all one height.

    >>> sparkline([0.0, 1.0, 2.0, float("nan"), 4.0]), sparkline([0.1] * 1000, 8)
    ('▁▃▅·█', '▄▄▄▄▄▄▄▄')
    """
    is_array = isinstance(values, np.ndarray) and values.dtype != object
    numbers = np.asarray(values if is_array else [as_float(value) for value in values], np.float64)
    if len(numbers) > width:
        edges = [round(i * len(numbers) / width) for i in range(width + 1)]
        # infinities cancel to NaN, and what is not finite has no bar
        numbers = np.array([np.add.accumulate(numbers[a:b] / (b - a))[-1] for a, b in pairwise(edges)])
    finite = numbers[np.isfinite(numbers)].tolist()
    low, span = (min(finite) / 2, max(finite) / 2 - min(finite) / 2) if finite else (0.0, 0.0)  # halves cannot overflow
    if span < _ROUNDING * max(map(abs, finite), default=0.0):
        span = 0.0
    top = len(_BARS) - 1
    return "".join(
        "·" if not math.isfinite(value) else _BARS[round((value / 2 - low) / span * top) if span else top // 2]
        for value in numbers.tolist()
    )


def has_words(name: str, queries: Sequence[str]) -> bool:
    """Tell whether a name has every word of one of these queries somewhere, in any case of its letters; any name has, of none.

    >>> has_words("train/loss/U50", ["LOSS train", "lr"]), has_words("grad/norm", ["loss"]), has_words("grad/norm", [])
    (True, False, True)
    """
    return not queries or any(all(word in name.lower() for word in query.lower().split()) for query in queries)
