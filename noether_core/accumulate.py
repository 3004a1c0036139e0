"""Hold the interval under way: which keys were seen, and what of them is reduced so far.

Per step only a plan is looked up and executed; a plan is made once per key set and value signature. Slots are given to
keys as they come and stay theirs, so a new key set extends the state and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np

from noether_core import host
from noether_core.backend import Backend, Layout, Reducer, Step, ValueType
from noether_core.reduce import NEVER, NUMPY, Array, Sums, merge, place_code

_MOST_PLANS = 256  # plans kept; values whose shape changes all the time would make ever more


class Partial(NamedTuple):
    """Hold what one key has of an interval, on the host.

    Attributes:
        sums: the sums of its one slot, fields of shape ().
        elements: how many elements were lifted.
        wide: whether a mean is rounded to float64.
        last: the newest value, in its own dtype and shape; None where it was not kept.
        last_update: the update (from 1) that had it.
    """

    sums: Sums
    elements: int
    wide: bool
    last: np.ndarray[Any, Any] | None
    last_update: int


def merge_partials(a: Partial, b: Partial) -> Partial:
    """Return what a key has of two parts of an interval, `b` the later where both saw the same update."""
    newest = b if b.last_update >= a.last_update else a
    with np.errstate(over="ignore", invalid="ignore"):
        sums = merge(NUMPY, a.sums, b.sums)
    return Partial(sums, a.elements + b.elements, a.wide or b.wide, newest.last, newest.last_update)


@dataclass(frozen=True, eq=False)
class _PlacePlan:
    reducer: Reducer
    place: Hashable
    layout: Layout
    scalars: tuple[tuple[int, ...], ...]  # positions among the tracked values, a group per dtype
    arrays: tuple[int, ...]
    kept: tuple[tuple[str, int, int], ...]  # key, and its group and index, or -1 and its array


@dataclass(frozen=True, eq=False)
class _Plan:
    places: tuple[_PlacePlan, ...]
    elements: Mapping[str, int]
    wide: Mapping[str, bool]


@dataclass
class _Place:
    reducer: Reducer
    slots: dict[str, int] = field(default_factory=dict)
    state: Any = None


class _Kept(NamedTuple):
    """Point at a copy on its device: an array, or an element of a vector."""

    update: int
    place: Hashable
    array: Array
    at: int | None


class OutputAccumulator:
    """Accumulate tracked values until the interval ends.

    Args:
        backend: knows the framework's arrays.
        keeps: tells whether a key's newest value is wanted as it is.
        check: is given each new key and type of value, and raises if the config cannot take it.
    """

    def __init__(self, backend: Backend, keeps: Callable[[str], bool], check: Callable[[str, ValueType], None]) -> None:
        self._backend = backend
        self._keeps = keeps
        self._check = check
        self._plans: dict[Hashable, _Plan] = {}
        self._places: dict[Hashable, _Place] = {}
        self._uses: dict[_Plan, int] = {}
        self._seen: dict[str, tuple[int, bool]] = {}
        self._kept: dict[str, _Kept] = {}
        self._carried: dict[str, Partial] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys seen in this interval, in the order they came."""
        return tuple(
            dict.fromkeys([*self._carried, *self._seen, *(key for plan in self._uses for key in plan.elements)])
        )

    def add(self, keys: tuple[str, ...], values: Sequence[Any], update: int, accumulation_step: int) -> None:
        """Merge one accumulation step's values in; on an error everything stays as it was.

        Args:
            keys: the keys to track, in the order they are to be logged.
            values: their values.
            update: the update they belong to, from 1.
            accumulation_step: its accumulation step, from 0.
        """
        if not keys:
            return
        plan = self._plan(keys, values)
        code = place_code(update, accumulation_step)
        done = []
        for part in plan.places:
            place = self._places[part.place]
            groups = tuple(tuple(values[at] for at in group) for group in part.scalars)
            arrays = tuple(values[at] for at in part.arrays)
            done.append(part.reducer.absorb(place.state, Step(part.layout, groups, arrays, len(place.slots), code)))
        for part, (state, taken) in zip(plan.places, done, strict=True):
            self._places[part.place].state = state
            for key, group, index in part.kept:
                copy = taken.arrays[index] if group < 0 else taken.rows[group]
                self._kept[key] = _Kept(update, part.place, copy, None if group < 0 else index)
        self._uses[plan] = self._uses.get(plan, 0) + 1
        if len(self._uses) > _MOST_PLANS:
            self._tally()

    def _plan(self, keys: tuple[str, ...], values: Sequence[Any]) -> _Plan:
        signature = (keys, self._backend.signature(values))
        plan = self._plans.get(signature)
        if plan is None:
            types = [self._inspect(key, value) for key, value in zip(keys, values, strict=True)]
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[signature] = self._make_plan(keys, types)
        return plan

    def _inspect(self, key: str, value: Any) -> tuple[ValueType, Reducer]:
        found = self._backend.inspect(key, value)
        reducer = self._backend.reducer if found is not None else host.REDUCER
        found = found or host.inspect(key, value, self._backend.name)
        self._check(key, found)
        return found, reducer

    def _make_plan(self, keys: tuple[str, ...], types: Sequence[tuple[ValueType, Reducer]]) -> _Plan:
        by_place: dict[Hashable, list[int]] = {}
        for at, (found, _) in enumerate(types):
            by_place.setdefault(found.place, []).append(at)
        return _Plan(
            tuple(self._make_place_plan(place, keys, types, members) for place, members in by_place.items()),
            {key: prod(found.shape) for key, (found, _) in zip(keys, types, strict=True)},
            {key: found.wide for key, (found, _) in zip(keys, types, strict=True)},
        )

    def _make_place_plan(
        self, place: Hashable, keys: tuple[str, ...], types: Sequence[tuple[ValueType, Reducer]], members: Sequence[int]
    ) -> _PlacePlan:
        groups: dict[str, list[int]] = {}
        arrays: list[int] = []
        for at in members:
            found, _ = types[at]
            is_scalar = prod(found.shape) == 1 and not (found.shape and self._keeps(keys[at]))
            (groups.setdefault(found.dtype, []) if is_scalar else arrays).append(at)
        reducer = types[members[0]][1]
        slots = self._places.setdefault(place, _Place(reducer)).slots
        order = [keys[at] for group in groups.values() for at in group] + [keys[at] for at in arrays]
        for key in order:
            slots.setdefault(key, len(slots))
        kept = [
            (keys[at], number, index)
            for number, group in enumerate(groups.values())
            for index, at in enumerate(group)
            if self._keeps(keys[at])
        ]
        kept += [(keys[at], -1, index) for index, at in enumerate(arrays) if self._keeps(keys[at])]
        layout = Layout(
            np.array([slots[key] for key in order], np.int64), tuple(self._keeps(keys[at]) for at in arrays)
        )
        return _PlacePlan(reducer, place, layout, tuple(map(tuple, groups.values())), tuple(arrays), tuple(kept))

    def _tally(self) -> dict[str, tuple[int, bool]]:
        """Return the number of elements and the width of each key seen, and note them."""
        for plan, uses in self._uses.items():
            for key, elements in plan.elements.items():
                before, wide = self._seen.get(key, (0, False))
                self._seen[key] = (before + uses * elements, wide or plan.wide[key])
        self._uses.clear()
        return self._seen

    def partials(self) -> dict[str, Partial]:
        """Return what each key has so far, in the order they came. This waits for the device."""
        order = self.keys
        seen = self._tally()
        found = dict(self._carried)
        for name, place in self._places.items():
            if place.state is None:
                continue
            copies = {key: kept for key, kept in self._kept.items() if kept.place == name}
            distinct = {id(kept.array): kept.array for kept in copies.values()}
            sums, arrays = place.reducer.to_host(place.state, list(distinct.values()))
            hosted = dict(zip(distinct, arrays, strict=True))
            for key, slot in place.slots.items():
                if key not in seen or slot >= len(sums.high):
                    continue
                part = Partial(Sums(*(values[slot] for values in sums)), 0, False, None, -1)
                if (kept := copies.get(key)) is not None:
                    value = hosted[id(kept.array)]
                    part = part._replace(
                        last=np.asarray(value if kept.at is None else value[kept.at]), last_update=kept.update
                    )
                found[key] = merge_partials(found[key], part) if key in found else part
        return {key: self._counted(key, found[key]) for key in order}

    def _counted(self, key: str, partial: Partial) -> Partial:
        elements, wide = self._seen.get(key, (0, False))
        return partial._replace(elements=partial.elements + elements, wide=partial.wide or wide)

    def load(self, partials: Mapping[str, Partial]) -> None:
        """Go on from what another accumulator had, of this framework or another."""
        self.reset()
        self._carried = dict(partials)

    def reset(self) -> None:
        """Start the next interval."""
        for place in self._places.values():
            place.state = None
        self._uses.clear()
        self._seen.clear()
        self._kept.clear()
        self._carried.clear()


def first_nonfinite(partial: Partial) -> int | None:
    """Return the place code of a key's first NaN or infinity, or None."""
    code = int(partial.sums.first)
    return None if code == NEVER else code
