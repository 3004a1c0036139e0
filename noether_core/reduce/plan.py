"""Plan where the values of a step go: which are reduced together, on which device, into which slots.

A plan is made once per key set and value signature; per step it is only looked up and executed. Slots are given to keys as they
come and stay theirs, so a new key set extends the state and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.lift import is_small
from noether_core.config.tracking import (
    TrackAdditionalOutputsCallbackConfig,
    check_last,
    check_spread,
    check_weight,
    check_weight_spread,
    fields_of,
)
from noether_core.reduce import host
from noether_core.reduce.backend import Backend, ValueType
from noether_core.reduce.eager import PendingReducer
from noether_core.reduce.layout import Layout
from noether_core.reduce.partial import WHOLE_DTYPES, Vector

MOST_PLANS = 256  # plans kept; values whose shape changes all the time would make ever more


_Pick = Callable[[Sequence[Any]], tuple[Any, ...]]


def _pick(positions: Sequence[int]) -> _Pick:
    """Return a function that takes what is at these positions."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda values: tuple(values[at] for at in positions)


@dataclass(frozen=True, eq=False)
class DeviceGroup:
    """Name what is reduced together: values of one device, weighted or not.

    Attributes:
        reducer: reduces them.
        slots: each key's slot in the state.
    """

    reducer: PendingReducer
    slots: dict[str, int] = field(default_factory=dict)


class Tallies(NamedTuple):
    """Count what is known of some keys' values without looking at them; the vectors are as in `Partials`, beside the slots."""

    keys: tuple[str, ...]
    slots: Vector
    elements: Vector
    wide: Vector
    whole: Vector

    @classmethod
    def of_step(cls, types: Mapping[str, ValueType], slots: Vector) -> Tallies:
        """Return what a step has of values of these types."""
        found = types.values()
        elements = np.array([prod(each.shape) for each in found], np.int64)
        wide, whole = (
            np.array(flags) for flags in zip(*((f.wide, f.dtype in WHOLE_DTYPES) for f in found), strict=True)
        )
        return cls(tuple(types), slots, elements, wide, whole)

    def times(self, steps: int) -> Tallies:
        """Return what so many such steps have."""
        return self if steps == 1 else self._replace(elements=self.elements * steps)


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """Say what of a step's values goes to one device group.

    Attributes:
        group: the device group.
        layout: where in its state they go.
        scalars: take the groups of scalars out of the tracked values.
        arrays: takes the arrays.
        kept: each key of which copies are kept, with its group of scalars and index, or -1 and its array.
        tallies: what a step has of each key.
    """

    group: DeviceGroup
    layout: Layout
    scalars: tuple[_Pick, ...]
    arrays: _Pick
    kept: tuple[tuple[str, int, int], ...]
    tallies: Tallies


@dataclass(frozen=True, eq=False)
class Plan:
    """Say what happens to the values of a step.

    Attributes:
        keys: the keys, in the order to log them; also those of which another process counts the value.
        groups: what each device group gets.
        shapes: of the keys that are stacked.
        converted: the positions of values that are taken as arrays, such as lists.
        moved: the positions of host values that go to the device, where their weight is.
        local: the positions of values that are spread over processes, of which this process's parts are taken.
        local_weight: whether that is done with the weight too.
        is_scalar: whether all are single floats of one dtype on one device, and asked for what a lone number is itself.
        keeps: whether copies of anything are kept.
    """

    keys: tuple[str, ...]
    groups: tuple[GroupPlan, ...]
    shapes: Mapping[str, tuple[int, ...]]
    converted: tuple[int, ...]
    moved: tuple[int, ...]
    local: tuple[int, ...]
    local_weight: bool
    is_scalar: bool
    keeps: bool

    @cached_property
    def takes_as_given(self) -> bool:
        """Return whether the values are reduced as they were given."""
        return not (self.converted or self.moved or self.local or self.local_weight)


class _Typed(NamedTuple):
    found: ValueType
    reducer: PendingReducer
    moves: bool = False


class Planner:
    """Make plans, and remember them.

    Args:
        backend: knows the framework's arrays.
        config: says what is wanted of each key.
    """

    def __init__(self, backend: Backend, config: TrackAdditionalOutputsCallbackConfig) -> None:
        self._backend = backend
        self._config = config
        self._fields = fields_of(config)
        self._plans: dict[Hashable, Plan] = {}
        self._latest: tuple[Hashable, Plan] | None = None
        self._groups: dict[Hashable, DeviceGroup] = {}

    def plan(self, keys: tuple[str, ...], values: Sequence[Any], weight: Any) -> Plan:
        """Return the plan for values like these."""
        signature = (keys, self._backend.signature(values if weight is None else (*values, weight)))
        if self._latest is not None and signature == self._latest[0]:  # nearly always, and cheaper than a hash
            return self._latest[1]
        plan = self._plans.get(signature)
        if plan is None:
            plan = self._make_plan(keys, values, weight)
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[signature] = plan
        self._latest = signature, plan
        return plan

    def taken(self, plan: Plan, values: Sequence[Any], weight: Any) -> tuple[list[Any], Any]:
        """Return the values and the weight as what a plan says they are reduced as."""
        found = list(values)
        for at in plan.converted:
            found[at] = host.as_numpy(found[at])
        if plan.local or plan.local_weight:
            given = [found[at] for at in plan.local]
            parts = self._backend.local([*given, weight] if plan.local_weight else given)
            weight = parts[-1] if plan.local_weight else weight
            for at, part in zip(plan.local, parts, strict=False):
                found[at] = part
        for at in plan.moved:
            found[at] = self._backend.from_numpy(host.as_numpy(found[at]), weight)
        return found, weight

    def inspect(self, key: str, value: Any) -> _Typed:
        """Return what decides how a value is reduced, or raise `UpdateOutputError` if it cannot be."""
        found = self._backend.inspect(key, value)
        if found is not None:
            return _Typed(found, host.HOST.reducer if found.device == host.DEVICE else self._backend.reducer)
        return _Typed(host.inspect(key, value, self._backend.name), host.HOST.reducer)

    def _make_plan(self, keys: tuple[str, ...], values: Sequence[Any], weight: Any) -> Plan:
        types = [self.inspect(key, value) for key, value in zip(keys, values, strict=True)]
        by = None
        if weight is not None and self._config.weight is not None:
            by = self.inspect(self._config.weight, weight)
            types = [self._beside(by, *pair) for pair in zip(keys, types, strict=True)]
        for key, typed in zip(keys, types, strict=True):
            check_spread(self._config, key, typed.found.spread)
            check_last(self._config, key, typed.found.shape)
        counted = [at for at, typed in enumerate(types) if typed.found.is_counted]
        by_device: dict[Hashable, list[int]] = {}
        for at in counted:
            by_device.setdefault((types[at].found.device, self._is_weighted(keys[at])), []).append(at)
        groups = tuple(self._make_group_plan(device, keys, types, members) for device, members in by_device.items())
        return Plan(
            keys,
            groups,
            {keys[at]: types[at].found.shape for at in counted if "stack" in self._config.reductions(keys[at])},
            tuple(at for at in counted if host.is_converted(values[at])),
            tuple(at for at in counted if types[at].moves),
            tuple(at for at in counted if types[at].found.is_global),
            by is not None and by.found.is_global and any(group.layout.fields.weights for group in groups),
            self._is_scalar(groups),
            any(group.kept for group in groups),
        )

    def _is_scalar(self, groups: Sequence[GroupPlan]) -> bool:
        return (
            len(groups) == 1
            and len((layout := groups[0].layout).dtypes) == 1
            and "float" in layout.dtypes[0]
            and not layout.keep
            and not self._fields.weights
            and self._config.asked <= {"mean", "sum", "min", "max"}
        )

    def _is_weighted(self, key: str) -> bool:
        return self._fields.weights and key != self._config.weight

    def _beside(self, weight: _Typed, key: str, typed: _Typed) -> _Typed:
        """Return the type of a value that is reduced where its weight is."""
        if not self._is_weighted(key):
            return typed
        found, by = typed.found, weight.found
        check_weight_spread(self._config, key, found.spread, by.shape, by.spread)
        check_weight(self._config, key, found.shape, by.shape)
        if typed.reducer is weight.reducer or typed.reducer is not host.HOST.reducer:
            return typed
        return _Typed(found._replace(device=by.device), self._backend.reducer, moves=True)

    def _keeps(self, key: str) -> bool:
        return bool({"last", "stack"} & set(self._config.reductions(key)))

    def _make_group_plan(
        self, device: Hashable, keys: tuple[str, ...], types: Sequence[_Typed], members: Sequence[int]
    ) -> GroupPlan:
        groups: dict[str, list[int]] = {}
        arrays: list[int] = []
        for at in members:
            found = types[at].found
            is_scalar = prod(found.shape) == 1 and not (found.shape and self._keeps(keys[at]))
            (groups.setdefault(found.dtype, []) if is_scalar else arrays).append(at)
        sizes = {at: prod(types[at].found.shape) for at in arrays}
        small = sorted((at for at in arrays if is_small(sizes[at])), key=lambda at: (types[at].found.dtype, sizes[at]))
        arrays = small + [at for at in arrays if not is_small(sizes[at])]
        by_dtype = groupby(small, key=lambda at: types[at].found.dtype)
        own = self._groups.setdefault(device, DeviceGroup(types[members[0]].reducer))
        slots = own.slots
        order = [at for group in groups.values() for at in group] + arrays
        for at in order:
            slots.setdefault(keys[at], len(slots))
        kept = [
            (keys[at], number, index)
            for number, group in enumerate(groups.values())
            for index, at in enumerate(group)
            if self._keeps(keys[at])
        ]
        kept += [(keys[at], -1, index) for index, at in enumerate(arrays) if self._keeps(keys[at])]
        layout = Layout(
            np.array([slots[keys[at]] for at in order], np.int64),
            tuple(groups),
            tuple(self._keeps(keys[at]) for at in arrays),
            tuple(tuple(sizes[at] for at in group) for _, group in by_dtype),
            self._fields._replace(weights=self._is_weighted(keys[members[0]])),
            tuple(keys[at] for at in order),
            tuple(prod(types[at].found.shape) for at in order),
        )
        tallies = Tallies.of_step({keys[at]: types[at].found for at in order}, layout.slots)
        return GroupPlan(own, layout, tuple(map(_pick, groups.values())), _pick(arrays), tuple(kept), tallies)
