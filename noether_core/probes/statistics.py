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
    memory, other = (np.empty(min(_PIECE, values.size)) for _ in range(2))
    with np.errstate(all="ignore"):
        for begin in range(0, values.size, _PIECE):
            piece = values[begin : begin + _PIECE]
            sums += np.array(mixed_sums(value_bits(piece)), np.uint64)
            wide, product = memory[: len(piece)], other[: len(piece)]
            np.copyto(wide, piece, casting="unsafe")
            extremes += [wide.min(), wide.max()]
            squares += np.multiply(wide, wide, out=product).sum()
            own_mean = wide.sum() / len(piece)
            wide -= own_mean
            own_spread = np.multiply(wide, wide, out=product).sum()
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
