"""Say how far each key may be apart at each update: its noise, and what follows from what was seen before it in the step."""

from __future__ import annotations

from typing import Any

import numpy as np

from noether_core.parity.divergence.conditioning import BLIND, parameter_of
from noether_core.parity.divergence.drifts import upstream
from noether_core.parity.divergence.noise import FLOORS, ROUNDING, TIMES, Noise
from noether_core.parity.divergence.systematic import corrections
from noether_core.parity.divergence.table import Table
from noether_core.parity.divergence.training import stage_of

Array = np.ndarray[Any, Any]

FOLLOWS = 3.0  # times its gradients' distance that an update or an optimizer's state may be apart, before TIMES
ONE_WAY = 5.0  # times as far as by rounding here and there do parameters move the rest that drift all one way


class Allowance:
    """Say how far keys may be apart.

    What follows from an observed difference is not a new one. Parameters that have drifted by d may move activations, losses
    and gradients by as many times d as in twins, and more where they drift all one way, as by the rounding of Adam's bias
    correction; losses that are apart move gradients, for both follow from the residuals; gradients that are apart move their
    updates and optimizer state; updates that were apart leave parameters apart.
    """

    def __init__(self, table: Table, noise: Noise) -> None:
        self.table, self.noise = table, noise
        self._updates, self._drifts = upstream(table)
        self._times = TIMES * (ONE_WAY if corrections(table) else 1.0)

    def plain(self, key: str) -> Array:
        """Return a key's noise, ten times, at its updates, binary64."""
        column = self.table.columns[key]
        return TIMES * self.noise.at(key, column.updates) * column.nearby

    def of(self, key: str) -> Array:
        """Return how far a key may be apart at its updates, binary64."""
        return np.maximum(self.plain(key), self._following(key))

    def _following(self, key: str) -> Array:
        stage, column = stage_of(key), self.table.columns[key]
        if stage == "data":
            return np.zeros(len(column.updates))
        if stage == "param":
            return self.plain(key) + self._left_by_updates(key)
        from_parameters = self._times * self.noise.response(key) * self._drift(column.updates)
        if stage in ("grad", "clip"):
            return np.maximum(from_parameters, TIMES * self._of_losses(column.updates))
        if stage not in ("update", "opt"):
            return np.asarray(from_parameters)
        gradients = self._of_gradients(key)
        if gradients is None:
            return np.asarray(from_parameters)
        return np.maximum(self._times * FOLLOWS * gradients, self.rounded(key))

    def strict(self, key: str) -> Array:
        """Return how far a key may be apart before its elements are looked at, which norms leave open where they allow all."""
        allowed, plain = self.of(key), self.plain(key)
        if stage_of(key) not in ("param", "update", "opt") or f"grad/{parameter_of(key)}" not in self.table.columns:
            return allowed
        least = np.full(len(plain), TIMES * FLOORS[stage_of(key)])
        return np.where(allowed < BLIND, allowed, np.where(plain < BLIND, plain, least))

    def _drift(self, updates: Array) -> Array:
        """Return how far the parameters as a whole are apart at updates; between those known, as at the next."""
        if not len(self._updates):
            return np.zeros(len(updates))
        return np.asarray(self._drifts[np.minimum(np.searchsorted(self._updates, updates), len(self._updates) - 1)])

    def _left_by_updates(self, key: str) -> Array:
        """Return how far the updates so far may have left a parameter apart, relative to it.

        Updates between those known are taken to be as the next known.
        """
        column = self.table.columns[key]
        updates = self.table.columns.get(f"update/{parameter_of(key)}")
        if updates is None:
            return np.zeros(len(column.updates))
        gaps = np.diff(updates.updates, prepend=0)
        apart = np.where(np.isfinite(updates.distance), updates.distance * updates.norm, 0.0)
        sums = np.concatenate([[0.0], np.cumsum(gaps * apart)])
        places = np.searchsorted(updates.updates, column.updates)  # those before the parameter's update
        return np.asarray(2 * sums[places] / np.where(column.norm > 0, column.norm, np.inf))

    def _of_losses(self, updates: Array) -> Array:
        """Return the largest distance that losses have had so far, at updates: small residuals move both alike."""
        found = np.zeros(len(updates))
        for each in self.table.of_stage("loss").values():
            running = np.maximum.accumulate(np.where(np.isfinite(each.distance), each.distance, 0.0))
            found = np.maximum(found, np.concatenate([[0.0], running])[np.searchsorted(each.updates, updates, "right")])
        return found

    def _of_gradients(self, key: str) -> Array | None:
        """Return the largest distance that the gradients behind a key have had so far, at its updates."""
        column, name = self.table.columns[key], parameter_of(key)
        found = [self.table.columns.get(f"{stage}/{name}") for stage in ("grad", "clip")]
        gradients = [each for each in found if each is not None]
        if not gradients:
            return None
        each = gradients[-1]
        running = np.maximum.accumulate(np.where(np.isfinite(each.distance), each.distance, 0.0))
        return np.concatenate([[0.0], running])[np.searchsorted(each.updates, column.updates, side="right")]

    def rounded(self, key: str) -> Array:
        """Return what the rounding of parameters to binary32 leaves in updates, which are differences of parameters."""
        column = self.table.columns[key]
        if stage_of(key) != "update":
            return np.zeros(len(column.updates))
        parameter = self.table.columns.get(f"param/{parameter_of(key)}")
        if parameter is None:
            return np.zeros(len(column.updates))
        norms = parameter.norm[
            np.minimum(np.searchsorted(parameter.updates, column.updates), len(parameter.updates) - 1)
        ]
        return np.asarray(3 * ROUNDING * norms / np.where(column.norm > 0, column.norm, np.inf))
