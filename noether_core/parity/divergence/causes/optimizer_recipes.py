"""Compute the directions that optimizers take: one function for the families and their variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Recipe:
    """Say how an optimizer turns gradients into a direction.

    Attributes:
        family: `sgd`, `adam`, `rmsprop`, `adadelta`, `adagrad`, `adamax` or `sign`.
        flags: what it does otherwise than the plain member of its family; see `FLAGS`.
    """

    family: str
    flags: frozenset[str] = frozenset()

    def toggled(self, flag: str) -> Recipe:
        """Return the recipe with the flag, or without it if it is there; flags that exclude it go."""
        rivals = next((group for group in _RIVALS if flag in group), frozenset())
        return Recipe(self.family, self.flags - {flag} if flag in self.flags else (self.flags - rivals) | {flag})


FLAGS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("coupled", "nesterov", "damped later", "rate in buffer"),
    "adam": (
        "coupled",
        "inside",
        "uncorrected epsilon",
        "maximum",
        "corrected maximum",
        "nesterov",
        "scheduled nesterov",
        "rectified",
        "belief",
    ),
    "rmsprop": ("coupled", "inside", "centred", "started", "momentum", "corrected", "nesterov", "rate in buffer"),
    "adadelta": ("coupled",),
    "adagrad": ("coupled", "inside"),
    "adamax": ("coupled",),
    "sign": ("coupled",),
}
"""The variants of each family.

coupled: weight decay is added to the gradient. nesterov: the buffer is looked at one step ahead. damped later: the first
gradient enters the buffer whole, the later ones times 1 − dampening, as in PyTorch. rate in buffer: the buffer sums
gradients times the rates of their steps. inside: epsilon is added under the root. uncorrected epsilon: epsilon is added
before the second moment's correction. maximum: AMSGrad.
corrected maximum: AMSGrad, of the corrected moment. scheduled nesterov: Nesterov's momentum grows over updates, as in PyTorch's
NAdam. rectified: RAdam, which leaves the second moment out at first. belief: AdaBelief. centred: the squared mean is
subtracted. started: the second moment starts from one. momentum: a buffer of the scaled gradients. corrected: RMSprop's moment
is corrected.
"""

_RIVALS = (
    frozenset({"inside", "uncorrected epsilon"}),
    frozenset({"maximum", "corrected maximum", "belief", "centred"}),
    frozenset({"nesterov", "scheduled nesterov", "rectified", "damped later", "rate in buffer"}),
)

STARTS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "sgd": {"momentum": (0.0, 0.9)},
    "adam": {"beta1": (0.0, 0.9), "beta2": (0.9, 0.999), "epsilon": (1e-8, 1e-4)},
    "rmsprop": {"beta2": (0.9, 0.99), "epsilon": (1e-8, 1e-4)},
    "adamax": {"beta1": (0.0, 0.9), "beta2": (0.9, 0.999), "epsilon": (1e-8,)},
    "adadelta": {"beta2": (0.9, 0.95), "epsilon": (1e-6,)},
    "adagrad": {"start": (1e-12, 0.1), "epsilon": (1e-10,)},
    "sign": {"beta1": (0.0, 0.5, 0.8, 0.9, 0.95, 0.99), "beta2": (0.9, 0.95, 0.98, 0.99, 0.999)},
}
"""The numbers of each family besides the rates, and where a search for them begins."""


def numbers_of(recipe: Recipe) -> dict[str, tuple[float, ...]]:
    """Return the numbers that a recipe has, and where a search for them begins."""
    extra: dict[str, tuple[float, ...]] = {"momentum": (0.9,)} if "momentum" in recipe.flags else {}
    extra |= {"momentum decay": (4e-3,)} if "scheduled nesterov" in recipe.flags else {}
    if "damped later" in recipe.flags:
        return {"momentum": (0.9,), "dampening": (0.1, 0.9)}
    return {**STARTS[recipe.family], **extra}


def directions(
    recipe: Recipe,
    numbers: Mapping[str, float],
    gradients: Array,
    parameters: Array,
    decay: Array,
    rates: Array | None = None,
) -> Array:
    """Return the direction of each update, `t × n`; an update is minus a rate times it.

    Args:
        recipe: the family and its flags.
        numbers: what `numbers_of` lists.
        gradients: `t × n`, from the first update on.
        parameters: `t × n`, read by coupled decay alone.
        decay: the strength of coupled decay, `n`.
        rates: `t`, relative; read only where the buffer holds the rate.

    >>> gradients = np.array([[1.0], [1.0]])
    >>> directions(Recipe("sgd"), {"momentum": 0.5}, gradients, gradients, np.zeros(1)).tolist()
    [[1.0], [1.5]]
    """
    seen = gradients + decay * parameters if "coupled" in recipe.flags else gradients
    if recipe.family == "sgd":
        return _sgd(recipe.flags, numbers["momentum"], numbers.get("dampening", 0.0), seen, rates)
    if recipe.family == "sign":
        return _sign(numbers["beta1"], numbers["beta2"], seen)
    if recipe.family == "adamax":
        return _adamax(numbers["beta1"], numbers["beta2"], numbers["epsilon"], seen)
    if recipe.family == "adadelta":
        return _adadelta(numbers["beta2"], numbers["epsilon"], seen)
    return _scaled(recipe, numbers, seen, rates)


def _sgd(flags: frozenset[str], momentum: float, dampening: float, seen: Array, rates: Array | None) -> Array:
    found, buffer = np.empty_like(seen), np.zeros_like(seen[0])
    scale = np.ones(len(seen)) if rates is None or "rate in buffer" not in flags else rates
    for step, gradient in enumerate(seen):
        damped = 1 - dampening if "damped later" in flags and step else 1.0
        buffer = momentum * buffer + damped * scale[step] * gradient
        ahead = gradient + momentum * buffer if "nesterov" in flags else buffer
        found[step] = ahead / scale[step]
    return found


def _sign(beta1: float, beta2: float, seen: Array) -> Array:
    """Compute Lion's direction. Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2."""
    found, mean = np.empty_like(seen), np.zeros_like(seen[0])
    for step, gradient in enumerate(seen):
        found[step] = np.sign(beta1 * mean + (1 - beta1) * gradient)
        mean = beta2 * mean + (1 - beta2) * gradient
    return found


def _adadelta(beta2: float, epsilon: float, seen: Array) -> Array:
    """Compute Adadelta's direction. Source: Zeiler 2012, algorithm 1."""
    found, square, moved = np.empty_like(seen), np.zeros_like(seen[0]), np.zeros_like(seen[0])
    for step, gradient in enumerate(seen):
        square = beta2 * square + (1 - beta2) * gradient**2
        found[step] = np.sqrt(moved + epsilon) / np.sqrt(square + epsilon) * gradient
        moved = beta2 * moved + (1 - beta2) * found[step] ** 2
    return found


def _adamax(beta1: float, beta2: float, epsilon: float, seen: Array) -> Array:
    """Compute Adamax's direction. Source: Kingma and Ba 2015, algorithm 2; epsilon as in PyTorch and Optax."""
    found, mean, largest = np.empty_like(seen), np.zeros_like(seen[0]), np.zeros_like(seen[0])
    for step, gradient in enumerate(seen, start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        largest = np.maximum(beta2 * largest, np.abs(gradient) + epsilon)
        found[step - 1] = mean / (1 - beta1**step) / largest
    return found


def _scaled(recipe: Recipe, numbers: Mapping[str, float], seen: Array, rates: Array | None) -> Array:
    """Compute the directions of the families that divide by a root of squares.

    Source: Kingma and Ba 2015 (Adam), Duchi et al. 2011 (Adagrad), Graves 2013 (RMSprop, centred), Reddi et al. 2018 (AMSGrad),
    Dozat 2016 (Nadam), Liu et al. 2020 (RAdam), Zhuang et al. 2020 (AdaBelief).
    """
    flags, adam = recipe.flags, recipe.family == "adam"
    beta1, beta2 = numbers.get("beta1", 0.0), numbers.get("beta2", 1.0)
    fresh = 1.0 if recipe.family == "adagrad" else 1 - beta2
    momentum = numbers.get("momentum", 0.0)
    scale = np.ones(len(seen)) if rates is None or "rate in buffer" not in flags else rates
    zeros = np.zeros_like(seen[0])
    mean, level, most, buffer = zeros, zeros, zeros, zeros
    square = zeros + (1.0 if "started" in flags else numbers.get("start", 0.0))
    found = np.empty_like(seen)
    for step, gradient in enumerate(seen, start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        level = beta2 * level + (1 - beta2) * gradient
        square = beta2 * square + fresh * (gradient - mean if "belief" in flags else gradient) ** 2
        correction = 1 - beta2**step if (adam or "corrected" in flags) and beta2 < 1 else 1.0
        most = np.maximum(most, square / correction if "corrected maximum" in flags else square)
        used = square - level**2 if "centred" in flags else square
        used = most if "maximum" in flags else most * correction if "corrected maximum" in flags else used
        ahead = _ahead(flags, numbers, mean, gradient, step) if adam else mean
        direction = ahead / _root(flags, np.maximum(used, 0.0), correction, numbers["epsilon"])
        if "rectified" in flags:
            certain = _rectification(beta2, step)
            direction = certain * direction if certain else ahead
        buffer = momentum * buffer + direction * scale[step - 1]
        found[step - 1] = (
            direction + momentum * buffer if "nesterov" in flags and not adam else buffer / scale[step - 1]
        )
    return found


def _ahead(flags: frozenset[str], numbers: Mapping[str, float], mean: Array, gradient: Array, step: int) -> Array:
    """Return Adam's corrected mean, or with Nesterov's momentum that of one update ahead."""
    beta1, lead = numbers["beta1"], 1 - numbers["beta1"] ** step
    if "nesterov" in flags:
        return np.asarray(beta1 * mean / (1 - beta1 ** (step + 1)) + (1 - beta1) * gradient / lead)
    if "scheduled nesterov" in flags:  # Dozat 2016, section 3, with the schedule of PyTorch's documentation
        grown = beta1 * (1 - 0.5 * 0.96 ** (np.arange(1, step + 2) * numbers["momentum decay"]))
        product = np.prod(grown[:step])
        ahead = grown[step] / (1 - product * grown[step]) * mean
        return np.asarray((1 - grown[step - 1]) / (1 - product) * gradient + ahead)
    return np.asarray(mean / lead)


def _rectification(beta2: float, step: int) -> float:
    """Return RAdam's factor; 0 where the second moment is too uncertain to be used. Source: Liu et al. 2020, algorithm 2."""
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return 0.0
    shares = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return float(np.sqrt(max(shares, 0.0)))


def _root(flags: frozenset[str], square: Array, correction: float, epsilon: float) -> Array:
    if "inside" in flags:
        return np.asarray(np.sqrt(square / correction + epsilon))
    if "uncorrected epsilon" in flags:
        return np.asarray((np.sqrt(square) + epsilon) / np.sqrt(correction))
    return np.asarray(np.sqrt(square / correction) + epsilon)
