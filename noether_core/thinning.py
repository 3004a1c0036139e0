"""Leave out points of a curve that nobody could see, and keep every extreme."""

from __future__ import annotations

from typing import Any

import numpy as np

from noether_core.silence import SILENT

Array = np.ndarray[Any, Any]
_WHOLE = 2  # so few rows or columns stay as they are


def kept_rows(values: Array, most: int) -> Array:
    """Return which points of a curve to keep: in each of `most / 2` stretches the lowest and the highest.

    A picture that is no wider than `most / 2` pixels is the same to the eye: each column has the line's whole height. The first
    and the last point are kept too, and the first of each stretch that is not finite. (Min-max aggregation, as compared in
    Jugel et al., "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014.)

    Args:
        values: float64, [points].
        most: about how many to keep, at least 4.

    Returns:
        int64, rising places in `values`.

    >>> kept_rows(np.array([0.0, 0, 9, 0, 0, 0, -9, 0, 0, 0]), 4).tolist()
    [0, 2, 5, 6, 9]
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(0, count, most // 2 + 1).astype(np.int64)
    starts, lengths = edges[:-1], np.diff(edges)
    stretch = np.repeat(np.arange(most // 2), lengths)
    known = np.isfinite(values)
    low, high = np.where(known, values, np.inf), np.where(known, values, -np.inf)
    is_kept = np.zeros(count, bool)
    is_kept[[0, -1]] = True
    for found in (
        known & (low == np.repeat(np.minimum.reduceat(low, starts), lengths)),
        known & (high == np.repeat(np.maximum.reduceat(high, starts), lengths)),
        ~known,
    ):
        places = np.flatnonzero(found)
        is_kept[places[np.diff(stretch[places], prepend=-1) > 0]] = True  # the first of each stretch
    return np.flatnonzero(is_kept)


@SILENT
def means(values: Array, count: int) -> Array:
    """Return the mean of what is finite in each of `count` stretches of a curve, equally long to a point; NaN where nothing is.

    What is kept of a curve are its extremes; a smooth one is made of these means, which every value has its part in.

    Args:
        values: float64, [points], at least `count`.
        count: how many stretches.

    >>> means(np.array([1.0, 3, 5, float("inf"), float("nan"), float("nan")]), 3).tolist()
    [2.0, 5.0, nan]
    """
    starts = np.linspace(0, len(values), count + 1).astype(np.int64)[:-1]
    known = np.isfinite(values)
    number = np.add.reduceat(known, starts, dtype=np.int64)
    parts = np.where(known, values, 0) / np.repeat(number, np.diff(np.append(starts, len(values))))
    sums = np.add.reduceat(np.where(known, parts, 0), starts)
    most = np.finfo(np.float64).max  # no mean is above it, but its rounding may be
    return np.where(number > 0, np.clip(sums, -most, most), np.nan)


@SILENT
def knots(values: Array, most: int | None = None) -> Array:
    """Return the places between which values rise along straight lines, so that the rest can be interpolated.

    Args:
        values: float64, [points].
        most: of the places; more are thinned evenly. None: as many as it takes to be exact.

    >>> knots(np.array([0.0, 1, 2, 3, 10, 11, 12])).tolist()
    [0, 3, 4, 6]
    """
    count = len(values)
    bends = np.flatnonzero(np.diff(values, 2) != 0) + 1
    places = np.unique(np.concatenate([[0], bends, [count - 1]])) if count else np.arange(0)
    if most is not None and len(places) > most:
        places = places[np.unique(np.linspace(0, len(places) - 1, most).astype(np.int64))]
    return places


@SILENT
def pooled(values: Array, most: int) -> Array:
    """Return a matrix of at most so many cells: each is the value of largest magnitude in its block, or NaN if one is NaN.

    Args:
        values: float64, [rows, columns].
        most: cells, at least 4.

    >>> pooled(np.array([[1.0, 2, 3, -4], [0, 5, 0, 0]]), 4).tolist()
    [[2.0, -4.0], [5.0, 0.0]]
    """
    rows, columns = values.shape
    if rows * columns <= most:
        return values
    shrink = float(np.sqrt(rows * columns / most))
    fewer = max(min(rows, _WHOLE), int(rows / shrink)) if rows <= columns else 0
    narrower = min(columns, most // fewer) if fewer else max(min(columns, _WHOLE), int(columns / shrink))
    fewer = fewer or min(rows, max(1, most // narrower))
    for axis, count in ((0, fewer), (1, narrower)):
        starts = np.linspace(0, values.shape[axis], count + 1).astype(np.int64)[:-1]
        high, low = np.maximum.reduceat(values, starts, axis), np.minimum.reduceat(values, starts, axis)
        values = np.where(high >= -low, high, low) if not np.isnan(high).any() else _with_nans(high, low)
    return values


def _with_nans(high: Array, low: Array) -> Array:
    return np.where(np.isnan(high), np.nan, np.where(high >= -low, high, low))
