"""Find small differences that are the same for all elements, which norms do not show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from noether_core.parity.divergence.bias_correction import rounded_corrections
from noether_core.parity.divergence.rectification import rounded_rectification
from noether_core.parity.divergence.samples import Slope
from noether_core.parity.divergence.table import Table

FEWEST_KEYS = 2  # keys that must agree on a slope
LINEAR = 0.05  # the share of an update that is no multiple of its gradient, at most; of one by signs it is over a half
ALIKE = 3e-6  # how far keys' ratios may be from one another, beside their errors
SMALL = 1e-3
"""The largest distance of a key whose slopes are looked at. Beyond, its norm says it, or its conditioning explains it."""


def common_ratios(table: Table) -> dict[int, Slope]:
    """Return by update the ratio of all keys' updates, less what binary32 leaves in corrections of the moments."""
    found = {
        update: pooled(ratios)
        for update in sorted(table.drifts)
        if len(ratios := ratios_of(table, update)) >= FEWEST_KEYS
    }
    rounded = corrections(table)
    return {update: Slope(slope.value - rounded.get(update, 0.0), slope.error) for update, slope in found.items()}


def corrections(table: Table) -> dict[int, float]:
    """Return by update the factor, minus 1, that binary32 leaves in bias correction, or in rectification, between the two."""
    small = {update: pooled(ratios) for update in table.drifts if (ratios := ratios_of(table, update))}
    if not _may_be_rectified(table):
        return rounded_corrections(small)
    of_all = {update: _shared(drift.ratios) for update, drift in table.drifts.items()}
    of_most = {update: shared for update, shared in of_all.items() if shared is not None}
    return rounded_rectification(of_most) or rounded_corrections(small)


def _may_be_rectified(table: Table) -> bool:
    """Tell whether the optimizer has second moments by which it did not divide the first update, a multiple of the gradient.

    So rates that go apart when RAdam would begin to divide are taken for nothing else than that in no other optimizer.
    """
    first = table.drifts.get(1)
    has_moments = any(key.startswith("opt/nu/") for key in table.columns)
    return has_moments and first is not None and first.nonlinear < LINEAR


def _shared(ratios: Mapping[str, Slope]) -> Slope | None:
    """Return the ratio that two thirds of the keys have in common; None if they do not, or are too few."""
    if len(ratios) < FEWEST_KEYS:
        return None
    middle = float(np.median([ratio.value for ratio in ratios.values()]))
    near = {key: each for key, each in ratios.items() if abs(each.value - middle) <= max(ALIKE, 4 * each.error)}
    return pooled(near) if 3 * len(near) >= 2 * len(ratios) else None


def ratios_of(table: Table, update: int) -> dict[str, Slope]:
    """Return the ratios of an update's keys that differ little."""
    drift = table.drifts.get(update)
    return {} if drift is None else _of_small(table, update, drift.ratios)


def decays_of(table: Table, update: int) -> dict[str, Slope]:
    """Return the slopes on the parameter of an update's keys that differ little."""
    drift = table.drifts.get(update)
    return {} if drift is None else _of_small(table, update, drift.decays)


def _of_small(table: Table, update: int, slopes: Mapping[str, Slope]) -> dict[str, Slope]:
    columns = table.columns
    return {key: each for key, each in slopes.items() if columns[key].distance[columns[key].at(update)] <= SMALL}


def pooled(slopes: Mapping[str, Slope]) -> Slope:
    """Return the mean of slopes, weighted by the inverse squares of their errors.

    >>> pooled({"a": Slope(1e-5, 1e-7), "b": Slope(1e-5, 1e-7)}).value
    1e-05
    """
    if not slopes:
        return Slope(0.0, 0.0)
    values = np.array([slope.value for slope in slopes.values()])
    weights = np.array([max(slope.error, 1e-8) for slope in slopes.values()]) ** -2.0
    return Slope(float(np.average(values, weights=weights)), float(np.sum(weights)) ** -0.5)


def clipping(table: Table) -> Slope:
    """Return the mean over updates of the log ratio of clipped norms; an error of 0 says that fewer than three clip."""
    found = np.array([drift.clipping for drift in table.drifts.values() if drift.clipping is not None])
    if len(found) < 3:
        return Slope(0.0, 0.0)
    return Slope(float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(len(found))))
