"""Hold the interval under way: which keys were seen, and what of them is reduced so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np

from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import decode_position, encode_position
from noether_core.algebra.sums import Fields, Statistics, each, empty
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.errors import UpdateOutputError
from noether_core.reduce import host
from noether_core.reduce.backend import Backend
from noether_core.reduce.interval import Copy, Interval, keys_of, newest_copies, noted, stacks_of, tallied
from noether_core.reduce.latest import Latest
from noether_core.reduce.layout import Step, Taken
from noether_core.reduce.partial import Newest, Partials, Stack, merge_partials, no_partials, spread
from noether_core.reduce.plan import GroupPlan, Plan, Planner, Tallies
from noether_core.reduce.recent import RecentSteps
from noether_core.silence import SILENT


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
        self._empty = Interval(no_partials(self._fields))
        self.now = self._empty
        self._recent: RecentSteps | None = None

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
        interval = self.now
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
                before = states.get(part.group)
                state, copies = _absorb(part, before, values, position, weight)
                states[part.group] = state
                taken.append(copies)
                if len(state.pending) == 1 and before is not None and self._recent is not None:
                    self._recent.keep(part.group, before)  # whose steps are reduced now
        except Exception:
            for key, value in zip(keys, values, strict=True):
                self._planner.inspect(key, value)  # a value that was deleted looks as before, and is named here
            raise
        self.now = noted(interval, plan, states, tuple(taken), position)

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
        newest, stacks = newest_copies(interval), stacks_of(interval)
        copies = [*newest.values(), *chain(*stacks.values())]
        parts, hosted = self._fetched(interval, copies)
        partials = reduce(merge_partials, parts, no_partials(self._fields))

        def value(copy: Copy) -> np.ndarray[Any, Any]:
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
        return spread(merge_partials(interval.carried, partials), keys_of(interval))

    def _fetched(
        self, interval: Interval, copies: Sequence[Copy]
    ) -> tuple[list[Partials], dict[int, np.ndarray[Any, Any]]]:
        """Return what the keys of each device group have, and the copies' arrays by their id; all of a device at once."""
        tallies = tallied(interval)
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

    @SILENT
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

    def keep_recent(self, most: int) -> None:
        """Keep so many of the newest steps, whatever interval they are of, for `newest`."""
        self._recent = RecentSteps(most)

    def newest(self) -> list[Latest] | None:
        """Return what the newest steps had of each key; None if they are not kept. This waits for the device."""
        return None if self._recent is None else self._recent.read(self.now.states)

    def load(self, partials: Partials) -> None:
        """Go on from what another accumulator had, of this framework or another."""
        shapes = {key: stack.values[0].shape for key, stack in partials.stack.items()}
        self.now = Interval(partials, shapes=shapes)
        if self._recent is not None:
            self._recent.clear()

    def reset(self) -> None:
        """Start the next interval."""
        if self._recent is not None:
            self._recent.keep_all(self.now.states)
        self.now = self._empty


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
