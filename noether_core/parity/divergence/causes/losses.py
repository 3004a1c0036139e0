"""Compute losses of outputs and targets in the ways that ports compute them: functions, arguments, reductions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.activations import ACTIVATIONS

Array = np.ndarray[Any, Any]


IGNORED = (0, -100, -1)
"""Targets that losses leave out: padding, and what libraries take for it."""


@dataclass(frozen=True)
class Scored:
    """Hold the elements of a loss by its name, before they are reduced, and the arguments that it has."""

    name: str
    argument: str
    elements: Array


def reductions(elements: Array, targets: Array, masks: Sequence[Array] = ()) -> Iterator[tuple[str, float]]:
    """Yield what the elements of a loss come to, with all of them or without those that a mask or a target leaves out."""
    yield "mean", float(elements.mean())
    yield "half the mean", float(elements.mean() / 2)
    yield "sum", float(elements.sum())
    yield "half the sum", float(elements.sum() / 2)
    if elements.ndim > 1:
        yield "sum over features, mean over rows,", float(elements.sum() / len(elements))
        yield "sum over rows, mean over features,", float(elements.sum() / elements[0].size)
    for mask in masks:
        if mask.shape == elements.shape:
            yield "mean without what is masked", float((elements * mask).sum() / mask.sum())
            yield "mean without what is masked, over all,", float((elements * mask).mean())
            yield from _by_row(elements, mask, "without what is masked")
            yield "sum without what is masked", float((elements * mask).sum())
    if elements.ndim > 1 and np.issubdtype(targets.dtype, np.integer) and elements.shape == targets.shape:
        yield "mean without the last position", float(elements[:, :-1].mean())
        yield "mean without the first position", float(elements[:, 1:].mean())
    if np.issubdtype(targets.dtype, np.integer) and elements.shape == targets.shape:
        for value in IGNORED:
            kept = targets != value
            if kept.any() and not kept.all():
                yield f"mean without targets of {value}", float(elements[kept].mean())
                yield f"mean without targets of {value}, over all,", float(elements[kept].sum() / elements.size)
                yield from _by_row(elements, kept, f"without targets of {value}")


def _by_row(elements: Array, kept: Array, words: str) -> Iterator[tuple[str, float]]:
    """Yield what is reduced row by row first, of the elements that are kept."""
    if elements.ndim < 2:
        return
    axes = tuple(range(1, elements.ndim))
    sums, counts = (elements * kept).sum(axis=axes), kept.sum(axis=axes)
    yield f"mean of the rows' sums {words}", float(sums.mean())
    if counts.all():
        yield f"mean of the rows' means {words}", float((sums / counts).mean())


def scored(x: Array, y: Array, target: float, digits: int = 3) -> Iterator[Scored]:
    """Yield the losses that outputs and targets of these shapes can have; strengths are solved for, to so many digits."""
    if np.issubdtype(y.dtype, np.integer) and x.ndim > 1 and y.size * x.shape[-1] == x.size:
        yield from _classified(x.reshape(*y.shape, x.shape[-1]), y, target, digits)
    if x.size != y.size or not x.size or y.dtype.kind not in "fiub":
        return
    wide = y.astype(np.float64).reshape(x.shape)
    if wide.min() >= 0 and wide.max() <= 1:
        yield from _binary(x, wide)
    if x.ndim > 1 and x.shape[-1] > 1 and np.allclose(wide.sum(-1), 1, atol=1e-5):
        logs = ACTIVATIONS["log softmax"](x)
        yield Scored("cross entropy", "with targets of all classes", -(wide * logs).sum(-1))
        yield Scored("divergence from the targets", "", (wide * (np.log(np.maximum(wide, 1e-300)) - logs)).sum(-1))
    if np.issubdtype(y.dtype, np.floating):
        yield from _regressed(x - wide)
        for name in ("sigmoid", "tanh", "softmax"):
            yield Scored("squared error", f"of the {name}", (ACTIVATIONS[name](x) - wide) ** 2)


def _binary(x: Array, y: Array) -> Iterator[Scored]:
    """Yield binary cross entropies of logits and of probabilities."""
    yield Scored("binary cross entropy", "", np.logaddexp(0, x) - x * y)
    own = ACTIVATIONS["sigmoid"](x)
    yield Scored("binary cross entropy", "of the sigmoid once more", np.logaddexp(0, own) - own * y)
    if x.min() > 0 and x.max() < 1:
        yield Scored("binary cross entropy", "of probabilities", -(y * np.log(x) + (1 - y) * np.log1p(-x)))


def _classified(x: Array, y: Array, target: float, digits: int) -> Iterator[Scored]:
    """Yield cross entropies; label smoothing is linear in its strength, which is solved for. Source: Szegedy et al. 2016."""
    if y.max() >= x.shape[-1]:
        return
    counted = [y != value for value in IGNORED if (y == value).any() and (y != value).any()]
    y = np.maximum(y, 0)  # those that are left out have a target below
    logs = ACTIVATIONS["log softmax"](x)
    plain = _taken(logs, y)
    yield Scored("cross entropy", "", plain)
    twice = ACTIVATIONS["log softmax"](np.exp(logs))
    yield Scored("cross entropy", "of the softmax once more", _taken(twice, y))
    yield Scored("minus the target's output", "", _taken(x, y))
    if x.min() > 0:
        yield Scored("cross entropy", "of probabilities", _taken(np.log(x), y))
    even = -logs.mean(-1)
    others = (even * x.shape[-1] - plain) / (x.shape[-1] - 1)
    for words, rest in (("", even), (" of the other classes", others)):
        strengths = [_smoothing(plain[each], rest[each], target) for each in (np.ones(y.shape, bool), *counted)]
        for by in dict.fromkeys(round(each, digits) for each in strengths if 5e-4 < each < 0.6):
            yield Scored("cross entropy", f"labels smoothed by {by:g}{words}", (1 - by) * plain + by * rest)
    for gamma in (1.0, 2.0, 3.0):
        yield Scored("focal loss", f"gamma {gamma:g}", (1 - np.exp(-plain)) ** gamma * plain)
    if x.shape[-1] > 1:
        own = np.exp(logs)
        squares = ((own - np.eye(x.shape[-1])[y]) ** 2).mean(-1)
        yield Scored("squared error of probabilities", "", squares)


def _smoothing(plain: Array, rest: Array, target: float) -> float:
    """Return the strength of smoothing with which the mean is the target."""
    gap = float((rest - plain).mean())
    return (target - float(plain.mean())) / gap if gap else 0.0


def _taken(logs: Array, y: Array) -> Array:
    """Return minus what each target's class has."""
    return np.asarray(-np.take_along_axis(logs, y[..., None].astype(np.int64), -1)[..., 0])


def _regressed(gap: Array) -> Iterator[Scored]:
    size = np.abs(gap)
    functions: Mapping[str, Callable[[], Array]] = {
        "squared error": lambda: gap**2,
        "absolute error": lambda: size,
        "log cosh": lambda: np.log(np.cosh(np.minimum(size, 300.0))),
    }
    for name, function in functions.items():
        yield Scored(name, "", function())
    for delta in (1.0, 0.5, 0.1, 2.0):
        huber = np.where(size <= delta, 0.5 * gap**2, delta * (size - 0.5 * delta))  # Huber 1964
        yield Scored("Huber loss", f"delta {delta:g}", huber)
        yield Scored("smooth absolute error", f"beta {delta:g}", huber / delta)
    if gap.ndim > 1:
        yield Scored("norm of the error", "", np.linalg.norm(gap, axis=-1))
        yield Scored("root mean square of the error", "", np.sqrt((gap**2).mean(keepdims=True)))
