"""Say what of the starts of a run stands: what the newest one wrote, and what it goes on from of the others.

From a start that went on from update M, what its ancestors logged or saved after M is superseded, and so is all of a start that
is no ancestor. What the end of a start gave out of an interval that was not over is provisional: it stands until something
comes after it, from a descendant that has all steps of that interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from noether_core.emit.starts import NEWEST, Start


class Lineage:
    """Hold what stands.

    Args:
        starts: those that wrote something, the oldest first.
        updates: the updates at which each did.

    Attributes:
        until: of each start, the last update up to which what it wrote stands; -1 if nothing does.
    """

    def __init__(self, starts: Sequence[Start], updates: Sequence[Any]) -> None:
        wrote = [at for at, each in enumerate(updates) if len(each)]
        newest = wrote[-1] + 1 if wrote else 0  # a start that wrote nothing supersedes nothing
        self.until = [*standing(starts[:newest]), *[-1.0] * (len(starts) - newest)]
        self._since = [start.since for start in starts]
        self._last = [_last(each, until) for each, until in zip(updates, self.until, strict=True)]

    def stands(self, start: int, update: int, *, is_provisional: bool = False) -> bool:
        """Tell whether what a start wrote at an update stands.

        Args:
            start: its place among all.
            update: where it wrote.
            is_provisional: whether that is of an interval that was not over.
        """
        if update > self.until[start]:
            return False
        later = range(start + 1, len(self.until)) if is_provisional else ()
        return not any(self._since[each] < update < self._last[each] for each in later)


def _last(updates: Any, until: float) -> int:
    """Return the last of these updates that is not after `until`; -1 if there is none."""
    found = np.asarray(updates, np.int64)
    return int(np.max(found, initial=-1, where=found <= until))


def standing(starts: Sequence[Start]) -> list[float]:
    """Return for each start, the oldest first, the last update up to which what it wrote stands; -1 if nothing does.

    >>> standing([Start("a", (), -1), Start("b", (("a", 12),), -1), Start("c", (("a", 18),), -1)])
    [18, -1, inf]
    """
    stands: list[float] = [-1] * len(starts)
    places = {start.id: at for at, start in enumerate(starts)}
    unnamed = [at for at, start in enumerate(starts) if start.id == NEWEST]
    at, limit = len(starts) - 1, math.inf
    while at >= 0:
        stands[at] = limit
        before, at = at, -1
        for name, until in starts[before].ancestors:
            limit = min(limit, until)
            at = before - 1 if name == NEWEST else places.get(name, -1)
            if at < 0:  # it wrote nothing; or its record is lost
                at = next((each for each in reversed(unnamed) if each < before), -1)
            if 0 <= at < before:
                break
            at = -1
    return stands
