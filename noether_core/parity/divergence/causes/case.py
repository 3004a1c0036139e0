"""Hand the rules what they look at: both trainings, the noise, and where they first part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from noether_core.parity.divergence.causes.measures import distance
from noether_core.parity.divergence.result import Divergence
from noether_core.parity.divergence.training import Training
from noether_core.parity.divergence.view import TrainingView

Array = np.ndarray[Any, Any]

_FLOORS = {"update": 1e-6, "opt": 1e-6}
_FLOOR = 2e-7
_CLEAR = 10.0  # times the noise
_MOST = 500_000  # elements that are looked at where some will do


def thinned(values: Array) -> Array:
    """Return an array in one dimension and binary64, of a large one evenly chosen elements."""
    flat = values.reshape(-1)
    return np.asarray(flat[:: max(1, flat.size // _MOST)].astype(np.float64))


class Filled(TrainingView):
    """Show a training without its arrays of no elements: of these no rule can say anything."""

    def array(self, update: int, key: str) -> Array | None:
        """Return an array, or None if it was not kept or is empty."""
        found = self.training.array(update, key)
        return found if found is not None and found.size else None


class KnowsNoise(Protocol):
    """What the rules ask of the noise."""

    def at(self, key: str, updates: Array) -> Array:
        """Return the relative distances that two runs of the same training may have at a key."""


@dataclass(frozen=True)
class Case:
    """Hold two trainings and where they first part.

    Attributes:
        a, b: the trainings.
        noise: of each key and update; None for floors.
        first: the first difference.
    """

    a: Training
    b: Training
    noise: KnowsNoise | None
    first: Divergence

    @property
    def update(self) -> int:
        """The update at which they first part."""
        return self.first.update

    def keys(self, stage: str, update: int | None = None) -> list[str]:
        """Return a stage's keys that both have, in the first one's order."""
        at = self.update if update is None else update
        other = set(self.b.keys(at))
        return [key for key in self.a.keys(at) if key.startswith(stage + "/") and key in other]

    def updates(self) -> Sequence[int]:
        """Return the updates that both have."""
        other = set(self.b.updates())
        return [update for update in self.a.updates() if update in other]

    def raw(self, key: str, update: int | None = None) -> tuple[Array, Array] | None:
        """Return both arrays as they were kept; None if one is missing."""
        at = self.update if update is None else update
        one, other = self.a.array(at, key), self.b.array(at, key)
        return None if one is None or other is None else (one, other)

    def pair(self, key: str, update: int | None = None) -> tuple[Array, Array] | None:
        """Return both arrays in binary64; None if one is missing or their shapes differ."""
        found = self.raw(key, update)
        if found is None or found[0].shape != found[1].shape or not found[0].size:
            return None
        return found[0].astype(np.float64), found[1].astype(np.float64)

    def some(self, key: str, update: int | None = None) -> tuple[Array, Array] | None:
        """Return both arrays in one dimension and binary64, of large ones evenly chosen elements, the same of both."""
        found = self.raw(key, update)
        if found is None or found[0].shape != found[1].shape or not found[0].size:
            return None
        return thinned(found[0]), thinned(found[1])

    def limit(self, key: str, update: int | None = None) -> float:
        """Return how far apart a key may be and still count as the same."""
        at = self.update if update is None else update
        floor = _FLOORS.get(key.partition("/")[0], _FLOOR)
        return _CLEAR * max(floor, 0.0 if self.noise is None else float(self.noise.at(key, np.array([at]))[0]))

    def agrees(self, key: str, update: int | None = None) -> bool:
        """Tell whether a key is the same in both, but for noise."""
        found = self.some(key, update)
        return found is not None and distance(*found) <= self.limit(key, update)

    def differing(self, stage: str, update: int | None = None) -> list[str]:
        """Return a stage's keys that are not the same in both."""
        return [key for key in self.keys(stage, update) if not self.agrees(key, update)]
