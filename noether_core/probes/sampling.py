"""Say which elements stand for an array that is too large to be kept: places that depend on its shape alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

DEFAULT_LIMIT = 2**20  # bytes of an array that is kept whole
_ELEMENT = 4  # bytes, whatever the dtype, so that frameworks with other dtypes keep the same places
Places = tuple[np.ndarray[Any, Any], ...]


def places(shape: Sequence[int], limit: int = DEFAULT_LIMIT) -> Places | None:
    """Return which places along each axis are kept of an array; None if it is kept whole.

    What is kept is `array[np.ix_(*places)]`: a smaller array of the same rank. Of each axis that is cut, one place is taken
    out of each of equal stretches, so that every block of rows is there; where in its stretch is drawn, always alike, so that
    no period of the array's own is hit.

    Args:
        shape: in the canonical layout.
        limit: how many bytes an array of four-byte elements may have to be kept whole.

    Returns:
        For each axis, int64 [kept], increasing.

    >>> places((3, 4)) is None
    True
    >>> [along.tolist() for along in places((2, 1000), limit=32)]
    [[0, 1], [121, 256, 742, 979]]
    """
    if math.prod(shape) <= max(1, limit // _ELEMENT):
        return None
    kept = kept_shape(shape, limit)
    return tuple(_along(size, count, axis) for axis, (size, count) in enumerate(zip(shape, kept, strict=True)))


def kept_shape(shape: Sequence[int], limit: int = DEFAULT_LIMIT) -> tuple[int, ...]:
    """Return the shape of what is kept of an array: short axes whole, of the others about as many places each.

    >>> kept_shape((3, 4)), kept_shape((2, 1000), limit=32)
    ((3, 4), (2, 4))
    """
    most = max(1, limit // _ELEMENT)
    if math.prod(shape) <= most:
        return tuple(shape)
    kept = [1] * len(shape)
    left, order = most, sorted(range(len(shape)), key=lambda axis: shape[axis])
    for done, axis in enumerate(order):
        share = int(round(left ** (1.0 / (len(order) - done)), 9))
        kept[axis] = max(1, min(shape[axis], share))
        left //= kept[axis]
    return tuple(kept)


def _along(size: int, kept: int, axis: int) -> np.ndarray[Any, Any]:
    if kept == size:
        return np.arange(size)
    edges = np.arange(kept + 1, dtype=np.int64) * size // kept
    # the upper bits of a Weyl sequence: https://en.wikipedia.org/wiki/Weyl_sequence
    drawn = (np.arange(kept, dtype=np.uint64) + np.uint64(axis + 1)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)
    return edges[:-1] + (drawn % np.diff(edges).astype(np.uint64)).astype(np.int64)
