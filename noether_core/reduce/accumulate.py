"""Hold the interval under way: which keys were seen, and what of them is reduced so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.algebra.position import encode_position
from noether_core.algebra.sums import each
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import UpdateOutputError
from noether_core.reduce import host
from noether_core.reduce.backend import Backend
from noether_core.reduce.layout import Step, Taken
from noether_core.reduce.partial import Partial, Tally, merge_partials
from noether_core.reduce.plan import MOST_PLANS, DeviceGroup, GroupPlan, Plan, Planner


class _Kept(NamedTuple):
    """Point at a copy on its device: an array, or an element of a vector."""

    update: int
    group: DeviceGroup
    array: Array
    at: int | None


class _Before(NamedTuple):
    """Hold what the last step replaced."""

    plan: Plan
    states: list[Any]
    kept: dict[str, _Kept | None]
    shapes: dict[str, tuple[int, ...]]


class OutputAccumulator:
    """Accumulate tracked values until the interval ends.

    Args:
        backend: knows the framework's arrays.
        config: says what is wanted of each key.
    """

    def __init__(self, backend: Backend, config: TrackAdditionalOutputsCallbackConfig) -> None:
        self._backend = backend
        self._planner = Planner(backend, config)
        self._states: dict[DeviceGroup, Any] = {}
        self._uses: dict[Plan, int] = {}
        self._seen: dict[str, Tally] = {}
        self._kept: dict[str, _Kept] = {}
        self._stacks: dict[str, list[_Kept]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._carried: dict[str, Partial] = {}
        self._before: _Before | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys seen in this interval, in the order they came."""
        return tuple(
            dict.fromkeys([*self._carried, *self._seen, *(key for plan in self._uses for key in plan.tallies)])
        )

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
        self._before = None
        if not keys:
            return
        if len(self._uses) > MOST_PLANS:
            self._tally()
        plan = self._planner.plan(keys, values, weight)
        self._check_stacks(plan)
        if plan.moved:
            values = [self._moved(value, weight) if at in plan.moved else value for at, value in enumerate(values)]
        try:
            done = [
                self._absorb(part, values, encode_position(update, accumulation_step), weight) for part in plan.groups
            ]
        except Exception:
            for key, value in zip(keys, values, strict=True):
                self._planner.inspect(key, value)  # a value that was deleted looks as before, and is named here
            raise
        self._before = _Before(
            plan,
            [self._states.get(part.group) for part in plan.groups],
            {key: self._kept.get(key) for part in plan.groups for key, _, _ in part.kept},
            dict(self._shapes),
        )
        for part, (state, taken) in zip(plan.groups, done, strict=True):
            self._states[part.group] = state
            for key, group, index in part.kept:
                copy = taken.arrays[index] if group < 0 else taken.rows[group]
                kept = self._kept[key] = _Kept(update, part.group, copy, None if group < 0 else index)
                if key in plan.shapes:
                    self._stacks.setdefault(key, []).append(kept)
        self._shapes.update(plan.shapes)
        self._uses[plan] = self._uses.get(plan, 0) + 1

    def _absorb(self, part: GroupPlan, values: Sequence[Any], position: int, weight: Any) -> tuple[Any, Taken]:
        group = part.group
        groups = tuple([pick(values) for pick in part.scalars])
        factor = weight if part.layout.fields.weights else None
        step = Step(part.layout, groups, part.arrays(values), len(group.slots), position, factor)
        return group.reducer.absorb(self._states.get(group), step)

    def _check_stacks(self, plan: Plan) -> None:
        for key, shape in plan.shapes.items():
            if self._shapes.get(key, shape) != shape:
                raise UpdateOutputError(
                    f"update output {key!r} has shape {shape} and had {self._shapes[key]} earlier in this interval; `stack`"
                    " takes values of one shape: pad it, or reduce it with another reduction"
                )

    def undo(self) -> None:
        """Forget the last step, which nobody has looked at since."""
        before, self._before = self._before, None
        if before is None:
            return
        for part, state in zip(before.plan.groups, before.states, strict=True):
            self._states[part.group] = state
        for key in before.plan.shapes:
            self._stacks[key].pop()
        self._kept = {key: kept for key, kept in (self._kept | before.kept).items() if kept is not None}
        self._shapes = before.shapes
        self._uses[before.plan] -= 1
        if not self._uses[before.plan]:
            del self._uses[before.plan]

    def _moved(self, value: Any, weight: Any) -> Any:
        return self._backend.from_numpy(host.as_numpy(value), weight)

    # ------------------------------------------------------------------ results

    def _tally(self) -> dict[str, Tally]:
        """Return what is known of each key seen, and note it."""
        for plan, uses in self._uses.items():
            for key, tally in plan.tallies.items():
                more = tally._replace(elements=uses * tally.elements)
                self._seen[key] = self._seen.get(key, Tally()) + more
        self._uses.clear()
        self._before = None
        return self._seen

    def partials(self) -> dict[str, Partial]:
        """Return what each key has so far, in the order they came. This waits for the device."""
        order = self.keys
        seen = self._tally()
        found = dict(self._carried)
        hosted: dict[int, np.ndarray[Any, Any]] = {}
        copies = [*self._kept.values(), *(kept for stack in self._stacks.values() for kept in stack)]
        used = {group: state for group, state in self._states.items() if state is not None}
        for reducer in dict.fromkeys(group.reducer for group in used):
            own = {group: state for group, state in used.items() if group.reducer is reducer}
            distinct = {id(kept.array): kept.array for kept in copies if kept.group in own}
            states, arrays = reducer.to_host(list(own.values()), list(distinct.values()))
            hosted.update(zip(distinct, arrays, strict=True))
            for group, sums in zip(own, states, strict=True):
                for key, slot in group.slots.items():
                    if key in seen and slot < len(sums.first_nonfinite):
                        part = Partial(each(lambda values, slot=slot: values[slot], sums))
                        found[key] = merge_partials(found[key], part) if key in found else part
        return {key: self._completed(key, found[key], hosted) for key in order}

    def _completed(self, key: str, partial: Partial, hosted: Mapping[int, np.ndarray[Any, Any]]) -> Partial:
        """Return a key's sums with what is known of its values beside them."""

        def copy(kept: _Kept) -> np.ndarray[Any, Any]:
            array = hosted[id(kept.array)]
            return np.asarray(array if kept.at is None else array[kept.at])

        partial = partial._replace(
            tally=partial.tally + self._seen.get(key, Tally()),
            stack=(*partial.stack, *map(copy, self._stacks.get(key, []))),
        )
        kept = self._kept.get(key)
        return partial if kept is None else partial._replace(last=copy(kept), last_update=kept.update)

    def load(self, partials: Mapping[str, Partial]) -> None:
        """Go on from what another accumulator had, of this framework or another."""
        self.reset()
        self._carried = dict(partials)
        self._shapes = {key: partial.stack[0].shape for key, partial in partials.items() if partial.stack}

    def reset(self) -> None:
        """Start the next interval."""
        self._before = None
        for held in (self._states, self._uses, self._seen, self._kept, self._stacks, self._shapes, self._carried):
            held.clear()
