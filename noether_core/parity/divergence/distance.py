"""Measure how far two arrays, or what is known of them, are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from noether_core.silence import SILENT

Array = np.ndarray[Any, Any]

TINY = float(np.finfo(np.float32).tiny)  # below, binary32 is subnormal, which many kernels take for zero
CHUNK = 1 << 16  # elements at a time: two chunks in binary64 stay in a core's cache
SAMPLED = 1 << 16  # elements that a look at single elements takes of a larger array

BOUNDED = ("count", "mean", "std", "norm", "min", "max")
"""The statistics that bound a distance from below."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Hold how far two arrays are apart.

    Attributes:
        distance: ‖a − b‖ / max(‖a‖, ‖b‖): 0 for equal arrays and for those that are zero or subnormal in binary32, such as
            a zero and the number next to it; 2.0 at most; infinite where shapes differ, or where NaN or an infinity of one has
            no equal in the other.
        norm_a, norm_b: ‖a‖ and ‖b‖, over the elements that are finite in both.
        size: how many elements the larger one has.
    """

    distance: float
    norm_a: float
    norm_b: float
    size: int

    @property
    def norm(self) -> float:
        """The larger norm."""
        return max(self.norm_a, self.norm_b)


@SILENT
def measure(a: Array, b: Array) -> Measure:
    """Measure how far two arrays are apart, chunk by chunk in binary64.

    Axes of length one do not count: a column equals the vector of its elements.

    >>> measure(np.float32([3, 4]), np.float32([3, 4.5])).distance
    0.09245003270420485
    >>> measure(np.ones((2, 3)), np.ones((3, 2))).distance
    inf
    """
    if not same_places(a, b):
        return Measure(float("inf"), norm_of(a), norm_of(b), max(a.size, b.size))
    apart, square_a, square_b = _squares(a.reshape(-1), b.reshape(-1))
    if not np.isfinite(apart + square_a + square_b):
        return _measure_finite(a.reshape(-1), b.reshape(-1))
    return _of_squares(apart, square_a, square_b, a.size)


def same_places(a: Array, b: Array) -> bool:
    """Say whether two arrays have the same shape, but for axes of length one.

    >>> same_places(np.zeros((4, 1)), np.zeros(4)), same_places(np.zeros((4, 2)), np.zeros((2, 4)))
    (True, False)
    """
    return a.shape == b.shape or [n for n in a.shape if n != 1] == [n for n in b.shape if n != 1]


@SILENT
def norm_of(array: Array) -> float:
    """Return the root of the sum of squares of an array's finite elements.

    >>> norm_of(np.float32([3, 4, np.nan]))
    5.0
    """
    wide = np.asarray(array, np.float64).reshape(-1)
    return float(np.linalg.norm(wide[np.isfinite(wide)]))


def _of_squares(apart: float, square_a: float, square_b: float, size: int) -> Measure:
    norm_a, norm_b = float(np.sqrt(square_a)), float(np.sqrt(square_b))
    largest = max(norm_a, norm_b)
    is_zero = largest <= TINY * np.sqrt(size)
    return Measure(0.0 if is_zero else float(np.sqrt(apart)) / largest, norm_a, norm_b, size)


def _squares(a: Array, b: Array) -> tuple[float, float, float]:
    """Return ‖a − b‖², ‖a‖² and ‖b‖² of flat arrays of one length."""
    most = min(CHUNK, a.size)
    wide_a, wide_b = np.empty(most), np.empty(most)
    apart = square_a = square_b = 0.0
    for start in range(0, a.size, CHUNK):
        length = min(CHUNK, a.size - start)
        part_a, part_b = wide_a[:length], wide_b[:length]
        part_a[...] = a[start : start + length]
        part_b[...] = b[start : start + length]
        square_a += float(part_a @ part_a)
        square_b += float(part_b @ part_b)
        part_a -= part_b
        apart += float(part_a @ part_a)
    return apart, square_a, square_b


def _measure_finite(a: Array, b: Array) -> Measure:
    """Measure arrays with NaN, infinities, or squares beyond binary64."""
    wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(wide_a) & np.isfinite(wide_b)
    scale = max(np.abs(wide_a[finite]).max(initial=0.0), np.abs(wide_b[finite]).max(initial=0.0)) or 1.0
    kept_a, kept_b = wide_a[finite] / scale, wide_b[finite] / scale
    found = _of_squares(*_squares(kept_a, kept_b), a.size)
    alike = np.array_equal(wide_a[~finite], wide_b[~finite], equal_nan=True)
    distance = found.distance if alike else float("inf")
    return Measure(distance, found.norm_a * scale, found.norm_b * scale, a.size)


@SILENT
def distances_of_rows(a: Array, b: Array) -> Array:
    """Return each row's distance, ‖a − b‖ / max(‖a‖, ‖b‖) along all axes but the first, binary64 `(rows,)`.

    >>> distances_of_rows(np.float32([[1, 0], [0, 2]]), np.float32([[1, 0], [0, 1]]))
    array([0. , 0.5])
    """
    rows = len(a) if a.ndim else 1
    wide_a, wide_b = (np.asarray(each, np.float64).reshape(rows, -1) for each in (a, b))
    largest = np.maximum(np.linalg.norm(wide_a, axis=1), np.linalg.norm(wide_b, axis=1))
    apart: Array = np.linalg.norm(wide_a - wide_b, axis=1) / np.where(largest > 0, largest, 1.0)
    return apart


@SILENT
def sampled(*arrays: Array, most: int = SAMPLED) -> list[Array]:
    """Return the same places of arrays of one size, flat, in binary64, at most about `most` of each.

    >>> sampled(np.arange(6), most=3)
    [array([0., 2., 4.])]
    """
    stride = max(1, -(-arrays[0].size // most))
    return [np.asarray(each.reshape(-1)[::stride], np.float64) for each in arrays]


@SILENT
def median_ulps(a: Array, b: Array) -> float | None:
    """Return the median difference in units in the last place of binary32, over at most 65,536 elements.

    Where an array is coarser than binary32, such as bfloat16, the units are still binary32's. Of what has no elements, or
    of other shapes, None.

    >>> median_ulps(np.float32([1, 2]), np.nextafter(np.float32([1, 2]), np.float32(3)))
    1.0
    """
    if not a.size or not same_places(a, b):
        return None
    ordered = [_ordered(each) for each in sampled(a, b)]
    return float(np.median(np.abs(ordered[0] - ordered[1])))


def _ordered(values: Array) -> Array:
    """Return binary32's numbers as integers that count from zero in units in the last place."""
    bits = np.nan_to_num(values.astype(np.float32)).view(np.int32).astype(np.int64)
    ordered: Array = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return ordered


@SILENT
def same_multiset(a: Array, b: Array, tolerance: float = 1e-6) -> bool:
    """Say whether two arrays hold the same values in any order, each up to a relative tolerance of the largest.

    >>> same_multiset(np.float32([1, 2, 3]), np.float32([3, 1, 2])), same_multiset(np.zeros(2), np.zeros(3))
    (True, False)
    """
    if a.size != b.size:
        return False
    sorted_a, sorted_b = (np.sort(np.asarray(each, np.float64), axis=None) for each in (a, b))
    return measure(sorted_a, sorted_b).distance <= tolerance


@SILENT
def bounds(a: Mapping[str, Array], b: Mapping[str, Array]) -> Array:
    """Return what statistics say of distances, at least: binary64, as long as the columns.

    Of arrays of n elements, |‖a‖ − ‖b‖|, √n·|mean a − mean b|, √n·|std a − std b|, |max a − max b| and |min a − min b| are
    all at most ‖a − b‖ (the triangle inequality of the norm, of projections and of the maximum). So each of them over the
    larger norm is at most the distance. Equal fingerprints say that the multisets are the same: 0, whatever the order. Other
    counts: infinite.

    Args:
        a: columns by name: `count`, `mean`, `std`, `norm`, `min`, `max`, and `fingerprint` if there is one.
        b: the other's, for the same updates.
    """
    root = np.sqrt(np.asarray(a["count"], np.float64))
    weights = {"mean": root, "std": root, "norm": 1.0, "min": 1.0, "max": 1.0}
    apart = np.zeros(len(root))
    finite = np.ones(len(root), bool)
    for name, weight in weights.items():
        first, second = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
        both = np.isfinite(first) & np.isfinite(second)
        alike = both | (first == second) | (np.isnan(first) & np.isnan(second))
        finite &= alike
        apart = np.maximum(apart, np.where(both, np.abs(first - second) * weight, 0.0))
    largest = np.fmax(np.asarray(a["norm"], np.float64), np.asarray(b["norm"], np.float64))
    found = np.where(
        (apart > 0) & (largest > 0), apart / np.where(largest > 0, largest, 1.0), np.where(apart > 0, 2.0, 0.0)
    )
    found = np.where(finite & (np.asarray(a["count"]) == np.asarray(b["count"])), np.minimum(found, 2.0), np.inf)
    if "fingerprint" in a and "fingerprint" in b:
        marks_a, marks_b = np.asarray(a["fingerprint"]), np.asarray(b["fingerprint"])
        taken = marks_a.astype(bool) if marks_a.dtype.kind == "u" else marks_a != ""
        found = np.where((marks_a == marks_b) & taken, 0.0, found)
    return np.asarray(found)
