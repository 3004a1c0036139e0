"""Say what is known of each key, on the host: the statistics of an interval or of a part of it, and what is beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.sums import Fields, Statistics, each, empty, merge
from noether_core.reduce.latest import Latest
from noether_core.silence import SILENT

WHOLE_DTYPES = frozenset(["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64))])

Vector = np.ndarray[Any, Any]


class Newest(NamedTuple):
    """Hold a key's newest value, in its own dtype and shape, and the update (from 1) and its step (from 0) that had it."""

    value: np.ndarray[Any, Any]
    update: int
    step: int = 0


class Stack(NamedTuple):
    """Hold every value of a key, in the order of their positions.

    Attributes:
        values: the values, each in its own dtype.
        positions: int64, the position of each (`noether_core.algebra.position`).
    """

    values: tuple[np.ndarray[Any, Any], ...]
    positions: Vector

    def merge(self, other: Stack) -> Stack:
        """Return both, in the order of their positions; of equal positions the first one's come first."""
        values = self.values + other.values
        positions = np.concatenate([self.positions, other.positions])
        if self.positions[-1] <= other.positions[0]:
            return Stack(values, positions)
        order = np.argsort(positions, kind="stable")
        return Stack(tuple([values[at] for at in order.tolist()]), positions[order])


class Partials(NamedTuple):
    """Hold what some keys have of an interval, on the host; every vector has one element per key.

    Attributes:
        keys: the keys, in the order they came.
        statistics: what is reduced of them, in binary64.
        elements: int64, how many elements were lifted.
        wide: bool, whether a mean is rounded to float64.
        whole: bool, whether all values were ints or bools.
        weighted: bool, whether a weight weighs them: all but the weight itself, where the config names one.
        last: the newest value of each key of which it is kept.
        stack: every value, of each key whose values are stacked.
    """

    keys: tuple[str, ...]
    statistics: Statistics
    elements: Vector
    wide: Vector
    whole: Vector
    weighted: Vector
    last: Mapping[str, Newest] = {}
    stack: Mapping[str, Stack] = {}

    @property
    def fields(self) -> Fields:
        """Return what the statistics carry."""
        return Fields(*map(bool, (self.statistics.squares, self.statistics.minimum, self.statistics.weights)))

    @property
    def nonfinite(self) -> Vector:
        """Return how many values of each key were NaN or infinite."""
        statistics = self.statistics
        counts: Vector = statistics.nan + statistics.positive + statistics.negative
        return counts

    def take(self, places: Vector) -> Partials:
        """Return what the keys at some places have."""
        return self._replace(
            keys=tuple([self.keys[at] for at in places.tolist()]),
            statistics=each(lambda vector: vector[places], self.statistics),
            elements=self.elements[places],
            wide=self.wide[places],
            whole=self.whole[places],
            weighted=self.weighted[places],
        )

    def in_order(self, keys: tuple[str, ...]) -> Partials:
        """Return what these of the keys have, in this order."""
        if keys == self.keys:
            return self
        places = {key: at for at, key in enumerate(self.keys)}
        return self.take(np.array([places[key] for key in keys], np.int64))

    def keys_first(self, first: Sequence[str]) -> Partials:
        """Return the same with these of its keys before the others."""
        if self.keys[: len(first)] == tuple(first):
            return self
        present = set(self.keys)
        return self.in_order(tuple(dict.fromkeys([*(key for key in first if key in present), *self.keys])))


def no_partials(fields: Fields) -> Partials:
    """Return what no key has."""
    none = np.zeros(0, bool)
    return Partials((), empty(NUMPY, fields, 0), np.zeros(0, np.int64), none, none, none)


@SILENT
def merge_partials(a: Partials, b: Partials) -> Partials:
    """Return what the keys have of two parts of an interval, `b` the later where both saw the same accumulation step."""
    if not a.keys or not b.keys:
        return b if not a.keys else a
    keys = tuple(dict.fromkeys([*a.keys, *b.keys]))
    first, second = (spread(part, keys) for part in (a, b))
    statistics = merge(NUMPY, first.statistics, second.statistics)
    newest = dict(a.last)
    for key, value in b.last.items():
        if key not in newest or value[1:] >= newest[key][1:]:
            newest[key] = value
    stacks = dict(a.stack)
    for key, stack in b.stack.items():
        stacks[key] = stacks[key].merge(stack) if key in stacks else stack
    return Partials(
        keys,
        statistics,
        first.elements + second.elements,
        first.wide | second.wide,
        first.whole & second.whole,
        first.weighted | second.weighted,
        newest,
        stacks,
    )


def merge_all(parts: Sequence[Partials]) -> Partials:
    """Return what the keys have of parts of an interval, at least one, in order; by halves, so that stacks stay cheap."""
    while len(parts) > 1:
        pairs = [merge_partials(*pair) for pair in zip(parts[::2], parts[1::2], strict=False)]
        parts = [*pairs, parts[-1]] if len(parts) % 2 else pairs
    return parts[0]


def spread(partials: Partials, keys: tuple[str, ...]) -> Partials:
    """Return what keys have with an element for each of `keys`, which are more: of nothing for those that are not there."""
    if partials.keys == keys:
        return partials
    place = {key: at for at, key in enumerate(keys)}
    at = np.array([place[key] for key in partials.keys], np.int64)

    def put(blank: Vector, values: Vector) -> Vector:
        blank[at] = values
        return blank

    return Partials(
        keys,
        each(put, empty(NUMPY, partials.fields, len(keys)), partials.statistics),
        put(np.zeros(len(keys), np.int64), partials.elements),
        put(np.zeros(len(keys), bool), partials.wide),
        put(np.ones(len(keys), bool), partials.whole),
        put(np.zeros(len(keys), bool), partials.weighted),
        partials.last,
        partials.stack,
    )


class PartialSource(Protocol):
    """Give a callback what was reduced: of the hooks' outputs, or elsewhere, such as inside of a compiled training step."""

    def partials(self) -> Partials:
        """Return what each key has of the interval under way, in the order to log them. This may wait for the device."""

    def reset(self) -> None:
        """Start the next interval."""

    def newest(self) -> list[Latest] | None:
        """Return what the newest steps had, of this interval and others; None if that is not kept. This may wait likewise."""
