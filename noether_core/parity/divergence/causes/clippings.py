"""Measure what clipping did to gradients, where these were kept before and after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from noether_core.parity.divergence.causes.measures import factor
from noether_core.parity.divergence.training import Training

_PARALLEL = 1e-5


@dataclass(frozen=True)
class Clipping:
    """Say what one side's clipping did at an update.

    Attributes:
        kind: `none`, `global`, `by array`, `by value` or `other`.
        norm: of the gradients before.
        clipped: the norm after; by array, the largest key's; by value, the largest magnitude.
        scale: the factor by which all gradients were multiplied; NaN unless global.
    """

    kind: str
    norm: float
    clipped: float
    scale: float


def clipping(side: Training, update: int) -> Clipping | None:
    """Return what clipping did at an update, from the gradients before and after it; None if these were not kept."""
    names = [key.partition("/")[2] for key in side.keys(update) if key.startswith("clip/")]
    scales, lefts, befores, afters, largest = [], [], [], [], []
    for name in names:
        before, after = side.array(update, f"grad/{name}"), side.array(update, f"clip/{name}")
        if before is None or after is None or before.shape != after.shape or not before.size:
            continue
        x, y = before.astype(np.float64), after.astype(np.float64)
        if x.any():
            scale, left = factor(x, y)
            scales.append(scale)
            lefts.append(left)
            befores.append(float(np.linalg.norm(x)))
            afters.append(float(np.linalg.norm(y)))
            largest.append(float(np.abs(y).max()))
    norm, clipped = float(np.linalg.norm(befores)), float(np.linalg.norm(afters))
    if not scales or not np.isfinite(norm + clipped):
        return None
    weights = np.array(befores) ** 2
    middle = float((weights * scales).sum() / weights.sum())
    big = np.array(befores) > 1e-5 * norm
    apart = float(np.abs(np.array(scales)[big] / middle - 1).max()) if middle else 0.0
    if max(np.array(lefts)[big]) > _PARALLEL:
        return Clipping("by value", norm, max(largest), float("nan"))
    if apart > _PARALLEL:
        return Clipping("by array", norm, max(afters), float("nan"))
    return Clipping("none" if abs(middle - 1) < 2e-6 else "global", norm, clipped, middle)
