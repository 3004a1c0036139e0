"""Round exact fractions once: what decides where `rounding.py` cannot, a number at a time."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

Float = type[np.floating[Any]]


def exact(expansion: tuple[Any, ...]) -> Fraction:
    """Return the number that an expansion of finite numbers on the host stands for."""
    return sum((Fraction(float(part)) for part in expansion), Fraction(0))


def root(value: Fraction) -> Fraction:
    """Return a square root to 120 bits or more, the last one odd where bits are left, so that rounding it once is right."""
    if value == 0:
        return value
    shift = 2 * max(0, 128 - (value.numerator.bit_length() - value.denominator.bit_length()) // 2)
    scaled, rest = divmod(value.numerator << shift, value.denominator)
    found = math.isqrt(scaled)
    if found * found != scaled or rest:
        found |= 1
    return Fraction(found, 1 << (shift // 2))


def nearest(value: Fraction, dtype: Float) -> float:
    """Return the number of `dtype` (float32 or float64) nearest to an exact value, ties to even.

    Rounding to binary64 and then to float32 could round twice. Rounding to odd in between cannot (Boldo and Melquiond,
    IEEE Transactions on Computers 57, 2008).
    """
    try:
        wide = float(value)  # correctly rounded
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    if dtype is np.float64 or Fraction(wide) == value:
        return _cast(wide, dtype)
    if not int(np.float64(wide).view(np.int64)) & 1:
        wide = math.nextafter(wide, math.inf if value > Fraction(wide) else -math.inf)
    return _cast(wide, dtype)


def _cast(wide: float, dtype: Float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(dtype(wide))
