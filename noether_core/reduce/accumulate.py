"""Hold the interval under way: which keys were seen, and what of them is reduced so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import decode_position, encode_position
from noether_core.algebra.sums import Fields, Statistics, each, empty
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.errors import UpdateOutputError
from noether_core.reduce import host
from noether_core.reduce.backend import Backend
from noether_core.reduce.layout import Step, Taken
from noether_core.reduce.partial import Newest, Partials, Stack, merge_partials, no_partials, spread
from noether_core.reduce.plan import MOST_PLANS, DeviceGroup, GroupPlan, Plan, Planner, Tallies


class _Copy(NamedTuple):
    """Point at a copy on its device: an array, or an element of a vector."""

    group: DeviceGroup
    array: Array
    at: int | None
    position: int


class _Use(NamedTuple):
    """Say how often a plan was used, and what its newest step left: the copies of each of its groups."""

    steps: int
    number: int
    position: int
    taken: tuple[Taken, ...]

    def copies(self, plan: Plan) -> Iterator[tuple[str, _Copy]]:
        """Yield each key's newest copy."""
        for part, taken in zip(plan.groups, self.taken, strict=True):
            for key, group, index in part.kept:
                array = taken.arrays[index] if group < 0 else taken.rows[group]
                yield key, _Copy(part.group, array, None if group < 0 else index, self.position)


class _Interval(NamedTuple):
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
    uses: Mapping[Plan, _Use] = {}
    keys: tuple[str, ...] = ()
    tallies: Mapping[DeviceGroup, Tallies] = {}
    copies: Mapping[str, _Copy] = {}
    stacked: tuple[Any, Plan, _Use] | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}
    steps: int = 0


class OutputAccumulator:
    """Accumulate tracked values until the interval ends.

    Args:
        backend: knows the framework's arrays.
        config: says what is wanted of each key.
        now: (attribute) the interval under way; what is kept of it can be put back.
    """

    def __init__(self, backend: Backend, config: TrackAdditionalOutputsCallbackConfig) -> None:
        self._backend = backend
        self._planner = Planner(backend, config)
        self._fields = fields_of(config)
        self._empty = _Interval(no_partials(self._fields))
        self.now = self._before = self._empty

    def add(
        self, keys: tuple[str, ...], values: Sequence[Any], update: int, accumulation_step: int, weight: Any = None
    ) -> None:
        """Merge one accumulation step's values in; on an error everything stays as it was.

        Args:
            keys: the keys to track, in the order they are to be logged.
            values: their values.
            update: the update they belong to, from 1.
            accumulation_step: its accumulation step, from 0.
            weight: what weighs them, if the config names a weight.
        """
        interval = self._before = self.now
        if not keys:
            return
        if weight is not None and host.is_converted(weight):
            weight = host.as_numpy(weight)
        plan = self._planner.plan(keys, values, weight)
        if plan.shapes:
            _check_shapes(plan, interval.shapes)
        position = encode_position(update, accumulation_step)
        states, taken = dict(interval.states), []
        try:
            if not plan.takes_as_given:
                values, weight = self._planner.taken(plan, values, weight)
            for part in plan.groups:
                states[part.group], copies = _absorb(part, states.get(part.group), values, position, weight)
                taken.append(copies)
        except Exception:
            for key, value in zip(keys, values, strict=True):
                self._planner.inspect(key, value)  # a value that was deleted looks as before, and is named here
            raise
        self.now = _noted(interval, plan, states, tuple(taken), position)

    def undo(self) -> None:
        """Forget the last step, which nobody has looked at since."""
        self.now = self._before

    # ------------------------------------------------------------------ results

    @property
    def has_values(self) -> bool:
        """Tell whether this interval had values, counted in this process or in others."""
        return bool(self.now.steps or self.now.carried.keys)

    def partials(self) -> Partials:
        """Return what each key has so far, in the order they came. This waits for the device."""
        interval = self.now
        if not interval.steps:
            return interval.carried
        newest, stacks = _newest(interval), _stacks(interval)
        copies = [*newest.values(), *chain(*stacks.values())]
        parts, hosted = self._fetched(interval, copies)
        partials = reduce(merge_partials, parts, no_partials(self._fields))

        def value(copy: _Copy) -> np.ndarray[Any, Any]:
            array = hosted[id(copy.array)]
            return np.asarray(array if copy.at is None else array[copy.at])

        if copies:
            partials = partials._replace(
                last={key: Newest(value(copy), *decode_position(copy.position)) for key, copy in newest.items()},
                stack={
                    key: Stack(tuple(map(value, stack)), np.array([copy.position for copy in stack], np.int64))
                    for key, stack in stacks.items()
                },
            )
        # a key whose values other processes count is there, with no element, so that all have the same keys
        return spread(merge_partials(interval.carried, partials), _keys(interval))

    def _fetched(
        self, interval: _Interval, copies: Sequence[_Copy]
    ) -> tuple[list[Partials], dict[int, np.ndarray[Any, Any]]]:
        """Return what the keys of each device group have, and the copies' arrays by their id; all of a device at once."""
        tallies = _tallied(interval)
        parts: list[Partials] = []
        hosted: dict[int, np.ndarray[Any, Any]] = {}
        for reducer in dict.fromkeys([group.reducer for group in interval.states]):
            own = [group for group in interval.states if group.reducer is reducer]
            distinct = {id(copy.array): copy.array for copy in copies if copy.group in own}
            found, arrays = reducer.to_host([interval.states[group] for group in own], list(distinct.values()))
            hosted.update(zip(distinct, arrays, strict=True))
            parts += [
                _of_group(self._fields, tallies[group], statistics)
                for group, statistics in zip(own, found, strict=True)
            ]
        return parts, hosted

    def lone_values(self) -> tuple[Tallies, list[float]] | None:
        """Return the values of an interval that is one step of single, finite floats, in the order of the keys.

        Their mean, sum, least and greatest are these values, so that nothing needs to be reduced: as where each update is
        logged. None for any other interval. This waits for the device.
        """
        interval = self.now
        if interval.steps != 1 or interval.carried.keys:
            return None
        plan = next(iter(interval.uses))
        if not plan.is_scalar:
            return None
        part = plan.groups[0]
        row = part.group.reducer.lone_row(interval.states[part.group]).astype(np.float64) + 0.0  # no -0.0
        return (part.tallies, row.tolist()) if np.isfinite(row).all() else None

    def load(self, partials: Partials) -> None:
        """Go on from what another accumulator had, of this framework or another."""
        shapes = {key: stack.values[0].shape for key, stack in partials.stack.items()}
        self.now = self._before = _Interval(partials, shapes=shapes)

    def reset(self) -> None:
        """Start the next interval."""
        self.now = self._before = self._empty


def _absorb(part: GroupPlan, state: Any, values: Sequence[Any], position: int, weight: Any) -> tuple[Any, Taken]:
    groups = tuple([pick(values) for pick in part.scalars])
    factor = weight if part.layout.fields.weights else None
    return part.group.reducer.absorb(
        state, Step(part.layout, groups, part.arrays(values), len(part.group.slots), position, factor)
    )


def _check_shapes(plan: Plan, earlier: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in plan.shapes.items():
        if earlier.get(key, shape) != shape:
            raise UpdateOutputError(
                f"update output {key!r} has shape {shape} and had {earlier[key]} earlier in this interval; `stack`"
                " takes values of one shape: pad it, or reduce it with another reduction"
            )


def _noted(interval: _Interval, plan: Plan, states: Mapping[DeviceGroup, Any], taken: Any, position: int) -> _Interval:
    """Return the interval with one more step."""
    if len(interval.uses) > MOST_PLANS:
        interval = interval._replace(
            uses={}, keys=_keys(interval), tallies=_tallied(interval), copies=_newest(interval)
        )
    used = interval.uses.get(plan)
    use = _Use(1 if used is None else used.steps + 1, interval.steps, position, taken if plan.keeps else ())
    stacked, shapes = interval.stacked, interval.shapes
    if plan.shapes:
        stacked, shapes = (stacked, plan, use), {**shapes, **plan.shapes}
    return _Interval(
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


def _keys(interval: _Interval) -> tuple[str, ...]:
    """Return the keys in the order they came."""
    return tuple(dict.fromkeys(chain(interval.carried.keys, interval.keys, *(plan.keys for plan in interval.uses))))


def _tallied(interval: _Interval) -> dict[DeviceGroup, Tallies]:
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


def _newest(interval: _Interval) -> dict[str, _Copy]:
    newest = dict(interval.copies)
    for plan, use in sorted(interval.uses.items(), key=lambda pair: pair[1].number):
        if plan.keeps:
            newest.update(use.copies(plan))
    return newest


def _stacks(interval: _Interval) -> dict[str, list[_Copy]]:
    """Return the copies of each key whose values are stacked, in the order they came."""
    stacks: dict[str, list[_Copy]] = {}
    stacked = interval.stacked
    while stacked is not None:
        stacked, plan, use = stacked
        for key, copy in use.copies(plan):
            if key in plan.shapes:
                stacks.setdefault(key, []).append(copy)
    return {key: copies[::-1] for key, copies in stacks.items()}


def _of_group(fields: Fields, tallies: Tallies, statistics: Statistics) -> Partials:
    """Return what the keys of a device group have."""
    keys, slots, elements, wide, whole = tallies
    if len(slots) != len(statistics.nan) or (slots != np.arange(len(slots))).any():
        statistics = each(lambda vector: vector[slots], statistics)
    is_weighted = bool(statistics.weights)
    if fields.weights and not is_weighted:  # the weight itself
        blank = empty(NUMPY, fields, len(keys))
        statistics = statistics._replace(weighted=blank.weighted, weights=blank.weights)
    return Partials(keys, statistics, elements, wide, whole, np.full(len(keys), is_weighted))
