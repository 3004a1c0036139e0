"""Say in words what a difference looks like."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np

from noether_core.parity.divergence.distance import (
    distances_of_rows,
    measure,
    norm_of,
    same_multiset,
    same_places,
    sampled,
)
from noether_core.silence import SILENT

Array = np.ndarray[Any, Any]

CLOSE = 1e-4  # relative distance at which one array is another after it was turned, flipped, scaled or sorted
LARGEST = 1 << 20  # elements of an array that is turned and sorted to see whether it is another
MOST_AXES = 4
FEW = 0.2  # the share of rows that are "some" of them


@SILENT
def shape_of(a: Array, b: Array, labels: tuple[str, str] = ("A", "B")) -> str:
    """Say what the difference of two arrays looks like, or nothing if it is nothing simple.

    >>> shape_of(np.float32([1, 2, 3]), np.float32([2, 4, 6]))
    'B is 2 × A'
    >>> shape_of(np.float32([[1, 2], [3, 4]]), np.float32([[1, 3], [2, 4]]))
    'B is A with its axes in the order 1, 0'
    """
    a, b = np.asarray(a), np.asarray(b)
    name_a, name_b = labels
    if not same_places(a, b):
        turned = _turned(a, b)
        return turned.format(a=name_a, b=name_b) if turned else f"{name_a} has shape {a.shape}, {name_b} {b.shape}"
    for look in (_not_finite, _one_is_zero, _constant, _factor, _offset, _coarse, _turned, _reordered, _some_rows):
        words = look(a, b)
        if words:
            return words.format(a=name_a, b=name_b)
    return ""


def _not_finite(a: Array, b: Array) -> str:
    counts = [int(np.count_nonzero(~np.isfinite(np.asarray(each, np.float64)))) for each in (a, b)]
    if not any(counts):
        return ""
    return f"{counts[0]} elements of {{a}} and {counts[1]} of {{b}} are NaN or infinite"


def _one_is_zero(a: Array, b: Array) -> str:
    zeros = [norm_of(each) == 0 for each in (a, b)]
    return "" if zeros[0] == zeros[1] else "{a} is all zeros" if zeros[0] else "{b} is all zeros"


def _factor(a: Array, b: Array) -> str:
    first, second = sampled(a, b)
    square = float(first @ first)
    if not square or len(first) < 1:
        return ""
    slope = float(first @ second) / square
    rest = float(np.linalg.norm(second - slope * first)) / float(np.linalg.norm(second) or 1.0)
    apart = abs(slope - 1)
    if len(first) == 1 or rest > max(1e-6, 0.02 * apart) or rest > 0.02 * apart:
        return ""
    if abs(slope + 1) < CLOSE:
        return "{b} is {a} with the other sign"
    return f"{{b}} is {slope:.6g} × {{a}}"


def _offset(a: Array, b: Array) -> str:
    first, second = sampled(a, b)
    if len(first) < 3:
        return ""
    apart = second - first
    mean = float(np.mean(apart))
    if not mean or float(np.std(apart)) > 0.01 * abs(mean):
        return ""
    return f"{{b}} is {{a}} {'+' if mean > 0 else '−'} {abs(mean):.6g}"


def _constant(a: Array, b: Array) -> str:
    values = [
        each.reshape(-1)[0] if each.size > 1 and bool(np.all(each == each.reshape(-1)[0])) else None for each in (a, b)
    ]
    if (values[0] is None) == (values[1] is None):
        return ""
    name, value = ("{a}", values[0]) if values[0] is not None else ("{b}", values[1])
    return f"every element of {name} is {value:.6g}"


def _coarse(a: Array, b: Array) -> str:
    for bits, name in ((16, "bfloat16's"), (13, "float16's or TF32's")):
        shares = [share_of_coarse(each, bits) for each in (a, b)]
        if max(shares) > 0.99 and min(shares) < 0.5:
            which = "{a}" if shares[0] > shares[1] else "{b}"
            return f"all values of {which} are {name}: their low {bits} bits are zero"
    return ""


@SILENT
def share_of_coarse(array: Array, bits: int = 16) -> float:
    """Return the share of the non-zero values whose low bits are zero in binary32: 16 in bfloat16's, 13 in float16's.

    Of fewer than 16 values, 0.

    >>> share_of_coarse(np.arange(1, 101, dtype=np.float32))
    1.0
    """
    values = sampled(array)[0].astype(np.float32)
    values = values[values != 0]
    low = np.uint32((1 << bits) - 1)
    return float(np.mean((values.view(np.uint32) & low) == 0)) if len(values) >= 16 else 0.0


def _some_rows(a: Array, b: Array) -> str:
    if not a.ndim or len(a) < 4 or a.shape != b.shape:
        return ""
    apart = distances_of_rows(a, b)
    differing = np.flatnonzero(apart > max(1e-6, 0.01 * float(apart.max())))
    if not len(differing) or len(differing) > 0.5 * len(a):
        return ""
    first, last = int(differing[0]), int(differing[-1])
    if len(differing) == 1:
        return f"only place {first} of {len(a)} along the first axis differs"
    if len(differing) == last - first + 1:
        return f"only places {first} to {last} of {len(a)} along the first axis differ"
    if len(differing) <= FEW * len(a):
        return f"only {len(differing)} of {len(a)} places along the first axis differ, the first of them {first}"
    return ""


def _turned(a: Array, b: Array) -> str:
    """Say whether one is the other with its axes permuted or flipped."""
    if not 1 <= a.ndim == b.ndim <= MOST_AXES or sorted(a.shape) != sorted(b.shape) or a.size > LARGEST or a.size < 3:
        return ""
    identity = tuple(range(a.ndim))
    close = min(CLOSE, 0.01 * measure(a, b).distance) if same_places(a, b) else CLOSE
    for axes in permutations(identity):
        turned = a.transpose(axes)
        if turned.shape != b.shape:
            continue
        for flips in product((False, True), repeat=a.ndim):
            flipped = tuple(axis for axis, flip in enumerate(flips) if flip and b.shape[axis] > 1)
            if (axes == identity and not flipped) or len(flipped) != sum(flips):
                continue
            if measure(np.flip(turned, flipped), b).distance <= close:
                return _turn(axes, identity, flipped)
    return ""


def _turn(axes: tuple[int, ...], identity: tuple[int, ...], flipped: tuple[int, ...]) -> str:
    words = [] if axes == identity else [f"its axes in the order {', '.join(map(str, axes))}"]
    if flipped:
        words.append(f"ax{'i' if len(flipped) == 1 else 'e'}s {', '.join(map(str, flipped))} reversed")
    return "{b} is {a} with " + " and ".join(words)


def _reordered(a: Array, b: Array) -> str:
    if a.size > LARGEST or a.size < 3 or not same_multiset(a, b, min(CLOSE, 0.01 * measure(a, b).distance)):
        return ""
    return "{a} and {b} hold the same values in another order"
