"""Say what of the starts of a run stands: what the newest one wrote, and what it goes on from of the others.

From a start that went on from update M, what its ancestors logged or saved after M is superseded, and so is all of a start that
is no ancestor. What the end of a start gave out of an interval that was not over is provisional: it stands until something
comes after it, from a descendant that has all steps of that interval.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate
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
        whole = standing(starts)
        least = [min(each, whole[at]) if at < newest else whole[at] for at, each in enumerate(self.until)]
        begins = sorted((start.ancestors[0][1] if start.ancestors else -1.0, at) for at, start in enumerate(starts))
        self._begins = [begin for begin, _ in begins]
        # up to which update all stands that the starts up to each of these wrote
        self._least = list(accumulate((least[at] for _, at in begins), min))
        last = [_last(each, until) for each, until in zip(updates, self.until, strict=True)]
        # of what is between two of these updates, which start is the last that went over it with all its steps
        self._updates, self._gone_over = _newest_over(
            [(start.since + 1, end) for start, end in zip(starts, last, strict=True)]
        )

    def stands_whoever_wrote(self, update: int) -> bool:
        """Tell whether what was written at an update stands, whichever of the starts that went on from before it wrote it."""
        before = bisect_left(self._begins, update)
        return before == 0 or update <= self._least[before - 1]

    def stands(self, start: int, update: int, *, is_provisional: bool = False) -> bool:
        """Tell whether what a start wrote at an update stands.

        Args:
            start: its place among all.
            update: where it wrote.
            is_provisional: whether that is of an interval that was not over.
        """
        if update > self.until[start]:
            return False
        return not is_provisional or self._gone_over[bisect_right(self._updates, update)] <= start


def _newest_over(stretches: Sequence[tuple[float, float]]) -> tuple[list[float], list[int]]:
    """Return the ends of stretches, and what of them is before, between and after two ends the last one over that; -1: none is.

    A stretch has its first number, and not its last.

    >>> _newest_over([(0, 5), (3, 9), (7, 8)])
    ([0, 3, 5, 7, 8, 9], [-1, 0, 1, 1, 2, 1, -1])
    """
    ends = sorted({end for first, last in stretches if first < last for end in (first, last)})
    begins: dict[float, list[int]] = {}
    for place, (first, last) in enumerate(stretches):
        if first < last:
            begins.setdefault(first, []).append(place)
    newest, open_ones = [-1], list[int]()  # a heap, the last one first
    for end in ends:
        for place in begins.get(end, ()):
            heappush(open_ones, -place)
        while open_ones and stretches[-open_ones[0]][1] <= end:
            heappop(open_ones)
        newest.append(-open_ones[0] if open_ones else -1)
    return ends, newest


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
