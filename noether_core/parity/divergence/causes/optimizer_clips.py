"""Find clipping that no stage shows, since it is a part of the optimizer, as in a chain of gradient transformations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.case import Case
from noether_core.parity.divergence.causes.clippings import clipping
from noether_core.parity.divergence.causes.optimizer_fit import Fit, evaluate
from noether_core.parity.divergence.causes.optimizer_recipes import Recipe
from noether_core.parity.divergence.causes.optimizer_rule import Fits, acceptable, known
from noether_core.parity.divergence.causes.optimizer_samples import Samples
from noether_core.parity.divergence.result import Cause
from noether_core.parity.divergence.training import Training
from noether_core.text import number

Array = np.ndarray[Any, Any]

_EVEN = 3e-4  # relative: rates and norms that are a constant, but for rounding
_FEWEST = 3  # clipped updates that show it
_GAIN = 0.02  # of the misfit: what clipping that is there leaves at most
_KNOWN = 25.0  # rounding errors
_GRID = 25
_APART = 1e-2  # relative: a threshold that is searched is not found closer
_USUAL = tuple({"beta1": 0.9, "beta2": beta2, "epsilon": 1e-8} for beta2 in (0.999, 0.95, 0.98, 0.99))


@dataclass(frozen=True)
class Clip:
    """Say what a side clips by.

    Attributes:
        kind: `none`, `global`, `by array`, `by value` or `other`.
        threshold: the norm, or the value; of rates that are always scaled, times an unknown rate.
        is_hidden: whether no stage shows it.
        is_scaled: whether the threshold is times an unknown rate.
    """

    kind: str = "none"
    threshold: float = float("nan")
    is_hidden: bool = False
    is_scaled: bool = False


def clip_of(side: Training, samples: Samples, fits: Fits, others: Fits) -> Clip:
    """Return what a side clips by, as its clipped gradients say, or else as its updates do."""
    updates = range(1, len(samples.gradients) + 1)
    if any(key.startswith("clip/") for key in side.keys(1)):
        series = [each for update in updates if (each := clipping(side, update)) is not None and each.kind != "none"]
        if not series:
            return Clip()
        return Clip(series[0].kind, float(np.median([each.clipped for each in series])))
    norms = _norms(side, len(samples.gradients))
    if not norms or set(samples.names) - set(norms):
        return Clip()
    total = np.sqrt(sum(each**2 for each in norms.values()))
    own = np.stack([norms[name] for name in samples.names], axis=1)
    if known(fits):
        plain = next((fits[recipe] for recipe in acceptable(fits) if recipe.family == "sgd"), None)
        return Clip() if plain is None else _by_rates(plain, total, own, samples)
    return _by_search(samples, total, own, fits, others)


def unclipped(samples: Samples, side: Training, clip: Clip) -> Samples:
    """Return samples with the gradients that the rest of an optimizer sees behind hidden clipping."""
    norms = _norms(side, len(samples.gradients)) if clip.is_hidden else {}
    if not norms:
        return samples
    total = np.sqrt(sum(each**2 for each in norms.values()))
    own = np.stack([norms[name] for name in samples.names], axis=1)
    threshold = float(total.min() if clip.kind == "global" else own.min()) if clip.is_scaled else clip.threshold
    return _clipped(samples, total, own, replace(clip, threshold=threshold))


def hidden_clip_causes(case: Case, a: Clip, b: Clip) -> Iterator[Cause]:
    """Name how two sides' clipping differs, where the gradients' stages do not show it."""
    has_stage = [any(key.startswith("clip/") for key in side.keys(case.update)) for side in (case.a, case.b)]
    if all(has_stage) or (a.kind == b.kind == "none"):
        return
    words = tuple(f"{who}: {_words(clip)}" for who, clip in (("the first", a), ("the second", b)))
    if "none" in (a.kind, b.kind):
        who = "first" if b.kind == "none" else "second"
        yield Cause(
            "clip-missing",
            f"Gradients are clipped {_words(a if who == 'first' else b)} in the {who} alone.",
            words,
            0.96,
        )
    elif a.kind != b.kind:
        cause = "clip-by-value" if "by value" in (a.kind, b.kind) else "clip-by-array"
        yield Cause(cause, f"Gradients are clipped {_words(a)} in one and {_words(b)} in the other.", words, 0.95)
    elif a.is_scaled == b.is_scaled and abs(a.threshold / b.threshold - 1) > _APART:
        yield Cause(
            "clip-threshold",
            f"The threshold is {number(a.threshold)} in one and {number(b.threshold)} in the other"
            f"{', times the learning rate' if a.is_scaled else ''}.",
            words,
            0.93,
        )


def _words(clip: Clip) -> str:
    if clip.kind == "none":
        return "not at all"
    kinds = {"global": "by their global norm", "by array": "array by array", "by value": "by value"}
    bound = "" if clip.is_scaled else f", to {number(clip.threshold)}"
    return f"{kinds.get(clip.kind, clip.kind)}{bound}"


def _norms(side: Training, count: int) -> dict[str, Array]:
    """Return the norms of each gradient at the first updates; nothing if one is missing."""
    found: dict[str, list[float]] = {}
    for update in range(1, count + 1):
        for key in side.keys(update):
            if key.startswith("grad/"):
                statistics = side.statistics(update, key)
                found.setdefault(key.partition("/")[2], []).append(
                    float("nan") if statistics is None else statistics.norm
                )
    if any(len(each) != count or not np.isfinite(each).all() for each in found.values()):
        return {}
    return {name: np.array(each) for name, each in found.items()}


def _by_rates(fit: Fit, total: Array, own: Array, samples: Samples) -> Clip:
    """Ask whether rates are one over the gradients' norm where that is large, and constant where it is not."""
    good = samples.counted & (np.abs(fit.rates) > 20 * fit.rate_errors).all(axis=0)
    if not good.any():
        return Clip()
    rates, weights = fit.rates[:, good], 1 / fit.rate_errors[:, good] ** 2
    together = (rates * weights).sum(axis=1) / weights.sum(axis=1)
    errors = 1 / np.sqrt(weights.sum(axis=1)) / np.abs(together)
    for kind, series, norms, error in (
        ("global", together, total, float(np.max(errors))),
        (
            "by array",
            rates.reshape(-1),
            own[:, good].reshape(-1),
            float(np.max(fit.rate_errors[:, good] / np.abs(rates))),
        ),
    ):
        found = _bent(series, norms, max(_EVEN, 4 * error))
        if found is not None:
            rate, product = found
            is_scaled = not np.isfinite(rate)
            return Clip(kind, product if is_scaled else product / rate, is_hidden=True, is_scaled=is_scaled)
    return Clip()


def _bent(rates: Array, norms: Array, even: float) -> tuple[float, float] | None:
    """Return the rate of small norms, NaN if there are none, and the rate times the norm of large ones; or None if uneven."""
    order = np.argsort(norms, kind="stable")
    rates, norms = rates[order], norms[order]
    products = rates * norms
    for split in range(len(rates) - _FEWEST + 1):
        low, high = rates[:split], products[split:]
        if _spread(high) > even or (split and _spread(low) > even) or _spread(rates[split:]) < 10 * even:
            continue
        rate, product = (float(np.median(low)) if split else float("nan")), float(np.median(high))
        if split and not norms[split - 1] * (1 - 10 * even) <= product / rate <= norms[split] * (1 + 10 * even):
            continue
        return rate, product
    return None


def _spread(values: Array) -> float:
    return float(np.ptp(values) / np.abs(values).max()) if len(values) else 0.0


def _by_search(samples: Samples, total: Array, own: Array, fits: Fits, others: Fits) -> Clip:
    """Search a threshold behind which the optimizer is one that is known."""
    raw = min(each.misfit for each in fits.values())
    starts = _starts(others)
    best, least = Clip(), max(_GAIN * raw, 0.0)
    sizes = np.abs(samples.gradients)
    ranges = {
        "global": (total.min(), total.max()),
        "by array": (own[own > 0].min(initial=1e-12), own.max()),
        "by value": (float(np.quantile(sizes, 0.5)), float(sizes.max())),
    }
    for kind, (low, high) in ranges.items():
        if not 0 < low < high:
            continue
        grid = np.geomspace(0.05 * low if kind != "by value" else low, 0.999 * high, _GRID)
        for _ in range(4):
            tried = [
                (_misfit(samples, total, own, Clip(kind, float(c), is_hidden=True), starts), float(c)) for c in grid
            ]
            misfit, threshold = min(tried)
            place = [c for _, c in tried].index(threshold)
            grid = np.geomspace(grid[max(0, place - 1)], grid[min(len(grid) - 1, place + 1)], 9)
        if misfit < min(least, _KNOWN):
            best, least = Clip(kind, threshold, is_hidden=True), misfit
    return best


def _starts(others: Fits) -> Sequence[tuple[Recipe, dict[str, float], Array | None]]:
    if known(others):
        best = min(others.values(), key=lambda each: each.misfit)
        return [(best.recipe, dict(best.numbers), best.coupled)]
    return [(Recipe("adam"), dict(numbers), None) for numbers in _USUAL] + [(Recipe("sgd"), {"momentum": 0.9}, None)]


def _misfit(samples: Samples, total: Array, own: Array, clip: Clip, starts: Sequence[Any]) -> float:
    changed = _clipped(samples, total, own, clip)
    return min(evaluate(changed, recipe, numbers, coupled).misfit for recipe, numbers, coupled in starts)


def _clipped(samples: Samples, total: Array, own: Array, clip: Clip) -> Samples:
    if clip.kind == "by value":
        return replace(samples, gradients=np.clip(samples.gradients, -clip.threshold, clip.threshold))
    norms = total[:, None] if clip.kind == "global" else own[:, samples.owners]
    scales = np.minimum(1.0, clip.threshold / np.maximum(norms, 1e-300))
    return replace(samples, gradients=samples.gradients * scales)
