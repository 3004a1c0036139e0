"""Hold what is known of one key, update by update, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from noether_core.probes.statistics import REALS, Statistics, statistics_from

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array, Array, Array]  # updates, and their counts, reals and fingerprints


@dataclass(frozen=True, eq=False)
class Columns:
    """Hold what is known of one key, update by update.

    Attributes:
        count: int64 [updates].
        mean, std, norm, min, max: float64 [updates].
        fingerprint: uint64 [updates]; as text it is 16 hexadecimal digits.
    """

    count: Array
    mean: Array
    std: Array
    norm: Array
    min: Array
    max: Array
    fingerprint: Array

    def at(self, place: int) -> Statistics:
        """Return what is known at one of the updates, by its place."""
        reals = np.array([getattr(self, name)[place] for name in REALS])
        return statistics_from(int(self.count[place]), reals, int(self.fingerprint[place]))


def columns_of(parts: Sequence[Part]) -> Columns:
    """Return parts that follow each other as columns."""
    reals = joined([part[2] for part in parts], np.float64).reshape(-1, len(REALS))
    counts, prints = joined([part[1] for part in parts], np.int64), joined([part[3] for part in parts], np.uint64)
    return Columns(count=counts, fingerprint=prints, **{name: reals[:, at] for at, name in enumerate(REALS)})


def joined(parts: Sequence[Array], dtype: Any) -> Array:
    """Return vectors one after the other; of none, an empty one."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
