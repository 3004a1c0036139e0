"""Compute what is known of arrays without their elements, in one pass over pieces that fit into a cache, by several threads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from noether_core.probes.fingerprint import (
    flat_values,
    float32_bits,
    float32s,
    has_float32s,
    mixed_sums,
    value_bits,
    whole_fingerprint,
)
from noether_core.probes.sharing import share
from noether_core.silence import SILENT

REALS = ("mean", "std", "norm", "min", "max")
"""The statistics of real numbers, in the order in which they are kept."""

_PIECE = 2**18  # values; what results depends on it, and on no number of threads
_ROW = 2**12  # values: for more than 10,000 OpenBLAS wakes its threads, which spin until they are woken again
_LOSS = 16.0  # by which a difference of sums may be less exact than these
_FOR_A_THREAD = 2**18  # values at least: to start one takes as long as to measure a part of these
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
    """Hold the statistics of an array, or of several, as they are kept.

    Attributes:
        reals: float64 [5], as in `REALS`, or [arrays, 5].
        sums: uint32 [2], what its fingerprint is made of, or [arrays, 2].
    """

    reals: Array
    sums: Array


def measure(array: Any) -> Measured:
    """Measure an array of NumPy: mean, std, norm and extremes in binary64, and the sums of its fingerprint.

    Args:
        array: of bools, ints, floats or complex numbers, of which each is two values; of any shape. An empty one has NaN.

    Raises:
        NoetherError: for another dtype.

    >>> measure(np.array([[1.0, 3.0]], "float32")).reals.round(4).tolist()
    [2.0, 1.0, 3.1623, 1.0, 3.0]
    """
    found = measure_all([array])
    return Measured(found.reals[0], found.sums[0])


def measure_all(arrays: Sequence[Any], threads: int = 1) -> Measured:
    """Measure arrays as `measure` does each, to the bit, whatever the number of threads.

    Args:
        arrays: as `measure` takes them.
        threads: how many may work at a time; of few values fewer do.

    Raises:
        NoetherError: for another dtype.

    >>> measure_all([[1.0, 3.0], [5.0]], threads=2).reals[:, 0].tolist()
    [2.0, 5.0]
    """
    values = [flat_values(np.asarray(array)) for array in arrays]
    places = [(each, begin) for each in values for begin in range(0, len(each), _PIECE)]
    reals, sums = np.empty((len(places), len(_TERMS))), np.empty((len(places), 2), np.uint64)

    @SILENT
    def work(tasks: Iterator[int]) -> None:
        size = min(_PIECE, max(map(len, values), default=0))
        memory = np.empty(size), np.empty(size, np.float32)
        for at in tasks:
            each, begin = places[at]
            reals[at], sums[at] = _of_piece(each[begin : begin + _PIECE], *memory)

    counts = np.array([len(each) for each in values], np.int64)
    share(range(len(places)), work, min(threads, int(counts.sum()) // _FOR_A_THREAD))
    return _joined(counts, reals, sums)


_TERMS = ("count", "total", "spread", "squares", "low", "high")  # of a piece


def _of_piece(piece: Array, wide: Array, short: Array) -> tuple[tuple[float, ...], tuple[int, int]]:
    """Return the terms of a piece, and the sums of its mixed bits; the last arguments are memory of float64 and float32."""
    wide, short = wide[: len(piece)], short[: len(piece)]
    if has_float32s(piece.dtype):
        real = float32s(piece, short)
        np.copyto(wide, real)
    else:
        np.copyto(wide, piece, casting="unsafe")
        real = wide
    low, high = float(real.min()), float(real.max())
    moments = _moments(wide)
    bits = value_bits(piece) if real is wide else float32_bits(short, low != low)
    return (len(piece), *moments, low, high), mixed_sums(bits, wide.view(np.uint32)[: len(bits)])


def _moments(wide: Array) -> tuple[float, float, float]:
    """Return the sum of float64 values, which may be overwritten, the sum of squares about their mean, and that about zero."""
    total, squares = float(wide.sum()), _squares(wide)
    mean = total / len(wide)
    spread = squares - mean * total
    if not spread * _LOSS >= squares:  # digits are lost, or it is no number
        wide -= mean
        spread = _squares(wide)
    return total, spread, squares


def _squares(wide: Array) -> float:
    """Return the sum of squares; by rows, so that it is made by one thread."""
    whole = len(wide) - len(wide) % _ROW
    rows, rest = wide[:whole].reshape(-1, _ROW), wide[whole:]
    return float(np.vecdot(rows, rows).sum() + np.vecdot(rest, rest))


@SILENT
def _joined(counts: Array, reals: Array, sums: Array) -> Measured:
    """Return what the terms of pieces, [pieces, 6] and [pieces, 2], come to for arrays of so many values, [arrays].

    The source of the sum of squares about the mean: T. Chan, G. Golub, R. LeVeque: Algorithms for computing the sample
    variance (1983).
    """
    found = Measured(np.full((len(counts), len(REALS)), math.nan), np.zeros((len(counts), 2), np.uint32))
    there = counts > 0
    if not len(reals):
        return found
    pieces = -(-counts[there] // _PIECE)
    begins = np.cumsum(pieces) - pieces
    count, total, spread, squares, low, high = reals.T
    whole = counts[there]
    mean = np.add.reduceat(total, begins) / whole
    apart = (total / count - np.repeat(mean, pieces)) ** 2 * count
    std = np.sqrt(np.add.reduceat(spread + apart, begins) / whole)
    norm = np.sqrt(np.add.reduceat(squares, begins))
    least, most = np.minimum.reduceat(low, begins), np.maximum.reduceat(high, begins)
    is_constant = least == most
    rows = [np.where(is_constant, least, mean), np.where(is_constant, 0.0, std), norm, least, most]
    found.reals[there] = np.stack(rows, 1)
    found.sums[there] = np.add.reduceat(sums, begins).astype(np.uint32)
    return found


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
