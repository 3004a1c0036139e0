"""Fit an optimizer's coefficients to what it was seen to do: rates and decay by least squares, the rest by Gauss–Newton."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.optimizer_recipes import Recipe, directions, numbers_of
from noether_core.parity.divergence.causes.optimizer_samples import FEWEST, Samples

Array = np.ndarray[Any, Any]

_POOR = 3.0  # rounding errors
_STEP = 1e-5  # of a numeric derivative, in the transformed numbers


@dataclass(frozen=True)
class Fit:
    """Hold an optimizer that was fitted to one training.

    Attributes:
        recipe, numbers: what it is.
        misfit: the root of the mean square of what is left, in rounding errors; near 1 where the optimizer is this one.
        by_update: the same for each update, `t`.
        rates: of each update and key, `t × k`.
        rate_errors: one standard deviation of each.
        decays: of each update and key what is subtracted of a parameter, a share, `t × k`; zero where decay is coupled.
        decay_errors: one standard deviation of each.
        coupled: strength of coupled decay by key, `k`.
    """

    recipe: Recipe
    numbers: Mapping[str, float]
    misfit: float
    by_update: Array = field(repr=False)
    rates: Array = field(repr=False)
    rate_errors: Array = field(repr=False)
    decays: Array = field(repr=False)
    decay_errors: Array = field(repr=False)
    coupled: Array = field(repr=False)


def evaluate(samples: Samples, recipe: Recipe, numbers: Mapping[str, float], coupled: Array | None = None) -> Fit:
    """Fit the rates and the decay alone, with the other numbers as given."""
    strengths = np.zeros(len(samples.names)) if coupled is None else coupled
    return _projected(samples, recipe, numbers, strengths)[0]


def fit(samples: Samples, recipe: Recipe, start: Fit | None = None) -> Fit:
    """Fit all numbers of a recipe, from the best of a small grid, or from another fit's numbers."""
    options = numbers_of(recipe)
    if start is not None:
        options = {
            name: (start.numbers[name],) if name in start.numbers else values for name, values in options.items()
        }
    grid = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    coupled = None if start is None else start.coupled
    tried = sorted((evaluate(samples, recipe, numbers, coupled) for numbers in grid), key=lambda each: each.misfit)
    if recipe.family == "sign":
        return _stepped_decay(samples, tried[0]) if "coupled" in recipe.flags else tried[0]
    found = refine(samples, tried[0], tuple(options))
    others = tried[1:3] if found.misfit > _POOR else []  # a search may end in a hollow
    found = min([found, *(refine(samples, each, tuple(options)) for each in others)], key=lambda each: each.misfit)
    return _of_one_decay(samples, found, options) if found.misfit > _POOR and "coupled" in recipe.flags else found


def _of_one_decay(samples: Samples, at: Fit, options: Mapping[str, Sequence[float]]) -> Fit:
    """Search on from one coupled decay for the keys that have about that, and none for others: what trainings mostly have.

    Where decay outweighs gradients, as in Adam, which scales both alike, small decays of their own lead a search into hollows.
    """
    size = np.abs(at.coupled)
    strength = float(np.median(at.coupled[size >= 0.5 * size.max()]))
    coupled = np.where(np.abs(at.coupled - strength) < 0.5 * abs(strength), strength, 0.0)
    starts = [{**at.numbers, "epsilon": each} for each in options.get("epsilon", ())] or [dict(at.numbers)]
    tried = min((evaluate(samples, at.recipe, numbers, coupled) for numbers in starts), key=lambda each: each.misfit)
    if tried.misfit > at.misfit:
        return at
    return min(at, refine(samples, tried, tuple(options)), key=lambda each: each.misfit)


def _stepped_decay(samples: Samples, start: Fit) -> Fit:
    """Search one coupled decay by steps, for the keys that it serves: signs have no slope that leads to it."""
    none = np.zeros(len(samples.names))
    without = _left_by_key(samples, start, none)
    fits = [start]
    for strength in np.outer(10.0 ** np.arange(-5, 1), (1.0, 2.0, 5.0)).reshape(-1):
        serves = _left_by_key(samples, start, none + strength) < without
        if serves.any():
            fits.append(evaluate(samples, start.recipe, start.numbers, np.where(serves, strength, 0.0)))
    return min(fits, key=lambda each: each.misfit)


def _left_by_key(samples: Samples, at: Fit, coupled: Array) -> Array:
    """Return the squares of what is left of each key's updates, `k`, with a coupled decay."""
    left = _projected(samples, at.recipe, at.numbers, coupled)[1]
    return samples.sums((left**2).sum(axis=0))


def refine(samples: Samples, start: Fit, free: Sequence[str], rounds: int = 14) -> Fit:
    """Move the numbers named in `free`, and coupled decay, to where the misfit is least; the others stay."""
    decaying = "coupled" in start.recipe.flags and "decay fixed" not in free
    names = [name for name in free if name in start.numbers]
    best, damping = start, 1e-4
    if not names and not decaying:
        return best
    slopes: tuple[Array, Array, Array] | None = None
    for _ in range(rounds):
        if slopes is None:
            slopes = _slopes(samples, best, names, decaying)
        tried = _moved(samples, best, names, slopes, damping)
        if tried.misfit < best.misfit:
            gain = 1 - tried.misfit / best.misfit
            best, damping, slopes = tried, damping / 10, None
            if gain < 1e-4:
                break
        else:
            damping *= 30
            if damping > 1e6:
                break
    return best


def coupled_errors(samples: Samples, at: Fit) -> Array:
    """Return one standard deviation of each key's coupled decay, with all other numbers as they are."""
    by_decay = _slopes(samples, at, (), decaying=True)[2]
    return np.asarray(max(at.misfit, 0.3) / np.sqrt(np.maximum(samples.sums((by_decay**2).sum(axis=0)), 1e-300)))


def _projected(samples: Samples, recipe: Recipe, numbers: Mapping[str, float], coupled: Array) -> tuple[Fit, Array]:
    """Solve for rate and decay of each update and key in closed form; return the fit and what is left, `t × n`."""
    owners, decay = samples.owners, coupled[samples.owners]
    rates = None
    if "rate in buffer" in recipe.flags:
        plain = Recipe(recipe.family, recipe.flags - {"rate in buffer", "momentum"})
        alone = directions(plain, {**numbers, "momentum": 0.0}, samples.gradients, samples.parameters, decay)
        rates = _rates_in_buffer(samples, numbers.get("momentum", 0.0), alone)
    direction = directions(recipe, numbers, samples.gradients, samples.parameters, decay, rates)
    d, p = direction * samples.weights, samples.parameters * samples.weights
    target = -samples.updates * samples.weights
    counts = samples.sums(np.ones(d.shape[1]))
    dd, pp, dp = samples.sums(d * d), samples.sums(p * p), samples.sums(d * p)
    du, pu = samples.sums(d * target), samples.sums(p * target)
    both = (dd * pp - dp**2 > 1e-9 * dd * pp) & (counts >= FEWEST) & ("coupled" not in recipe.flags)
    determinant = np.where(both, dd * pp - dp**2, 1.0)
    a = np.where(both, (du * pp - pu * dp) / determinant, du / np.maximum(dd, 1e-300))
    b = np.where(both, (pu * dd - du * dp) / determinant, 0.0)
    left = target - a[:, owners] * d - b[:, owners] * p
    counted = samples.counted
    left = np.where(counted[owners], left, 0.0)
    freedom = np.where(counted, np.maximum(counts - 1 - both, 0.5), 0.0) + np.zeros_like(dd)
    by_update = np.sqrt((left**2).sum(axis=1) / freedom.sum(axis=1))
    misfit = float(np.sqrt((left**2).sum() / freedom.sum()))
    a_error = np.sqrt(np.where(both, pp / determinant, np.where(counted, 1 / np.maximum(dd, 1e-300), np.inf)))
    b_error = np.sqrt(np.where(both, dd / determinant, np.inf))
    scale = max(misfit, 0.3)
    found = Fit(recipe, dict(numbers), misfit, by_update, a, a_error * scale, b, b_error * scale, coupled)
    return found, left


def _rates_in_buffer(samples: Samples, momentum: float, alone: Array) -> Array:
    """Return each update's rate: u_t − momentum · u_{t−1} is −rate_t times the direction alone where the buffer holds rates."""
    before = np.vstack([np.zeros_like(samples.updates[:1]), samples.updates[:-1]])
    target = -(samples.updates - momentum * before) * samples.weights
    seen = alone * samples.weights
    rates = (seen * target).sum(axis=1) / np.maximum((seen * seen).sum(axis=1), 1e-300)
    return np.asarray(np.where(np.abs(rates) > 1e-30, rates, 1e-30))


def _slopes(samples: Samples, at: Fit, names: Sequence[str], decaying: bool) -> tuple[Array, Array, Array]:
    """Return what is left, its derivatives by the numbers, `s × t × n`, and by coupled decay, `t × n`."""
    left = _projected(samples, at.recipe, at.numbers, at.coupled)[1]
    by_number = np.zeros((len(names), *left.shape))
    for index, name in enumerate(names):
        moved = {**at.numbers, name: _shifted(name, at.numbers[name], _STEP)}
        by_number[index] = (_projected(samples, at.recipe, moved, at.coupled)[1] - left) / _STEP
    by_decay = np.zeros_like(left)
    if decaying:
        step = _decay_step(samples)
        by_decay = (_projected(samples, at.recipe, at.numbers, at.coupled + step)[1] - left) / step[samples.owners]
    return left, by_number, by_decay


def _moved(samples: Samples, at: Fit, names: Sequence[str], slopes: tuple[Array, Array, Array], damping: float) -> Fit:
    """Take one damped Gauss–Newton step. Each key's decay touches its own elements alone, which keeps the matrix small."""
    left, by_number, by_decay = slopes
    s, k = len(names), len(samples.names)
    matrix, right = np.zeros((s + k, s + k)), np.zeros(s + k)
    flat = by_number.reshape(s, left.size)
    matrix[:s, :s], right[:s] = flat @ flat.T, -flat @ left.reshape(-1)
    matrix[:s, s:] = samples.sums((by_number * by_decay).sum(axis=1)).reshape(s, k)
    matrix[s:, :s] = matrix[:s, s:].T
    matrix[np.arange(s, s + k), np.arange(s, s + k)] = samples.sums((by_decay**2).sum(axis=0))
    right[s:] = -samples.sums((by_decay * left).sum(axis=0))
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-200))
    scale[np.diag(matrix) == 0] = 1.0
    normal = matrix / np.outer(scale, scale) + np.eye(s + k) * (damping + 1e-12)
    step = np.linalg.solve(normal, right / scale) / scale
    numbers = dict(at.numbers)
    for name, change in zip(names, np.clip(step[:s], -1.5, 1.5), strict=True):
        numbers[name] = _shifted(name, numbers[name], float(change))
    return _projected(samples, at.recipe, numbers, at.coupled + step[s:])[0]


def _shifted(name: str, value: float, change: float) -> float:
    """Move a number on the scale on which a search for it is even: log(1 − x) for averages' rates, log x for the others."""
    if name in ("epsilon", "start"):
        return float(np.exp(np.clip(np.log(value) + change, -40.0, 0.0 if name == "epsilon" else 5.0)))
    return float(1 - np.exp(-np.clip(-np.log1p(-value) + change, 0.0, 12.0)))


def _decay_step(samples: Samples) -> Array:
    """Return by key a decay that moves the gradient by a thousandth."""
    size = samples.sums(np.abs(samples.gradients).mean(axis=0)) / np.maximum(
        samples.sums(np.abs(samples.parameters).mean(axis=0)), 1e-12
    )
    return np.asarray(1e-3 * np.clip(size, 1e-6, 1e6))
