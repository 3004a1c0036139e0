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


def storable(value: Any) -> Any:
    """Return a value with an int beyond 64 bits as binary64; anything else as it is.

    >>> storable(2**70), storable(2**60 + 1)
    (1.1805916207174113e+21, 1152921504606846977)
    """
    is_wide = isinstance(value, int) and not -(2**63) <= value < 2**63
    return as_float(value) if is_wide else value
