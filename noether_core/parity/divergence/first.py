"""Find the first difference: by update, by stage, by order of computation, and none that rounding explains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from noether_core.parity.divergence.allowance import Allowance
from noether_core.parity.divergence.conditioning import BLIND, is_null, parameter_of, unexplained_update
from noether_core.parity.divergence.kinks import Kinks, is_before, kinks_of
from noether_core.parity.divergence.noise import FLOORS, TIMES, Noise
from noether_core.parity.divergence.result import Divergence
from noether_core.parity.divergence.samples import Slope
from noether_core.parity.divergence.systematic import (
    FEWEST_KEYS,
    clipping,
    common_ratios,
    corrections,
    decays_of,
    pooled,
    ratios_of,
)
from noether_core.parity.divergence.table import Column, Table
from noether_core.parity.divergence.training import Training, stage_of

Array = np.ndarray[Any, Any]

OF_GRADIENTS = ("grad", "clip", "update", "opt")  # the stages where a null gradient leaves rounding alone
MOST = 1000  # differences that are listed
RATIO = 3e-6  # the least mean ratio of updates, minus 1, that is no rounding
DECAY = 1.5e-7  # the least slope on the parameter: PyTorch rounds 1 - rate * decay to binary32, which leaves up to 6e-8
CLIP = 3e-7  # the least mean of the clipped norms' log ratio; norms summed in binary32 leave a third of it
CLIP_ERRORS = 4.0  # standard errors of that mean, which the factors' own changes make larger
MORE = 100.0  # times its norm in twins that a gradient has where it is not rounding alone
SPREAD = 3.0  # times what twins show of a mean over updates, which is a draw of that mean
ERRORS = 8.0  # standard errors that a slope is from zero where it is no chance


@dataclass(frozen=True, order=True)
class Place:
    """Say where in the order of two trainings a pair stands."""

    update: int
    order: int
    key: str
    systematic: float = 0.0


@dataclass(frozen=True)
class Found:
    """Hold the differences in order, and what was explained.

    Attributes:
        differences: at most 1,000.
        explained: by reason, the pairs that were further apart than their noise and are no difference.
    """

    differences: tuple[Divergence, ...]
    explained: dict[str, list[Place]]


class Search:
    """Look for the differences in what was measured."""

    def __init__(self, a: Training, b: Training, table: Table, noise: Noise) -> None:
        self.a, self.b, self.table, self.noise = a, b, table, noise
        self.allowance = Allowance(table, noise)
        self.explained: dict[str, list[Place]] = {}
        self._order = {key: place for place, key in enumerate(table.columns)}
        self._kinks: dict[int, Kinks] = {}
        self._nulls: dict[tuple[int, str], bool] = {}
        self._corrections = corrections(table)

    def found(self) -> Found:
        """Return the differences in order.

        The first is one that nothing before it explains. Those after it are all that are beyond their noise, for what follows
        from the first is what a person wants to see.
        """
        suspects = sorted([*self._beyond(self.allowance.strict), *self._systematic()])
        first = next((place for place in suspects if not self._is_explained(place)), None)
        if first is None:
            return Found((), self.explained)
        explained = {place for places in self.explained.values() for place in places}
        later = [
            place for place in sorted(self._beyond(self.allowance.plain)) if place > first and place not in explained
        ]
        places = [first, *self._not_null(later, first)]
        return Found(tuple(self._divergence(place) for place in places), self.explained)

    def _beyond(self, allowed: Callable[[str], Array]) -> Iterator[Place]:
        """Yield the pairs that are further apart than allowed, of each key the first thousand."""
        for key, column in self.table.columns.items():
            beyond = (column.distance > allowed(key)) | self._contradicts(key)
            for row in np.flatnonzero(beyond)[:MOST]:
                yield Place(int(column.updates[row]), self._order[key], key)

    def _contradicts(self, key: str) -> Array:
        """Say at which updates a gradient that is rounding alone in twins is far more than that."""
        column = self.table.columns[key]
        if stage_of(key) not in ("grad", "clip") or key not in self.noise.norms:
            return np.zeros(len(column.updates), bool)
        null = self.noise.of_twins_at(key, column.updates) >= BLIND
        return np.asarray(null & (column.norm > MORE * self.noise.norms[key]))

    def _is_explained(self, place: Place) -> bool:
        reason = None if place.systematic else self._explanation(place)
        if reason is not None:
            self.explained.setdefault(reason, []).append(place)
        return reason is not None

    def _explanation(self, place: Place) -> str | None:
        stage, name = stage_of(place.key), parameter_of(place.key)
        column = self.table.columns[place.key]
        row = column.at(place.update)
        distance = float(column.distance[row])
        if not np.isfinite(distance):
            return None
        if stage == "param":
            return self._carried_on(place, distance)
        if stage == "act":
            return "drift" if distance <= self._drift_of_layer(place) else None
        if stage not in OF_GRADIENTS:
            return None
        if self._is_null(place.update, name):
            return "null gradient"
        if stage in ("update", "opt") and self._is_ill_conditioned(place, row):
            return "conditioning"
        if stage != "update":
            kinks = self._kinks_at(place.update)
            if distance <= kinks.furthest and is_before(self.table, name, kinks.last):
                return "kink"
            return "drift" if stage == "opt" and self._follows_drift(place) else None
        return None

    def _is_ill_conditioned(self, place: Place, row: int) -> bool:
        """Say whether the elements that a divisor near zero makes uncertain carry the difference."""
        factor = self._corrections.get(place.update, 0.0)
        rest = unexplained_update(self.a, self.b, self.table, place.update, place.key, factor)
        quiet = max(TIMES * self._quiet(place), float(self.allowance.rounded(place.key)[row]))
        return rest is not None and rest <= quiet

    def _quiet(self, place: Place) -> float:
        """Return the noise of a key's well-conditioned elements: what twins show, unless that is of ill-conditioned ones."""
        level = float(self.noise.at(place.key, np.array([place.update]))[0])
        return level if level < BLIND else FLOORS[stage_of(place.key)]

    def _drift_of_layer(self, place: Place) -> float:
        """Return how far a layer's parameters have drifted, which moves what the layer computes."""
        layer = place.key.partition("/")[2]
        apart = 0.0
        for column in self._drifted(place.update, layer + "."):
            apart = max(apart, float(column.distance[column.at(place.update)]))
        return apart

    def _follows_drift(self, place: Place) -> bool:
        """Say whether a buffer, such as a running mean, is no further apart than a parameter of its size has drifted."""
        column = self.table.columns[place.key]
        row = column.at(place.update)
        moved = float(column.distance[row] * column.norm[row])
        for parameter in self._drifted(place.update, ""):
            row = parameter.at(place.update)
            if parameter.size == column.size and moved <= 2 * parameter.distance[row] * parameter.norm[row]:
                return True
        return False

    def _drifted(self, update: int, layer: str) -> Iterator[Column]:
        """Yield the parameters of a layer that are apart by more than their noise; they are none of the differences so far."""
        for key, column in self.table.of_stage("param").items():
            row = column.at(update)
            known = row < len(column.updates) and column.updates[row] == update
            if known and key.startswith(f"param/{layer}") and column.distance[row] > self.allowance.plain(key)[row]:
                yield column

    def _carried_on(self, place: Place, distance: float) -> str | None:
        """Say whether a parameter's difference is that of the update before it, whatever that came from."""
        column = self.table.columns[place.key]
        parts = [(place.update - 1, place.key), (place.update - 1, f"update/{parameter_of(place.key)}")]
        apart = [self._apart(update, key) for update, key in parts]
        now = self._apart(place.update, place.key)
        if now is None or any(each is None or each.shape != now.shape for each in apart):
            return "noise" if distance <= self.allowance.of(place.key)[column.at(place.update)] else None
        rest = float(np.linalg.norm(now - sum(each for each in apart if each is not None)))
        carried = rest <= TIMES * FLOORS["param"] * column.norm[column.at(place.update)]
        return "carried on" if carried else None

    def _apart(self, update: int, key: str) -> Array | None:
        first, second = (each.array(update, key) if update >= 1 else None for each in (self.a, self.b))
        if first is None or second is None or first.shape != second.shape:
            return None
        return np.asarray(first, np.float64) - np.asarray(second, np.float64)

    def _kinks_at(self, update: int) -> Kinks:
        if update not in self._kinks:
            self._kinks[update] = kinks_of(self.a, self.b, self.table, self.noise, update)
        return self._kinks[update]

    def _not_null(self, later: Iterable[Place], first: Place) -> Iterator[Place]:
        taken = 1
        for place in later:
            null = self._is_finite(place) and stage_of(place.key) in OF_GRADIENTS
            null = null and self._is_null(place.update, parameter_of(place.key))
            if not null and not (place.update == first.update and self._is_explained(place)):
                yield place
                taken += 1
            if taken == MOST:
                return

    def _is_finite(self, place: Place) -> bool:
        column = self.table.columns[place.key]
        return bool(np.isfinite(column.distance[column.at(place.update)]))

    def _is_null(self, update: int, name: str) -> bool:
        known = self._nulls.get((update, name))
        if known is None:
            known = self._nulls[update, name] = is_null(self.table, self.noise, update, name)
        return known

    def _divergence(self, place: Place) -> Divergence:
        column = self.table.columns[place.key]
        row = column.at(place.update)
        noise = float(self.allowance.plain(place.key)[row]) / TIMES
        if noise >= BLIND:  # its elements, or its norm, say it in spite of the noise
            noise = FLOORS[stage_of(place.key)]
        return Divergence(place.update, stage_of(place.key), place.key, float(column.distance[row]), noise)

    def _systematic(self) -> Iterator[Place]:
        """Yield where slopes that are zero in correct pairs are not."""
        ratios = common_ratios(self.table)
        for update in sorted(self.table.drifts):
            common = ratios.get(update)
            if (
                common is not None
                and _agree(ratios_of(self.table, update), self._corrections.get(update, 0.0), common)
                and _stands_out(common, max(RATIO, TIMES * self.noise.ratio))
            ):
                yield self._first_of(update, ratios_of(self.table, update), common)
            beyond = {
                key: each
                for key, each in decays_of(self.table, update).items()
                if _stands_out(each, max(DECAY, TIMES * self.noise.decay))
            }
            if len(beyond) >= FEWEST_KEYS:
                yield self._first_of(update, beyond, pooled(beyond))
        mean = clipping(self.table)
        if mean.error and _stands_out(mean, max(CLIP, SPREAD * self.noise.clipping), CLIP_ERRORS):
            update = min(each for each, drift in self.table.drifts.items() if drift.clipping is not None)
            keys = [key for key, column in self.table.of_stage("clip").items() if update in column.updates]
            yield Place(update, self._order[keys[0]], keys[0], mean.value)

    def _first_of(self, update: int, slopes: dict[str, Slope], common: Slope) -> Place:
        shared = [key for key, each in slopes.items() if each.value / common.value > 0.5]
        key = min(shared or slopes, key=lambda each: self._order[each])
        return Place(update, self._order[key], key, common.value)


def _stands_out(slope: Slope, least: float, errors: float = ERRORS) -> bool:
    return abs(slope.value) > max(least, errors * slope.error)


def _agree(slopes: dict[str, Slope], rounded: float, common: Slope) -> bool:
    """Say whether two thirds of the keys have a slope in common."""
    near = [
        abs(each.value - rounded - common.value) <= max(0.5 * abs(common.value), 4 * each.error)
        for each in slopes.values()
    ]
    return 3 * sum(near) >= 2 * len(near)
