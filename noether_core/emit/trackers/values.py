"""Turn logged values into what the tools keep."""

from __future__ import annotations

import math
from typing import Any


def as_float(value: float | int) -> float:
    """Return a number as binary64; an int beyond it is an infinity.

    >>> as_float(True), as_float(-10**400)
    (1.0, -inf)
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def is_number(value: Any) -> bool:
    """Tell a number from text, a list or a dict."""
    return isinstance(value, bool | int | float)
