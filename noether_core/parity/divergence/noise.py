"""Measure how far a training drifts from its own twins, which started a rounding error apart: what is no difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from noether_core.parity.divergence.drifts import upstream
from noether_core.parity.divergence.systematic import clipping, common_ratios, decays_of
from noether_core.parity.divergence.table import Column, Table, measured
from noether_core.parity.divergence.training import Training, stage_of
from noether_core.parity.divergence.twins import Parting, before, parting
from noether_core.silence import SILENT

Array = np.ndarray[Any, Any]

FLOORS: Mapping[str, float] = {
    "data": 2e-7,
    "param": 2e-7,
    "act": 2e-7,
    "loss": 2e-7,
    "grad": 2e-7,
    "clip": 2e-7,
    "update": 1e-6,
    "opt": 2e-7,
}
"""The least noise of each stage, in relative norm: what binary32 alone makes of two orders of summation."""

TIMES = 10.0
"""How many times its noise a key must differ by. `docs/porting_bugs.md` has what it finds and what it lets pass."""

ROUNDING = 3e-8  # the relative norm of rounding to binary32: 2**-24 / √3, at most
RESPONSE = 100.0  # how many times as far as the parameters the rest drifts, where no twins say it


@dataclass(frozen=True)
class Noise:
    """Hold what twins drift, key by key.

    Attributes:
        levels: by key, updates (ascending) and the running maximum of the twins' distances up to each.
        norms: by key, the largest norm that the base or a twin had.
        responses: by key, how far it drifted at most for each unit that the parameters had drifted.
        ratio, decay, clipping: the largest systematic slopes of updates, of decay and of clipping between twins.
        twins: how many were measured. None: floors stand in.
        partings: of twins that part from their base by more than rounding can, where they do; from there on they are no noise.
    """

    levels: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    responses: Mapping[str, float] = field(default_factory=dict)
    ratio: float = 0.0
    decay: float = 0.0
    clipping: float = 0.0
    twins: int = 0
    partings: tuple[Parting, ...] = ()

    @classmethod
    @SILENT
    def of_twins(cls, base: Training, twins: Sequence[Training]) -> Noise:
        """Measure the noise of a training from its twins.

        Twins of another framework than the base are measured against one another, so that what the frameworks differ in is no
        noise.

        Args:
            base: a training.
            twins: the same from weights that are nudged by a rounding error, or with each batch's rows in another order.
        """
        groups: dict[str, list[Training]] = {base.framework: [base]}
        for twin in twins:
            groups.setdefault(twin.framework, []).append(twin)
        found = cls()
        for first, *others in groups.values():
            for other in others:
                found = found | cls._of_twin(first, other)
        return found

    @classmethod
    def _of_twin(cls, base: Training, twin: Training) -> Noise:
        """Measure one twin, as far as rounding is all that moves it."""
        table = measured(base, twin, any_order=True)
        where = parting(base, twin, table)
        if where is None:
            return cls.of_table(table)
        found = cls.of_table(before(table, where.update))
        return replace(found, twins=int(where.update > min(table.updates)), partings=(where,))

    @classmethod
    def of_table(cls, table: Table) -> Noise:
        """Return the noise that one twin shows, from what was measured between it and its base."""
        columns = {key: column for key, column in table.columns.items() if np.isfinite(column.distance).any()}
        levels = {key: (column.updates, _running(column.distance / column.nearby)) for key, column in columns.items()}
        norms = {key: float(np.max(np.nan_to_num(column.norm, posinf=0.0))) for key, column in columns.items()}
        drift = upstream(table)
        responses = {key: _response(column, *drift) for key, column in columns.items()}
        decays = (slope.value for update in table.drifts for slope in decays_of(table, update).values())
        return cls(
            levels,
            norms,
            responses,
            ratio=max((abs(ratio.value) for ratio in common_ratios(table).values()), default=0.0),
            decay=max(map(abs, decays), default=0.0),
            clipping=abs(clipping(table).value),
            twins=1,
        )

    def at(self, key: str, updates: Array) -> Array:
        """Return a key's noise at some updates, binary64, at least its stage's floor.

        >>> Noise().at("grad/weight", np.array([1, 2]))
        array([2.e-07, 2.e-07])
        """
        return np.maximum(self.of_twins_at(key, updates), FLOORS[stage_of(key)])

    def of_twins_at(self, key: str, updates: Array) -> Array:
        """Return what twins show of a key at some updates: the maximum so far, 0 before the first."""
        known, levels = self.levels.get(key, (np.empty(0, np.int64), np.empty(0)))
        places = np.searchsorted(known, updates, side="right")
        return np.concatenate([[0.0], levels])[places]

    def response(self, key: str) -> float:
        """Return how far a key drifts for each unit that the parameters have drifted."""
        return self.responses.get(key, RESPONSE)

    def __or__(self, other: Noise) -> Noise:
        """Return the larger of two noises, key by key and update by update.

        >>> (Noise(twins=1) | Noise(twins=2)).twins
        3
        """
        keys = dict.fromkeys([*self.levels, *other.levels])
        levels = {}
        for key in keys:
            updates = np.union1d(*(noise.levels.get(key, (np.empty(0, np.int64),))[0] for noise in (self, other)))
            updates = updates.astype(np.int64)
            levels[key] = updates, np.maximum(self.of_twins_at(key, updates), other.of_twins_at(key, updates))
        return Noise(
            levels,
            _larger(self.norms, other.norms),
            _larger(self.responses, other.responses),
            max(self.ratio, other.ratio),
            max(self.decay, other.decay),
            max(self.clipping, other.clipping),
            self.twins + other.twins,
            (*self.partings, *other.partings),
        )


def _running(distance: Array) -> Array:
    return np.maximum.accumulate(np.where(np.isfinite(distance), distance, 0.0))


def _response(column: Column, updates: Array, drifts: Array) -> float:
    places = np.searchsorted(updates, column.updates)
    if not len(updates):
        return RESPONSE
    drift = drifts[np.minimum(places, len(updates) - 1)]
    distance = np.where(np.isfinite(column.distance), column.distance, 0.0)
    return float(np.max(distance / np.maximum(drift, ROUNDING)))


def _larger(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    keys = dict.fromkeys([*first, *second])
    return {key: max(first.get(key, 0.0), second.get(key, 0.0)) for key in keys}
