"""Compute one key's number in exact fractions: where rounding in vectors leaves it open, or values were not finite."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from noether_core.algebra.exact import Float, exact, nearest, root
from noether_core.algebra.sums import Statistics, each
from noether_core.config.tracking import Reduction
from noether_core.reduce.partial import Partials


def compute_exactly(reduction: Reduction, partials: Partials, at: int, *, skip: bool) -> float | int | None:
    """Return a reduction of the key at a place, of float32 or float64 already if it is a float; None if there is none."""
    statistics = each(lambda vector: vector[at], partials.statistics)
    elements, is_whole, is_weighted = int(partials.elements[at]), bool(partials.whole[at]), bool(partials.weighted[at])
    if skip:
        elements -= int(statistics.nan + statistics.positive + statistics.negative)
        statistics = statistics._replace(nan=0, positive=0, negative=0)
    dtype = np.float64 if partials.wide[at] else np.float32
    if reduction in {"min", "max"}:
        return _extreme(reduction, statistics, is_whole, dtype)
    if reduction == "sum":
        return _sum(statistics, dtype, is_whole)
    if not partials.elements[at]:
        return None if skip else math.nan
    return _moment(reduction, statistics, elements, is_weighted, dtype)


def _extreme(reduction: Reduction, statistics: Statistics, is_whole: bool, dtype: Float) -> float | int | None:
    if int(statistics.nan):
        return math.nan
    sign = 1 if reduction == "min" else -1
    if int(statistics.negative if sign > 0 else statistics.positive):
        return -sign * math.inf
    parts = statistics.minimum if sign > 0 else statistics.maximum
    if not math.isfinite(parts[0]):  # no finite value: the other infinity, or nothing at all
        return sign * math.inf if int(statistics.positive if sign > 0 else statistics.negative) else None
    return _whole(parts) if is_whole else float(dtype(float(exact(parts))))


def _sum(statistics: Statistics, dtype: Float, is_whole: bool) -> float | int:
    beyond = _nonfinite_sum(statistics)
    if beyond is not None:
        return beyond
    if not all(map(math.isfinite, statistics.total)):
        return float(statistics.total[0])
    return _whole(statistics.total) if is_whole else nearest(exact(statistics.total), dtype)


def _whole(parts: tuple[Any, ...]) -> int:
    return sum(map(int, parts))


def _moment(reduction: Reduction, statistics: Statistics, count: int, is_weighted: bool, dtype: Float) -> float | None:
    """Return a mean, a variance or a standard deviation, of weighted values if there are weights."""
    beyond = _nonfinite_sum(statistics)
    if beyond is not None:
        return beyond if reduction == "mean" else math.nan
    total = _finite(statistics.weighted if is_weighted else statistics.total)
    mass = _finite(statistics.weights) if is_weighted else Fraction(count)
    if isinstance(total, float) or isinstance(mass, float):
        return math.nan if isinstance(mass, float) else float(total)
    if mass == 0:
        return None
    mean = total / mass
    if reduction == "mean":
        return nearest(mean, dtype)
    squares = _finite(statistics.squares)
    if isinstance(squares, float):
        return math.inf
    value = max(squares / mass - mean**2, Fraction(0))
    return nearest(value if reduction == "var" else root(value), dtype)


def _nonfinite_sum(statistics: Statistics) -> float | None:
    """Return what IEEE 754 addition would make of the values that are not finite; None if there are none."""
    positive, negative = int(statistics.positive), int(statistics.negative)
    if int(statistics.nan) or (positive and negative):
        return math.nan
    return math.inf if positive else -math.inf if negative else None


def _finite(expansion: tuple[Any, ...]) -> Fraction | float:
    """Return the number an expansion stands for, or the first part of one that left the range of its dtype."""
    return exact(expansion) if all(math.isfinite(part) for part in expansion) else float(expansion[0])
