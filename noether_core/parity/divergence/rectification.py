"""Know the factor that binary32 leaves in RAdam's rectification, which is no difference of two trainings.

PyTorch computes how certain the second moment is in binary64 (`torch/optim/radam.py`), optax in binary32
(`optax.scale_by_radam`). It is the small difference of two numbers of up to 2 / (1 − β₂): with 0.999, one unit in the last
place of β₂ᵗ moves the first rectified updates by a hundredth of their size. So all updates from then on are apart by a
factor that β₂ and the count give.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from noether_core.parity.divergence.bias_correction import BETAS, CLOSE, UNITS
from noether_core.parity.divergence.samples import Slope

CERTAIN = 5.0  # the length from which updates are rectified. Source: Liu et al. 2020, algorithm 2, as in both libraries
ERRORS = 4.0  # standard errors that a ratio may be off


def range_of_rectification(beta: float, update: int) -> tuple[float, float]:
    """Return the least and the largest of binary32's rectified step over the exact one, minus 1; zeros where none is rectified.

    >>> [f"{bound:.3f}" for bound in range_of_rectification(0.999, 6)], range_of_rectification(0.999, 5)
    (['-0.053', '0.041'], (0.0, 0.0))
    """
    exact = _step(beta, beta**update, update)
    if not exact:
        return 0.0, 0.0
    rounded = float(np.float32(beta) ** np.float32(update))
    moved = [_step(beta, rounded + units * 2.0**-24, update) / exact - 1 for units in (-UNITS, 0, UNITS)]
    return min(moved) - CLOSE, max(moved) + CLOSE


def rounded_rectification(ratios: Mapping[int, Slope]) -> dict[int, float]:
    """Return by update what binary32's rectification leaves in b's updates over a's, minus 1; empty if that is not it.

    Before the first rectified update there must be no such factor, and from it on one that a beta in use can leave.

    Args:
        ratios: by update, the ratio of b's updates to a's over all keys, minus 1.
    """
    if all(_is_within(ratio, 0.0, 0.0) for ratio in ratios.values()):
        return {}
    for beta in BETAS:
        for turned in (False, True):
            ranges = {update: _range(beta, update, turned) for update in ratios}
            rectified = [update for update, bounds in ranges.items() if bounds != (0.0, 0.0)]
            before = len(ratios) - len(rectified)
            if before and rectified and all(_is_within(ratios[update], *ranges[update]) for update in ratios):
                return {update: ratios[update].value if update in rectified else 0.0 for update in ratios}
    return {}


def _range(beta: float, update: int, turned: bool) -> tuple[float, float]:
    """Return the range where b's, or `turned` a's, is the rounded one."""
    least, most = range_of_rectification(beta, update)
    return (1 / (1 + most) - 1, 1 / (1 + least) - 1) if turned and least else (least, most)


def _is_within(ratio: Slope, least: float, most: float) -> bool:
    error = CLOSE + ERRORS * ratio.error
    return least - error <= ratio.value <= most + error


def _step(beta: float, power: float, update: int) -> float:
    """Return the factor of the mean over the root of the second moment, βᵗ given; 0 where it is not certain enough."""
    longest = 2 / (1 - beta) - 1
    length = longest - 2 * update * power / (1 - power)
    if length <= CERTAIN:
        return 0.0
    return float(np.sqrt((1 - power) * (length - 4) * (length - 2) / length))
