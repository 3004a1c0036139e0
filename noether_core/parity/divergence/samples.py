"""Measure what is the same for all elements of updates, at the same places of both trainings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from noether_core.parity.divergence.distance import Measure, sampled

Array = np.ndarray[Any, Any]

ELEMENTS = 4096  # of an array, at the same places of both
FEWEST = 32  # large elements that a ratio needs
_UNIT = 2.0**-23  # of binary32
_ALIKE = 2e-7  # of an update, by which all its elements may differ alike: the floor of the noise of gradients
_PARALLEL = 1e-3  # the share of a parameter that points elsewhere than its update, below which no slope on it is known


@dataclass(frozen=True)
class Slope:
    """Hold a number that is zero in correct pairs, and how far it strays by chance."""

    value: float
    error: float


@dataclass(frozen=True)
class Drift:
    """Hold what is systematic between two trainings at one update.

    Attributes:
        ratios: by update key, the mean over large elements of b's update over a's, without strays, minus 1.
        decays: by update key, the slope of the updates' difference on the parameter.
        clipping: the log of b's ‖clipped‖ over a's, over all keys, which gradients do not change; None unless both clip.
        nonlinear: the share of a's updates that no multiples of the gradient and the parameter give, over all keys; NaN where
            none are known.
    """

    ratios: dict[str, Slope] = field(default_factory=dict)
    decays: dict[str, Slope] = field(default_factory=dict)
    clipping: float | None = None
    nonlinear: float = float("nan")


class Samples:
    """Collect the same places of both trainings' parameters, gradients and updates, and norms, over one update."""

    def __init__(self) -> None:
        self._parameters: dict[str, Array] = {}
        self._gradients: dict[str, Array] = {}  # clipped, where they are
        self._squares = np.zeros(2)  # of what is not linear in updates, and of updates
        self._norms: dict[str, dict[str, tuple[float, float]]] = {"grad": {}, "clip": {}}
        self._ratios: dict[str, Slope] = {}
        self._decays: dict[str, Slope] = {}

    def take(self, key: str, a: Array, b: Array, found: Measure) -> None:
        """Take what is needed of two arrays of one key; parameters and gradients come before updates."""
        stage, _, name = key.partition("/")
        if stage in self._norms:
            self._norms[stage][name] = found.norm_a, found.norm_b
            self._gradients[name] = sampled(a, most=ELEMENTS)[0]
        if not np.isfinite(found.distance) or stage not in ("param", "update"):
            return
        if stage == "param":
            self._parameters[name] = sampled(a, most=ELEMENTS)[0]
            return
        first, second = sampled(a, b, most=ELEMENTS)
        parameter = self._parameters.get(name)
        if parameter is not None and len(parameter) != len(first):
            parameter = None
        ratio = _common_ratio(first, second, parameter)
        if ratio is not None:
            self._ratios[key] = ratio
        if parameter is not None:
            decay = _on_parameter(second - first, parameter, first)
            if decay is not None:
                self._decays[key] = decay
        gradient = self._gradients.get(name)
        if gradient is not None and len(gradient) == len(first):
            directions = [gradient, *([] if parameter is None else [_without(parameter, gradient)])]
            self._squares += np.array([np.sum(np.square(_without_all(first, directions))), np.sum(np.square(first))])

    def drift(self) -> Drift:
        """Return what was systematic."""
        left, whole = self._squares
        return Drift(self._ratios, self._decays, self._clipping(), float(np.sqrt(left / whole)) if whole else np.nan)

    def _clipping(self) -> float | None:
        names = self._norms["grad"].keys() & self._norms["clip"].keys()
        if not names:
            return None
        totals = np.array([[self._norms[stage][name] for name in names] for stage in ("grad", "clip")])
        grad, clip = np.sqrt(np.sum(np.square(totals), axis=1))
        if not (grad.all() and clip.all() and np.isfinite(grad).all() and np.isfinite(clip).all()):
            return None
        factors = clip / grad
        return float(np.log(clip[1] / clip[0])) if (factors < 1 - 1e-5).all() else None


def _common_ratio(a: Array, b: Array, parameter: Array | None) -> Slope | None:
    """Return the mean ratio of large elements, minus 1, without those far from the median.

    An update is new less old, so it is a multiple of the parameter's unit in the last place, which may be more than what it
    differs by. The median of such ratios is that of few steps, often 0 exactly; their mean is right.
    """
    size = np.abs(a)
    large = (size >= np.median(size)) & (size > 0) & (b != 0)
    if np.count_nonzero(large) < FEWEST:
        return None
    apart = b[large] / a[large] - 1
    middle = float(np.median(apart))
    spread = 1.4826 * float(np.median(np.abs(apart - middle)))  # a normal spread's, from the median deviation
    step, distinct = np.zeros(len(apart)), len(apart)
    if parameter is not None:
        step = _UNIT * (np.abs(parameter[large]) + size[large]) / size[large]
        distinct = len(np.unique(parameter[large]))  # those of equal ones are rounded alike
    near = np.abs(apart - middle) <= 5 * spread + 2 * step
    if not near.any():  # NaN
        return None
    apart, step = apart[near], step[near]
    by_chance = 1.2533 * max(spread, float(np.std(apart))) / np.sqrt(len(apart))  # 1.2533: it is centred on a median
    by_rounding = float(np.sqrt(np.mean(step**2) / (12 * distinct)))
    return _slope(float(np.mean(apart)), float(np.hypot(by_chance, by_rounding)))


def _on_parameter(apart: Array, parameter: Array, update: Array) -> Slope | None:
    """Return the slope of a difference on the parameter, of a regression on the parameter and the update.

    What has begun at zero is the sum of its updates, and points where they do: a difference that is a factor of the update, as
    of the learning rate or what binary32 leaves in a bias correction, would be taken for decay. The slope's error says so.
    """
    if len(parameter) < FEWEST or not parameter.any():
        return None
    own = _without(parameter, update)
    square = float(own @ own)
    if square <= _PARALLEL**2 * float(parameter @ parameter):
        return None
    rest = _without(apart, update)
    slope = float(rest @ own) / square
    by_chance = float(np.linalg.norm(rest - slope * own)) / float(np.sqrt(square * len(own)))
    return _slope(slope, float(np.hypot(by_chance, _ALIKE * np.linalg.norm(update) / np.sqrt(square))))


def _slope(value: float, error: float) -> Slope | None:
    """Return a slope, or None if it says nothing: where numbers are not finite, or their squares overflow."""
    return Slope(value, error) if np.isfinite(value + error * error) else None


def _without(values: Array, direction: Array) -> Array:
    square = float(direction @ direction)
    return values - float(values @ direction) / square * direction if square else values


def _without_all(values: Array, directions: Iterable[Array]) -> Array:
    """Return what is left of values beside directions that are at right angles."""
    for direction in directions:
        values = _without(values, direction)
    return values
