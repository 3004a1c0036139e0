"""Describe the interval under way: which plans its steps had, what is reduced of them, and which copies are the newest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.reduce.layout import Taken
from noether_core.reduce.partial import Partials
from noether_core.reduce.plan import MOST_PLANS, DeviceGroup, Plan, Tallies


class Copy(NamedTuple):
    """Point at a copy on its device: an array, or an element of a vector."""

    group: DeviceGroup
    array: Array
    at: int | None
    position: int


class Use(NamedTuple):
    """Say how often a plan was used, and what its newest step left: the copies of each of its groups."""

    steps: int
    number: int
    position: int
    taken: tuple[Taken, ...]

    def copies(self, plan: Plan) -> Iterator[tuple[str, Copy]]:
        """Yield each key's newest copy."""
        for part, taken in zip(plan.groups, self.taken, strict=True):
            for key, group, index in part.kept:
                array = taken.arrays[index] if group < 0 else taken.rows[group]
                yield key, Copy(part.group, array, None if group < 0 else index, self.position)


class Interval(NamedTuple):
    """Hold an interval under way. It is never changed, so that a step is undone by going back to the one before.

    Attributes:
        states: what is reduced, of each device group.
        uses: the plans used; when they are too many, what they say goes into the next two.
        keys: of plans that are no longer in `uses`, in the order they came.
        tallies: of these plans, by device group.
        copies: the newest of each key, likewise.
        stacked: a plan's use for every step whose values are kept, the newest first, as nested pairs.
        shapes: of the stacked keys.
        carried: what a loaded state brought.
        steps: how many steps there were.
    """

    carried: Partials
    states: Mapping[DeviceGroup, Any] = {}
    uses: Mapping[Plan, Use] = {}
    keys: tuple[str, ...] = ()
    tallies: Mapping[DeviceGroup, Tallies] = {}
    copies: Mapping[str, Copy] = {}
    stacked: tuple[Any, Plan, Use] | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}
    steps: int = 0


def noted(interval: Interval, plan: Plan, states: Mapping[DeviceGroup, Any], taken: Any, position: int) -> Interval:
    """Return the interval with one more step."""
    if len(interval.uses) > MOST_PLANS:
        interval = interval._replace(
            uses={}, keys=keys_of(interval), tallies=tallied(interval), copies=newest_copies(interval)
        )
    used = interval.uses.get(plan)
    use = Use(1 if used is None else used.steps + 1, interval.steps, position, taken if plan.keeps else ())
    stacked, shapes = interval.stacked, interval.shapes
    if plan.shapes:
        stacked, shapes = (stacked, plan, use), {**shapes, **plan.shapes}
    return Interval(
        interval.carried,
        states,
        {**interval.uses, plan: use},
        interval.keys,
        interval.tallies,
        interval.copies,
        stacked,
        shapes,
        interval.steps + 1,
    )


def keys_of(interval: Interval) -> tuple[str, ...]:
    """Return the keys in the order they came."""
    return tuple(dict.fromkeys(chain(interval.carried.keys, interval.keys, *(plan.keys for plan in interval.uses))))


def tallied(interval: Interval) -> dict[DeviceGroup, Tallies]:
    """Return what was counted of each device group."""
    counted: dict[DeviceGroup, list[Tallies]] = {group: [tallies] for group, tallies in interval.tallies.items()}
    for plan, use in interval.uses.items():
        for part in plan.groups:
            counted.setdefault(part.group, []).append(part.tallies.times(use.steps))
    return {group: found[0] if len(found) == 1 else _added(found) for group, found in counted.items()}


def _added(parts: Sequence[Tallies]) -> Tallies:
    sums: dict[str, tuple[int, int, bool, bool]] = {}
    for tallies in parts:
        for key, slot, elements, wide, whole in zip(*map(list, tallies), strict=True):
            _, more, is_wide, is_whole = sums.get(key, (slot, 0, False, True))
            sums[key] = slot, elements + more, wide or is_wide, whole and is_whole
    return Tallies(tuple(sums), *map(np.array, zip(*sums.values(), strict=True)))


def newest_copies(interval: Interval) -> dict[str, Copy]:
    """Return the newest copy of each key of which they are kept."""
    newest = dict(interval.copies)
    for plan, use in sorted(interval.uses.items(), key=lambda pair: pair[1].number):
        if plan.keeps:
            newest.update(use.copies(plan))
    return newest


def stacks_of(interval: Interval) -> dict[str, list[Copy]]:
    """Return the copies of each key whose values are stacked, in the order they came."""
    stacks: dict[str, list[Copy]] = {}
    stacked = interval.stacked
    while stacked is not None:
        stacked, plan, use = stacked
        for key, copy in use.copies(plan):
            if key in plan.shapes:
                stacks.setdefault(key, []).append(copy)
    return {key: copies[::-1] for key, copies in stacks.items()}
