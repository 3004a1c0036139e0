"""Compute what is known of an array without its elements, in one pass over pieces that fit into a cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from noether_core.probes.fingerprint import flat_values, mixed_sums, value_bits, whole_fingerprint

REALS = ("mean", "std", "norm", "min", "max")
"""The statistics of real numbers, in the order in which they are kept."""

_PIECE = 2**15  # values
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Statistics:
    """Hold what is known of one array without its elements.

    Attributes:
        count: how many elements it has.
        mean, std: over its elements, `std` with ddof 0.
        norm: the root of the sum of squares.
        min, max: its extremes; NaN if any element is.
        fingerprint: of the multiset of its values; equal for any order, layout or sharding. Empty if it was not taken.
    """

    count: int
    mean: float
    std: float
    norm: float
    min: float
    max: float
    fingerprint: str = ""


class Measured(NamedTuple):
    """Hold an array's statistics as they are kept.

    Attributes:
        reals: float64 [5], as in `REALS`.
        sums: uint32 [2], what its fingerprint is made of.
    """

    reals: Array
    sums: Array


def measure(array: Any) -> Measured:
    """Measure an array of NumPy: count, mean, std, norm and extremes in binary64, and the sums of its fingerprint.

    Args:
        array: of bools, ints, floats or complex numbers, of which each is two values; of any shape. An empty one has NaN.

    Raises:
        NoetherError: for another dtype.

    >>> measure(np.array([[1.0, 3.0]], "float32")).reals.round(4).tolist()
    [2.0, 1.0, 3.1623, 1.0, 3.0]
    """
    values = flat_values(np.asarray(array))
    if not values.size:
        return Measured(np.full(len(REALS), math.nan), np.zeros(2, np.uint32))
    count, mean, spread, squares = 0, 0.0, 0.0, 0.0
    extremes, sums = [], np.zeros(2, np.uint64)
    memory = np.empty(min(_PIECE, values.size))
    with np.errstate(all="ignore"):
        for begin in range(0, values.size, _PIECE):
            piece = values[begin : begin + _PIECE]
            sums += np.array(mixed_sums(value_bits(piece)), np.uint64)
            wide = memory[: len(piece)]
            np.copyto(wide, piece, casting="unsafe")
            shortest = piece if piece.dtype == np.float32 else wide
            extremes += [float(shortest.min()), float(shortest.max())]
            own_mean, own_spread, own_squares = _moments(wide)
            squares += own_squares
            # T. Chan, G. Golub, R. LeVeque: Algorithms for computing the sample variance (1983)
            off, total = own_mean - mean, count + len(piece)
            spread += own_spread + off * off * count / total * len(piece)
            mean, count = mean + off / total * len(piece), total
        low, high = np.min(extremes), np.max(extremes)
        std = math.nan if spread != spread else math.sqrt(spread / count)
    if low == high:
        mean, std = low, 0.0
    reals = np.array([mean, std, math.sqrt(squares) if squares == squares else math.nan, low, high], np.float64)
    return Measured(reals, sums.astype(np.uint32))


def _moments(wide: Array) -> tuple[float, float, float]:
    """Return the mean of float64 values, which are overwritten, the sum of squares about it, and that about zero."""
    mean = float(wide.sum()) / len(wide)
    about_zero = mean * mean * len(wide)
    if not math.isfinite(about_zero):
        about_zero = float(np.einsum("i,i->", wide, wide))
    wide -= mean
    spread = float(np.einsum("i,i->", wide, wide))  # in one pass, and with no threads, which `@` would wait for
    return mean, spread, about_zero + spread if math.isfinite(about_zero) else about_zero


def statistics_of(array: Any) -> Statistics:
    """Return an array's statistics, with its fingerprint; see `measure`.

    >>> statistics_of([3.0, 4.0]).norm
    5.0
    """
    measured = measure(array)
    first, second = map(int, measured.sums)
    count = flat_values(np.asarray(array)).size
    return statistics_from(count, measured.reals, whole_fingerprint(first, second, count))


def statistics_from(count: int, reals: Array, fingerprint: int) -> Statistics:
    """Return statistics of what is kept of an array: its count, the reals of `REALS`, and its fingerprint as an int."""
    mean, std, norm, low, high = map(float, reals)
    return Statistics(count, mean, std, norm, low, high, f"{fingerprint:016x}")
