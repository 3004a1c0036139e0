"""Measure how two arrays relate: distance, factor, order, precision."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def distance(one: Array, other: Array) -> float:
    """Return the relative norm of the difference, ‖a − b‖ / max(‖a‖, ‖b‖); infinite where one has what the other lacks.

    >>> distance(np.array([1.0, 0.0]), np.array([0.5, 0.0]))
    0.5
    """
    if one.shape != other.shape:
        return float("inf")
    scale = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    gap = float(np.linalg.norm(one - other))
    return 0.0 if gap == 0 else gap / scale if np.isfinite(gap) else float("inf")


def factor(one: Array, other: Array) -> tuple[float, float]:
    """Return the constant that leads from one array to the other, and the share that it leaves.

    >>> factor(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    (2.0, 0.0)
    """
    square = float((one * one).sum())
    if square == 0:
        return 0.0, 1.0
    constant = float((one * other).sum()) / square
    return constant, distance(constant * one, other)


def affine(one: Array, other: Array) -> tuple[float, float, float]:
    """Return scale and shift that lead from one array to the other, and what they leave of the other's spread.

    >>> affine(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    (2.0, 1.0, 0.0)
    """
    x, y = one.reshape(-1), other.reshape(-1)
    centred, spread = x - x.mean(), float(np.linalg.norm(y - y.mean()))
    square = float(centred @ centred)
    if square == 0 or spread == 0:
        return 0.0, float(y.mean()), 1.0
    scale = float(centred @ (y - y.mean())) / square
    shift = float(y.mean() - scale * x.mean())
    return scale, shift, float(np.linalg.norm(y - scale * x - shift)) / spread


def least_squares(columns: Array, target: Array, least: float | None = None) -> Array | None:
    """Return what the columns are multiplied by to come closest to a target; None where numbers are not finite or too large.

    Args:
        columns: `rows × n`.
        target: `rows`.
        least: singular values below so many times the largest are taken for zero; None: as NumPy does.

    >>> least_squares(np.array([[1.0], [2.0]]), np.array([2.0, 4.0])).round(6)
    array([2.])
    >>> least_squares(np.array([[np.nan], [2.0]]), np.array([2.0, 4.0])) is None
    True
    """
    if not (np.isfinite(columns).all() and np.isfinite(target).all()):
        return None  # LAPACK would complain on the terminal, past all that catches output
    try:
        return np.asarray(np.linalg.lstsq(columns, target, rcond=least)[0])
    except np.linalg.LinAlgError:
        return None


def same_values(one: Array, other: Array, tolerance: float = 1e-5) -> bool:
    """Tell whether two arrays hold the same values in some order, and not all alike.

    >>> same_values(np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0]))
    True
    """
    if one.size != other.size or one.size < 2:
        return False
    x, y = np.sort(one.reshape(-1)), np.sort(other.reshape(-1))
    return bool(x[0] != x[-1]) and distance(x, y) <= tolerance


def correlation(one: Array, other: Array) -> float:
    """Return the correlation of two arrays' elements; 0 where one is constant.

    >>> round(correlation(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])), 6)
    1.0
    """
    x, y = one.reshape(-1) - one.mean(), other.reshape(-1) - other.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale else 0.0


def short_share(values: Array) -> float:
    """Return the share of nonzero binary32 values whose low 13 bits are zero, as in what was bfloat16, float16 or TF32.

    Fewer than four values tell nothing: ones and halves are short in any precision.

    >>> short_share(np.array([0.5, 0.1, 0.3, 0.25], dtype=np.float32))
    0.5
    """
    bits = np.ascontiguousarray(values.reshape(-1), dtype=np.float32).view(np.uint32)
    live = bits[bits << 1 != 0]
    return float((live & 0x1FFF == 0).mean()) if len(np.unique(live[:10_000])) > 3 else 0.0


def scattered(chosen: Array) -> bool:
    """Tell whether elements are chosen one by one, not by whole rows of the last axis.

    >>> scattered(np.array([[True, False], [False, True]])), scattered(np.array([[True, True], [False, False]]))
    (True, False)
    """
    if chosen.ndim < 2 or chosen.shape[-1] < 2:
        return True
    some, every = chosen.any(axis=-1), chosen.all(axis=-1)
    return bool((some & ~every).sum() > 0.5 * some.sum())


def explained(left: float, limit: float = 1e-5) -> float:
    """Turn what a hypothesis leaves of a difference into a score: near 1 where that is rounding, 0 where it is all of it.

    >>> explained(1e-7), explained(1.0)
    (1.0, 0.0)
    """
    if not np.isfinite(left) or left >= 1:
        return 0.0
    return float(min(1.0, np.log(left + 1e-300) / np.log(limit)))
