"""Know the factor that binary32 leaves in Adam's bias correction, which is no difference of two trainings.

PyTorch computes 1 − β₂ᵗ in binary64 (`torch/optim/adam.py`), optax in binary32 (`optax.tree.bias_correction`). There 0.999 is
1.3e-8 too large, and the difference from 1 is 1e-3 at first: so all updates of one are up to 1e-5 larger than the other's, by a
factor that β₂ and the count give exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from noether_core.parity.divergence.samples import Slope

BETAS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)
"""The decay rates of second moments in use."""

CLOSE = 1e-6  # how far a ratio may be from the factor
UNITS = 8  # in the last place, by which XLA's power may be off on a GPU
FIRST = 4  # updates whose ratios must agree with it


def factor_of_rounding(beta: float, update: int) -> float:
    """Return by how much binary32's √(1 − βᵗ) is off, relative to the exact one.

    >>> f"{factor_of_rounding(0.999, 1):.2e}"
    '-6.44e-06'
    """
    rounded = np.float32(1) - np.float32(beta) ** np.float32(update)
    return float(np.sqrt(np.float64(rounded) / (1 - beta**update)) - 1)


def rounded_corrections(ratios: Mapping[int, Slope]) -> dict[int, float]:
    """Return by update what binary32's bias correction leaves in b's updates over a's, minus 1; empty if that is not it.

    Args:
        ratios: by update, the ratio of b's updates to a's over all keys, minus 1.
    """
    first = sorted(ratios)[:FIRST]
    if not first:
        return {}
    best: tuple[float, float, float] | None = None
    for beta in BETAS:
        allowed = np.array([CLOSE + error_of_power(beta, update) for update in first])
        factors = np.array([factor_of_rounding(beta, update) for update in first])
        for sign in (1.0, -1.0):
            apart = np.abs(np.array([ratios[update].value for update in first]) - sign * factors)
            off = float(np.max(apart / allowed))
            if best is None or off < best[0]:
                best = off, beta, sign
    if best is None or best[0] > 1:
        return {}
    return {update: _explained(ratios[update].value, best[1], best[2], update) for update in ratios}


def error_of_power(beta: float, update: int) -> float:
    """Return what a few units in the last place of βᵗ make of √(1 − βᵗ): powers differ by one on CPUs, by more on GPUs.

    >>> error_of_power(0.999, 1), f"{error_of_power(0.999, 3):.0e}"
    (0.0, '8e-05')
    """
    return 0.0 if update == 1 else UNITS * 2.0**-24 / (2 * (1 - beta**update))


def _explained(ratio: float, beta: float, sign: float, update: int) -> float:
    """Return what of a ratio the factor explains, whose power may be a unit off."""
    factor, error = sign * factor_of_rounding(beta, update), error_of_power(beta, update)
    return float(np.clip(ratio, factor - error, factor + error))
