"""Find activations that stand at a kink, where rounding decides which way a derivative jumps: then gradients may differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from noether_core.parity.divergence.conditioning import ELEMENTS
from noether_core.parity.divergence.distance import sampled
from noether_core.parity.divergence.noise import TIMES, Noise
from noether_core.parity.divergence.table import Table, pair_of
from noether_core.parity.divergence.training import Training

Array = np.ndarray[Any, Any]

KINKS = 2.0  # how far one kink of N moves gradients at most, in units of 1/√N of their norm
MOST_FLIPS = (
    6e-4  # the share of windows whose maximum moves that counts: equal patches tie, and it matters for none of them
)
WINDOWS = ((2, 2), (3, 2), (3, 1), (2, 1))  # sizes and strides of pooling, the usual first
LATER = 3  # activations after one that are asked whether they are its maxima


@dataclass(frozen=True)
class Kinks:
    """Say how far kinks may have moved an update's gradients.

    Attributes:
        furthest: in relative norm; 0 if there are no kinks.
        last: the last activation that has one. What is computed after it does not feel it.
    """

    furthest: float = 0.0
    last: str = ""


def kinks_of(a: Training, b: Training, table: Table, noise: Noise, update: int) -> Kinks:
    """Return how far kinks may have moved the gradients of an update.

    A kink is an element of an activation that has another sign in each training, or is zero in one, and is within noise of
    zero, so that the activation agrees where its derivative jumps: a ReLU's. So is an element of a prediction that is within
    noise of its target, as for an absolute error, and a window whose largest element stands at another place, as for a maximum
    that is pooled. One of N elements moves gradients by about 1/√N of their norm.
    """
    share, last = 0.0, ""
    acts = [key for key, column in table.of_stage("act").items() if _is_whole(column.updates, column.whole, update)]
    targets = _targets(a, table, update)
    for place, key in enumerate(acts):
        pair = pair_of(a, b, table, update, key)
        if pair is None:
            continue
        column = table.columns[key]
        near = max(TIMES * noise.at(key, np.array([update]))[0], float(column.distance[column.at(update)]))
        found = _turned(pair[0], pair[1], near)
        found += sum(
            _turned(pair[0] - each, pair[1] - each, near, pair[0]) for each in targets if each.shape == pair[0].shape
        )
        later = (a.array(update, each) for each in acts[place + 1 : place + 1 + LATER])
        found += min(MOST_FLIPS, _moved_maxima(*pair, [each for each in later if each is not None], near))
        if found:
            share, last = share + found, key
    return Kinks(KINKS * float(np.sqrt(share)), last)


def is_before(table: Table, name: str, act: str) -> bool:
    """Say whether a parameter's layer is computed before an activation, as far as their names and their order say."""
    acts = list(table.of_stage("act"))
    layer = name.rpartition(".")[0]
    own = [place for place, key in enumerate(acts) if key == f"act/{layer}" or key.startswith(f"act/{layer}.")]
    return not own or own[0] <= acts.index(act)


def _is_whole(updates: Array, whole: Array, update: int) -> bool:
    row = int(np.searchsorted(updates, update))
    return row < len(updates) and bool(updates[row] == update and whole[row])


def _targets(a: Training, table: Table, update: int) -> list[Array]:
    """Return the batch's arrays that predictions may be held against; of rows in another order, none."""
    if update in table.orders:
        return []
    arrays = (a.array(update, key) for key in a.keys(update) if key.startswith("data/"))
    return [each for each in arrays if each is not None and each.dtype.kind == "f"]


def _turned(first: Array, second: Array, near: float, beside: Array | None = None) -> float:
    """Return the share of elements that have another sign in each and are within noise of zero, beside the size of an array."""
    one, other, sizes = sampled(first, second, first if beside is None else beside, most=ELEMENTS)
    limit = 10 * near * np.sqrt(np.mean(sizes**2))
    turned = (np.sign(one) != np.sign(other)) & (np.maximum(np.abs(one), np.abs(other)) <= limit)
    return float(np.count_nonzero(turned)) / len(one)


def _moved_maxima(first: Array, second: Array, later: Sequence[Array], near: float) -> float:
    """Return the share of pooled windows whose largest element stands at another place in each, within noise of the other."""
    if first.ndim < 3 or first.size > ELEMENTS or not np.issubdtype(first.dtype, np.floating):
        return 0.0
    limit = 10 * near * float(np.sqrt(np.mean(np.square(first, dtype=np.float64))))
    found = 0.0
    for windows, others in _pooled(first, second, later):
        place, theirs = windows.argmax(-1), others.argmax(-1)
        gap = windows.max(-1) - np.take_along_axis(windows, theirs[..., None], -1)[..., 0]
        found = max(found, float(np.mean((place != theirs) & (gap <= limit))))
    return found


def _pooled(first: Array, second: Array, later: Sequence[Array]) -> Iterator[tuple[Array, Array]]:
    """Yield both arrays' windows, their elements along the last axis, where a later activation may be their maxima."""
    if later and later[0].shape == first.shape:  # it is this one that is pooled, if any
        return
    for axis in range(1, first.ndim):
        maxima = first.max(axis)
        if any(each.shape == maxima.shape and np.array_equal(each, maxima) for each in later):
            yield np.moveaxis(first, axis, -1), np.moveaxis(second, axis, -1)
            return
    if first.ndim != 4 or min(first.shape[2:]) < 2:
        return
    smaller = [each for each in later[:1] if each.ndim < 4 or each.shape[2] < first.shape[2]]
    for size, stride in WINDOWS if smaller else ():
        windows, others = (_windows(each, size, stride) for each in (first, second))
        if windows.shape[:4] == smaller[0].shape and np.allclose(
            np.maximum(windows.max(-1), 0), np.maximum(smaller[0], 0)
        ):
            yield windows, others
            return
    if smaller:  # pooled by a function that no activation shows, or not at all
        yield _windows(first, *WINDOWS[0]), _windows(second, *WINDOWS[0])


def _windows(array: Array, size: int, stride: int) -> Array:
    """Return the windows of images, N × C × H × W, with the elements of each along the last axis; none is padded."""
    if min(array.shape[2:]) < size:
        return array.reshape(*array.shape[:2], 1, 1, -1)
    view = np.lib.stride_tricks.sliding_window_view(array, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    return view.reshape(*view.shape[:4], -1)
