"""Hold the interval under way: which keys were seen, and what of them is reduced so far.

Per step only a plan is looked up and executed; a plan is made once per key set and value signature. Slots are given to
keys as they come and stay theirs, so a new key set extends the state and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np

from noether_core import host
from noether_core.backend import Backend, Layout, Reducer, Step, Taken, ValueType
from noether_core.config import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import UpdateOutputError
from noether_core.expansion import Array
from noether_core.reduce import NEVER, NUMPY, Columns, Sums, each, is_small, merge, place_code

_MOST_PLANS = 256  # plans kept; values whose shape changes all the time would make ever more
WHOLE_DTYPES = frozenset(["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64))])


class Tally(NamedTuple):
    """Count what is known of a key's values without looking at them.

    Attributes:
        elements: how many elements were lifted.
        wide: whether a mean is rounded to float64.
        whole: whether all were ints or bools.
    """

    elements: int = 0
    wide: bool = False
    whole: bool = True

    def __add__(self, other: Tally) -> Tally:  # type: ignore[override]
        return Tally(self.elements + other.elements, self.wide or other.wide, self.whole and other.whole)


class Partial(NamedTuple):
    """Hold what one key has of an interval, on the host.

    Attributes:
        sums: the sums of its one slot, fields of shape ().
        tally: how many elements there were, and of which kind.
        last: the newest value, in its own dtype and shape; None where it was not kept.
        last_update: the update (from 1) that had it.
        stack: every value in order, where they are stacked.
    """

    sums: Sums
    tally: Tally = Tally()
    last: np.ndarray[Any, Any] | None = None
    last_update: int = -1
    stack: tuple[np.ndarray[Any, Any], ...] = ()


def merge_partials(a: Partial, b: Partial) -> Partial:
    """Return what a key has of two parts of an interval, `b` the later where both saw the same update."""
    newest = b if b.last_update >= a.last_update else a
    with np.errstate(over="ignore", invalid="ignore"):
        sums = merge(NUMPY, a.sums, b.sums)
    return Partial(sums, a.tally + b.tally, newest.last, newest.last_update, a.stack + b.stack)


class PartialSource(Protocol):
    """Give a callback what was reduced elsewhere, such as inside of a compiled training step."""

    def partials(self) -> Mapping[str, Partial]:
        """Return what each key has of the interval under way, in the order to log them. This may wait for the device."""

    def reset(self) -> None:
        """Start the next interval."""


def columns_of(config: TrackAdditionalOutputsCallbackConfig) -> Columns:
    """Return what the sums must carry for all that a config asks for."""
    asked = config.asked
    return Columns(
        squares=bool(asked & {"std", "var"}), extremes=bool(asked & {"min", "max"}), weights=config.weight is not None
    )


def check_last(config: TrackAdditionalOutputsCallbackConfig, key: str, shape: tuple[int, ...]) -> None:
    """Raise `UpdateOutputError` if a key's `last` is to be logged and is no single number."""
    if config.log_output and "last" in config.reductions(key) and prod(shape) != 1:
        raise UpdateOutputError(
            f"update output {key!r} has shape {shape}, and the log takes only one number of a key reduced with"
            " `last`; reduce it with mean, or set log_output: false and save_output: true to save the array"
        )


def check_weight(
    config: TrackAdditionalOutputsCallbackConfig, key: str, shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    """Raise `UpdateOutputError` if a weight of one shape cannot weigh a value of another."""
    if prod(weight) != 1 and weight != shape:
        raise UpdateOutputError(
            f"update output {key!r} has shape {shape}, and its weight {config.weight!r} has shape {weight}; expected a"
            " weight with one element or of the value's shape: broadcast it in the training step"
        )


_Pick = Callable[[Sequence[Any]], tuple[Any, ...]]


def _pick(positions: Sequence[int]) -> _Pick:
    """Return a function that takes what is at these positions."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda values: tuple(values[at] for at in positions)


@dataclass(frozen=True, eq=False)
class _PlacePlan:
    reducer: Reducer
    place: Hashable
    layout: Layout
    scalars: tuple[_Pick, ...]  # take these of the tracked values, a group per dtype
    arrays: _Pick
    kept: tuple[tuple[str, int, int], ...]  # key, and its group and index, or -1 and its array


@dataclass(frozen=True, eq=False)
class _Plan:
    places: tuple[_PlacePlan, ...]
    tallies: Mapping[str, Tally]
    shapes: Mapping[str, tuple[int, ...]]  # of the keys that are stacked
    moved: tuple[int, ...]  # positions of host values that go to the device, where their weight is


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


class _Before(NamedTuple):
    """Hold what the last step replaced."""

    plan: _Plan
    states: list[Any]
    kept: dict[str, _Kept | None]
    shapes: dict[str, tuple[int, ...]]


class _Typed(NamedTuple):
    found: ValueType
    reducer: Reducer
    moves: bool = False


class OutputAccumulator:
    """Accumulate tracked values until the interval ends.

    Args:
        backend: knows the framework's arrays.
        config: says what is wanted of each key.
    """

    def __init__(self, backend: Backend, config: TrackAdditionalOutputsCallbackConfig) -> None:
        self._backend = backend
        self._config = config
        self._columns = columns_of(config)
        self._plans: dict[Hashable, _Plan] = {}
        self._latest: tuple[Hashable, _Plan] | None = None
        self._places: dict[Hashable, _Place] = {}
        self._uses: dict[_Plan, int] = {}
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
        if len(self._uses) > _MOST_PLANS:
            self._tally()
        plan = self._plan(keys, values, weight)
        self._check_stacks(plan)
        if plan.moved:
            values = [self._moved(value, weight) if at in plan.moved else value for at, value in enumerate(values)]
        try:
            done = [self._absorb(part, values, place_code(update, accumulation_step), weight) for part in plan.places]
        except Exception:
            for key, value in zip(keys, values, strict=True):
                self._inspect(key, value)  # a value that was deleted looks as before, and is named here
            raise
        self._before = _Before(
            plan,
            [self._places[part.place].state for part in plan.places],
            {key: self._kept.get(key) for part in plan.places for key, _, _ in part.kept},
            dict(self._shapes),
        )
        for part, (state, taken) in zip(plan.places, done, strict=True):
            self._places[part.place].state = state
            for key, group, index in part.kept:
                copy = taken.arrays[index] if group < 0 else taken.rows[group]
                kept = self._kept[key] = _Kept(update, part.place, copy, None if group < 0 else index)
                if key in plan.shapes:
                    self._stacks.setdefault(key, []).append(kept)
        self._shapes.update(plan.shapes)
        self._uses[plan] = self._uses.get(plan, 0) + 1

    def _absorb(self, part: _PlacePlan, values: Sequence[Any], code: int, weight: Any) -> tuple[Any, Taken]:
        place = self._places[part.place]
        groups = tuple([pick(values) for pick in part.scalars])
        factor = weight if part.layout.columns.weights else None
        step = Step(part.layout, groups, part.arrays(values), len(place.slots), code, factor)
        return part.reducer.absorb(place.state, step)

    def _check_stacks(self, plan: _Plan) -> None:
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
        for part, state in zip(before.plan.places, before.states, strict=True):
            self._places[part.place].state = state
        for key in before.plan.shapes:
            self._stacks[key].pop()
        self._kept = {key: kept for key, kept in (self._kept | before.kept).items() if kept is not None}
        self._shapes = before.shapes
        self._uses[before.plan] -= 1
        if not self._uses[before.plan]:
            del self._uses[before.plan]

    def _moved(self, value: Any, weight: Any) -> Any:
        return self._backend.from_numpy(host.as_numpy(value), weight)

    # ------------------------------------------------------------------ plans

    def _plan(self, keys: tuple[str, ...], values: Sequence[Any], weight: Any) -> _Plan:
        signature = (keys, self._backend.signature(values if weight is None else (*values, weight)))
        if self._latest is not None and signature == self._latest[0]:  # nearly always, and cheaper than a hash
            return self._latest[1]
        plan = self._plans.get(signature)
        if plan is None:
            plan = self._make_plan(keys, values, weight)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[signature] = plan
        self._latest = signature, plan
        return plan

    def _inspect(self, key: str, value: Any) -> _Typed:
        found = self._backend.inspect(key, value)
        if found is not None:
            return _Typed(found, host.REDUCER if found.place == host.PLACE else self._backend.reducer)
        return _Typed(host.inspect(key, value, self._backend.name), host.REDUCER)

    def _make_plan(self, keys: tuple[str, ...], values: Sequence[Any], weight: Any) -> _Plan:
        types = [self._inspect(key, value) for key, value in zip(keys, values, strict=True)]
        if weight is not None and self._config.weight is not None:
            by = self._inspect(self._config.weight, weight)
            types = [self._beside(by, *pair) for pair in zip(keys, values, types, strict=True)]
        for key, typed in zip(keys, types, strict=True):
            check_last(self._config, key, typed.found.shape)
        by_place: dict[Hashable, list[int]] = {}
        for at, key in enumerate(keys):
            by_place.setdefault((types[at].found.place, self._is_weighted(key)), []).append(at)
        return _Plan(
            tuple(self._make_place_plan(place, keys, types, members) for place, members in by_place.items()),
            {
                key: Tally(prod(found.shape), found.wide, found.dtype in WHOLE_DTYPES)
                for key, (found, _, _) in zip(keys, types, strict=True)
            },
            {
                key: typed.found.shape
                for key, typed in zip(keys, types, strict=True)
                if "stack" in self._config.reductions(key)
            },
            tuple(at for at, typed in enumerate(types) if typed.moves),
        )

    def _is_weighted(self, key: str) -> bool:
        return self._columns.weights and key != self._config.weight

    def _beside(self, weight: _Typed, key: str, value: Any, typed: _Typed) -> _Typed:
        """Return the type of a value that is reduced where its weight is."""
        if not self._is_weighted(key):
            return typed
        check_weight(self._config, key, typed.found.shape, weight.found.shape)
        if typed.reducer is weight.reducer or typed.reducer is not host.REDUCER:
            return typed
        return _Typed(typed.found._replace(place=weight.found.place), self._backend.reducer, moves=True)

    def _keeps(self, key: str) -> bool:
        return bool({"last", "stack"} & set(self._config.reductions(key)))

    def _make_place_plan(
        self, place: Hashable, keys: tuple[str, ...], types: Sequence[_Typed], members: Sequence[int]
    ) -> _PlacePlan:
        groups: dict[str, list[int]] = {}
        arrays: list[int] = []
        for at in members:
            found = types[at].found
            is_scalar = prod(found.shape) == 1 and not (found.shape and self._keeps(keys[at]))
            (groups.setdefault(found.dtype, []) if is_scalar else arrays).append(at)
        sizes = {at: prod(types[at].found.shape) for at in arrays}
        # those that are merged element by element first, by dtype and size
        arrays.sort(key=lambda at: (0, types[at].found.dtype, sizes[at]) if is_small(sizes[at]) else (1, "", 0))
        small: dict[str, list[int]] = {}
        for at in arrays:
            if is_small(sizes[at]):
                small.setdefault(types[at].found.dtype, []).append(sizes[at])
        reducer = types[members[0]].reducer
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
            np.array([slots[key] for key in order], np.int64),
            tuple(groups),
            tuple(self._keeps(keys[at]) for at in arrays),
            tuple(map(tuple, small.values())),
            self._columns._replace(weights=self._is_weighted(keys[members[0]])),
        )
        return _PlacePlan(reducer, place, layout, tuple(map(_pick, groups.values())), _pick(arrays), tuple(kept))

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
        used = {name: place for name, place in self._places.items() if place.state is not None}
        for reducer in dict.fromkeys(place.reducer for place in used.values()):
            own = {name: place for name, place in used.items() if place.reducer is reducer}
            distinct = {id(kept.array): kept.array for kept in copies if kept.place in own}
            states, arrays = reducer.to_host([place.state for place in own.values()], list(distinct.values()))
            hosted.update(zip(distinct, arrays, strict=True))
            for place, sums in zip(own.values(), states, strict=True):
                for key, slot in place.slots.items():
                    if key in seen and slot < len(sums.first):
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
        for place in self._places.values():
            place.state = None
        for held in (self._uses, self._seen, self._kept, self._stacks, self._shapes, self._carried):
            held.clear()


def first_nonfinite(partial: Partial) -> int | None:
    """Return the place code of a key's first NaN or infinity, or None."""
    code = int(partial.sums.first)
    return None if code == NEVER else code
