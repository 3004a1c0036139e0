"""Finish a key's interval: from what was accumulated to the numbers that are logged and the arrays that are saved.

The sums are taken as the exact fractions they are, and each result is rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from noether_core.algebra.expansion import exact
from noether_core.algebra.sums import Statistics
from noether_core.config.tracking import Reduction, TrackAdditionalOutputsCallbackConfig
from noether_core.reduce.partial import Partial

Scalar = float | int | bool
Float = type[np.floating[Any]]


@dataclass
class Finished:
    """Hold what one key gives at an interval's end.

    Attributes:
        values: each reduction's value, in its dtype and shape.
        scalars: log key to plain Python number.
        arrays: tensor name to array.
    """

    values: dict[Reduction, np.ndarray[Any, Any]] = field(default_factory=dict)
    scalars: dict[str, Scalar] = field(default_factory=dict)
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def finish(config: TrackAdditionalOutputsCallbackConfig, key: str, partial: Partial, update: int) -> Finished:
    """Return what a key gives at the end of an interval whose last update is `update`."""
    result = Finished()
    for reduction in config.reductions(key):
        value = _reduced(reduction, partial, update, skip=config.nonfinite == "skip")
        if value is None:
            continue
        array = _array(value, np.float64 if partial.tally.wide else np.float32)
        result.values[reduction] = array
        result.arrays[config.tensor_name(key, reduction)] = array
        if array.size == 1 and reduction != "stack":
            result.scalars[config.log_key(key, reduction)] = value if isinstance(value, int) else array.item()
    if bad := nonfinite(partial.sums):
        result.scalars[f"{key}/nonfinite/{config.interval}"] = bad
    return result


def nonfinite(sums: Statistics) -> int:
    """Return how many values were NaN or infinite."""
    return int(sums.nan) + int(sums.positive) + int(sums.negative)


def _array(value: np.ndarray[Any, Any] | float | int, dtype: Float) -> np.ndarray[Any, Any]:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, float):
        return np.asarray(value, dtype)
    fits = next(
        (kind for kind in (np.int64, np.uint64) if np.iinfo(kind).min <= value <= np.iinfo(kind).max), np.float64
    )
    return np.asarray(value, fits)


def _reduced(
    reduction: Reduction, partial: Partial, update: int, *, skip: bool
) -> np.ndarray[Any, Any] | float | int | None:
    """Return one reduction's value; None if there is none. A float is of float32 or float64 already."""
    if reduction == "last":
        return _last(partial, update, skip)
    if reduction == "stack":
        return stacked(partial.stack) if partial.stack else None
    sums = partial.sums
    if skip:
        count, sums = partial.tally.elements - nonfinite(sums), sums._replace(nan=0, positive=0, negative=0)
    else:
        count = partial.tally.elements
    if reduction == "count":
        return count
    dtype = np.float64 if partial.tally.wide else np.float32
    if reduction in {"min", "max"}:
        return _extreme(reduction, sums, partial.tally.whole)
    if reduction == "sum":
        return _sum(sums, dtype, partial.tally.whole)
    return _moment(reduction, sums, count, dtype)


def _last(partial: Partial, update: int, skip: bool) -> np.ndarray[Any, Any] | None:
    value = partial.last
    if value is None or partial.last_update != update:
        return None
    is_left_out = skip and value.size == 1 and not np.isfinite(value.astype(np.float64)).all()
    return None if is_left_out else value


def stacked(values: tuple[np.ndarray[Any, Any], ...]) -> np.ndarray[Any, Any]:
    """Return an interval's values along a new leading axis, in the widest dtype among them."""
    return np.stack(values)


def _extreme(reduction: Reduction, sums: Statistics, is_whole: bool) -> float | int | None:
    if int(sums.nan):
        return math.nan
    sign = 1 if reduction == "min" else -1
    if int(sums.negative if sign > 0 else sums.positive):
        return -sign * math.inf
    parts = sums.minimum if sign > 0 else sums.maximum
    if not math.isfinite(parts[0]):  # no finite value: the other infinity, or nothing at all
        return sign * math.inf if int(sums.positive if sign > 0 else sums.negative) else None
    value = exact(parts)
    return int(value) if is_whole else float(value)


def _sum(sums: Statistics, dtype: Float, is_whole: bool) -> float | int:
    beyond = _nonfinite_sum(sums)
    total = _finite(sums.total) if beyond is None else beyond
    if isinstance(total, float):
        return total
    return int(total) if is_whole else nearest(total, dtype)


def _moment(reduction: Reduction, sums: Statistics, count: int, dtype: Float) -> float | None:
    """Return a mean, a variance or a standard deviation, of weighted values if there are weights."""
    beyond = _nonfinite_sum(sums)
    if beyond is not None:
        return beyond if reduction == "mean" else math.nan
    is_weighted = bool(sums.weights)
    total = _finite(sums.weighted if is_weighted else sums.total)
    mass = _finite(sums.weights) if is_weighted else Fraction(count)
    if isinstance(total, float) or isinstance(mass, float):
        return math.nan if isinstance(mass, float) else float(total)
    if mass == 0:
        return None
    mean = total / mass
    if reduction == "mean":
        return nearest(mean, dtype)
    squares = _finite(sums.squares)
    if isinstance(squares, float):
        return math.inf
    variance = max(squares / mass - mean**2, Fraction(0))
    return nearest(variance, dtype) if reduction == "var" else nearest(_root(variance), dtype)


def _nonfinite_sum(sums: Statistics) -> float | None:
    """Return what IEEE 754 addition would make of the values that are not finite; None if there are none."""
    positive, negative = int(sums.positive), int(sums.negative)
    if int(sums.nan) or (positive and negative):
        return math.nan
    return math.inf if positive else -math.inf if negative else None


def _finite(expansion: tuple[Any, ...]) -> Fraction | float:
    """Return the number an expansion stands for, or the first part of one that left the range of its dtype."""
    return exact(expansion) if all(math.isfinite(part) for part in expansion) else float(expansion[0])


def _root(value: Fraction) -> Fraction:
    """Return a square root to 120 bits or more, the last one odd where bits are left, so that rounding it once is right."""
    if value == 0:
        return value
    shift = 2 * max(0, 128 - (value.numerator.bit_length() - value.denominator.bit_length()) // 2)
    scaled, rest = divmod(value.numerator << shift, value.denominator)
    root = math.isqrt(scaled)
    if root * root != scaled or rest:
        root |= 1
    return Fraction(root, 1 << (shift // 2))


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
