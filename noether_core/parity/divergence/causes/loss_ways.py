"""Find the ways to compute a loss from outputs and targets, as they are or moved along, that give what was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.losses import reductions, scored
from noether_core.parity.divergence.training import Training
from noether_core.probes.stages import accumulation_step_of

Array = np.ndarray[Any, Any]

_FITS = 2e-6
_FITS_ALONE = 5e-7  # where no later update confirms it
_MOST = 2_000_000
_MOST_MOVED = 500_000  # elements of outputs whose targets are moved along
_CONFIRMED = 2  # later updates at which a way must fit as well
_LAST = 4  # activations of which one may be the prediction

Way = tuple[str, str, str]  # a loss by its name, its arguments, and how it is reduced


def words_of(way: Way) -> str:
    """Put a way into words.

    >>> words_of(("cross entropy", "labels smoothed by 0.1", "mean"))
    'the mean of cross entropy (labels smoothed by 0.1)'
    """
    return f"the {way[2]} of {way[0]}" + (f" ({way[1]})" if way[1] else "")


def plainness(way: Way) -> int:
    """Return how far a way is from a plain one, to put the plainest first."""
    return len(way[1]) + (way[2] != "mean")


def ways(side: Training, update: int, key: str, given: Training | None = None) -> list[tuple[Way, float]]:
    """Return the ways to compute a side's loss that fit, and what they leave, the plainest first.

    They must fit at this update, and at those after it. Targets are moved along only if none fits as they are.

    Args:
        side: the training whose loss it is.
        update: where it is computed.
        key: of the loss.
        given: the training whose activations and targets it is computed from, where the side has none itself.
    """
    for moved in (False, True):
        fitting = _fitting(side, update, key, given, moved)
        for later in [each for each in side.updates() if each > update and given is None][:_CONFIRMED]:
            again = _fitting(side, later, key, given, moved)
            fitting = {way: left for way, left in fitting.items() if way in again} if again else fitting
        if fitting:
            return sorted(fitting.items(), key=lambda each: plainness(each[0]))
    return []


def _fitting(side: Training, update: int, key: str, given: Training | None, moved: bool) -> dict[Way, float]:
    """Return the ways that fit at an update, and what they leave."""
    value = side.array(update, key)
    if value is None or value.size != 1:
        return {}
    target = float(np.asarray(value, np.float64).reshape(-1)[0])
    known = candidates(given or side, update, key, target, moved=moved, digits=3 if given is None else 2)
    lefts = ((way, abs(each - target) / max(abs(target), 1e-30)) for way, each in known)
    return {way: left for way, left in lefts if left < (_FITS if given is None else _FITS_ALONE)}


def candidates(
    side: Training, update: int, key: str, target: float = float("nan"), *, moved: bool = False, digits: int = 3
) -> Iterator[tuple[Way, float]]:
    """Yield losses of the last activations and the targets that have their shapes, and what they come to.

    Args:
        side: the training whose activations and targets these are.
        update: of which they are.
        key: of the loss, which is computed from what its accumulation step had.
        target: what smoothing is solved for.
        moved: whether targets are those of other positions and rows, instead of their own.
        digits: of smoothing, after the point: with many, some strength fits any target.
    """
    step = accumulation_step_of(key)
    keys = [each for each in side.keys(update) if accumulation_step_of(each) == step]
    data = [each for name in keys if name.startswith("data/") and (each := side.array(update, name)) is not None]
    masks = [each.astype(np.float64) for each in data if each.ndim and set(np.unique(each).tolist()) == {0, 1}]
    masks += [part for each in masks if moved and each.ndim > 1 for part in (each[:, 1:], each[:, :-1])]
    for output in reversed([each for each in keys if each.startswith("act/")][-_LAST:]):
        x = side.array(update, output)
        if x is None or not x.ndim or x.size > (_MOST_MOVED if moved else _MOST):
            continue
        for y in data:
            pairs = _moved(x.astype(np.float64), y) if moved else _in_place(x.astype(np.float64), y)
            for words, outputs, targets in pairs:
                for loss in scored(outputs, targets, target, digits):
                    arguments = ", ".join(each for each in (loss.argument, words) if each)
                    for reduction, reduced in reductions(loss.elements, targets, masks):
                        yield (loss.name, arguments, reduction), reduced


def _in_place(x: Array, y: Array) -> Iterator[tuple[str, Array, Array]]:
    """Yield outputs and targets as they are, outputs with their classes last."""
    by_channel = _is_class(y) and y.ndim > 1 and x.shape[:1] + x.shape[2:] == y.shape and x.ndim == y.ndim + 1
    yield "", np.moveaxis(x, 1, -1) if by_channel and x.shape[:-1] != y.shape else x, y


def _is_class(y: Array) -> bool:
    return y.dtype.kind in "iu"


def _moved(x: Array, y: Array) -> Iterator[tuple[str, Array, Array]]:
    """Yield outputs with the targets of other positions or rows; a sequence of targets may be one longer than the outputs."""
    if not y.ndim or not y.size:
        return
    width = x.shape[-1:] if _is_class(y) else ()
    size = int(np.prod(width))
    if x.size == y.size * size:
        whole = x.reshape(*y.shape, *width)
        for words, by in (("after", -1), ("before", 1)):
            yield f"targets of the row {words}", whole, np.roll(y, by, 0)
    if y.ndim < (2 if _is_class(y) else 3) or y.shape[1] < 2:
        return
    if x.size == y.size * size:
        whole = x.reshape(*y.shape, *width)
        yield "targets of the position after", whole[:, :-1], y[:, 1:]
        yield "targets of the position before", whole[:, 1:], y[:, :-1]
        for words, by in (("after", -1), ("before", 1)):
            yield f"targets of the position {words} and those of the ends exchanged", whole, np.roll(y, by, 1)
    elif x.size == y[:, 1:].size * size:
        part = x.reshape(*y[:, 1:].shape, *width)
        yield "targets of the position after", part, y[:, 1:]
        yield "targets of the same position", part, y[:, :-1]
