"""Find what a bug changes first, by a crude bound: it is compared with the correct training of its own framework."""

from __future__ import annotations

import numpy as np

from benchmarks.porting_bugs.layouts import Array
from noether_core.parity.divergence.training import Training

BOUND = 3e-6
"""Beyond what another order of summation does in these models within twelve updates, below what any of the bugs does."""


def distance(one: Array, other: Array) -> float:
    """Return ‖one − other‖ / max(‖one‖, ‖other‖) in float64, 2 where their shapes differ, 0 where both are zero."""
    if one.shape != other.shape:
        return 2.0
    wide, against = one.astype(np.float64), other.astype(np.float64)
    largest = max(np.linalg.norm(wide), np.linalg.norm(against))
    return float(np.linalg.norm(wide - against) / largest) if largest else 0.0


def first_change(bug: Training, correct: Training, bound: float = BOUND) -> tuple[int, str, float] | None:
    """Return the first update and key, in order, where both differ by more than the bound, and by how much."""
    for update in correct.updates():
        for key in correct.keys(update):
            one, other = bug.array(update, key), correct.array(update, key)
            if one is not None and other is not None and (apart := distance(one, other)) > bound:
                return update, key, apart
    return None
