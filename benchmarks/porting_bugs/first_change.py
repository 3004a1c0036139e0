"""Find what a bug changes first, by a crude bound: it is compared with the correct training of its own framework."""

from __future__ import annotations

import numpy as np

from benchmarks.porting_bugs.layouts import Array
from noether_core.parity.divergence.training import Training

BOUND = 1.5e-6
"""Beyond what another order of summation does in these models within twelve updates, below what any of the bugs does."""


def distance(one: Array, other: Array) -> float:
    """Return ‖one − other‖ / max(‖one‖, ‖other‖) in float64, 2 where their shapes differ, 0 where both are zero."""
    if one.shape != other.shape:
        return 2.0
    wide, against = one.astype(np.float64), other.astype(np.float64)
    largest = max(np.linalg.norm(wide), np.linalg.norm(against))
    return float(np.linalg.norm(wide - against) / largest) if largest else 0.0


def rounded_sums(training: Training, update: int, key: str) -> float:
    """Return how far an update is off since the parameter that it is added to is rounded; 0 for all else than updates."""
    stage, _, name = key.partition("/")
    change, param = training.array(update, key), training.array(update, f"param/{name}")
    if stage != "update" or change is None or param is None:
        return 0.0
    return float(np.finfo(np.float32).eps * np.linalg.norm(param) / max(np.linalg.norm(change), 1e-30))


def first_change(bug: Training, correct: Training, bound: float = BOUND) -> tuple[int, str, float] | None:
    """Return the first update and key, in order, where both differ by more than the bound, and by how much."""
    for update in correct.updates():
        for key in correct.keys(update):
            one, other = bug.array(update, key), correct.array(update, key)
            if one is None or other is None:
                continue
            if (apart := distance(one, other)) > bound + rounded_sums(correct, update, key):
                return update, key, apart
    return None
