"""Write what keys have as int64 vectors that processes add, or take the greatest of, and read what came of it.

Sums travel as integer limbs (`noether_core.algebra.limbs`): adding them rounds nothing, so no order of processes matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.limbs import EMPTY, decode, encode, ordered, unordered, window
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import NEVER
from noether_core.reduce.partial import Partials, Vector

WINDOW_WORDS = 8
NEUTRAL = -(2**63 - 1)  # less than all that is written, and so is its negative greater
_SUMS = ("total", "squares", "weighted", "weights")

Windows = Mapping[str, tuple[int, int]]  # of each sum: the number of its lowest limb, and how many there are
Rows = Mapping[str, Vector]  # int64, an element per key
_HALF = 32  # two counts of processes share a word
_LOW_HALF = 2**_HALF - 1


class Terms(NamedTuple):
    """Say what is sent of each key, as the header told all processes.

    Attributes:
        windows: the limbs that the sums use.
        has_nonfinite: whether some value was not finite.
        has_seconds: whether some extreme takes two parts.
    """

    windows: Windows
    has_nonfinite: bool
    has_seconds: bool


def window_words(parts: Iterable[Partials]) -> Vector:
    """Return for each sum the greatest and the negated least limb that is used."""
    words = np.full((len(_SUMS), 2), (EMPTY[1], -EMPTY[0]), np.int64)
    for partials in parts:
        for row, name in zip(words, _SUMS, strict=True):
            if parts := getattr(partials.statistics, name):
                low, high = window(parts)
                row[:] = np.maximum(row, (high, -low))
    return words.reshape(-1)


def read_windows(words: Vector) -> Windows:
    """Return the windows that hold what all processes have."""
    return {
        name: (-low, max(high + low, 0)) for name, (high, low) in zip(_SUMS, words.reshape(-1, 2).tolist(), strict=True)
    }


def has_second_parts(partials: Partials) -> bool:
    """Tell whether an extreme takes more than one binary64, as 64-bit ints do."""
    statistics = partials.statistics
    return bool(statistics.maximum) and bool(statistics.maximum[1].any() or statistics.minimum[1].any())


def sum_words(partials: Partials, seen: Vector, terms: Terms) -> Vector:
    """Return what is to be added: [rows, keys]; `seen` is 1 for a key that this process has."""
    statistics = partials.statistics
    limbs = [encode(NUMPY, parts, *terms.windows[name]) for name in _SUMS if (parts := getattr(statistics, name))]
    wide, fraction, weighted = (flags.astype(np.int64) for flags in (partials.wide, ~partials.whole, partials.weighted))
    counts = [partials.elements, seen + (wide << _HALF), fraction + (weighted << _HALF)]
    if terms.has_nonfinite:
        counts += [statistics.nan, statistics.positive, statistics.negative]
    return np.concatenate([*limbs, np.stack(counts)])


def greatest_words(partials: Partials, copies: Vector | None, terms: Terms) -> Rows:
    """Return what the greatest is to be taken of.

    Args:
        partials: what this process has.
        copies: a hash of each replicated key, and `NEUTRAL` for others; None if no key is replicated.
        terms: what is sent.

    Returns:
        `maximum` and `minimum`, the first parts of the extremes as ordered integers, the least negated; `first`, the negated
        position of the first value that was not finite; `copy` and `other`, the hash and its negative: those that are needed.
    """
    statistics = partials.statistics
    rows = {}
    if statistics.maximum:
        rows["maximum"] = ordered(NUMPY, statistics.maximum[0])
        rows["minimum"] = -ordered(NUMPY, statistics.minimum[0])
    if terms.has_nonfinite:
        rows["first"] = -statistics.first_nonfinite
    if copies is not None:
        rows["copy"], rows["other"] = copies, np.where(copies == NEUTRAL, NEUTRAL, -copies)
    return rows


def tie_words(partials: Partials, own: Rows, greatest: Rows, terms: Terms, index: int) -> Rows:
    """Return what decides between the processes that are among the greatest.

    Returns:
        `process`, the negated number of one that had the first value that was not finite; `maximum` and `minimum`, the second
        parts of the extremes: those that are needed.
    """
    statistics = partials.statistics
    rows = {}
    if terms.has_nonfinite:
        is_first = (own["first"] == greatest["first"]) & (partials.nonfinite > 0)
        rows["process"] = np.where(is_first, -index, NEUTRAL)
    if terms.has_seconds and statistics.maximum:
        for name, parts, sign in (("maximum", statistics.maximum, 1), ("minimum", statistics.minimum, -1)):
            rows[name] = np.where(own[name] == greatest[name], sign * ordered(NUMPY, parts[1]), NEUTRAL)
    return rows


def read_words(own: Partials, terms: Terms, sums: Vector, greatest: Rows, ties: Rows) -> tuple[Partials, Vector]:
    """Return what all processes have together of this process's keys, and how many of them have each."""
    found: dict[str, Any] = {}
    at = 0
    for name in _SUMS:
        if parts := getattr(own.statistics, name):
            low, limbs = terms.windows[name]
            found[name] = decode(sums[at : at + limbs + 1], low, len(parts))
            at += limbs + 1
    elements, seen_wide, fraction_weighted, *odd = sums[at:]
    if own.fields.extremes:
        none = np.full(len(elements), NEUTRAL)
        found["maximum"] = unordered(NUMPY, greatest["maximum"]), _second(ties.get("maximum", none), 1)
        found["minimum"] = unordered(NUMPY, -greatest["minimum"]), _second(ties.get("minimum", none), -1)
    if odd:
        first = np.where(sum(odd) > 0, -greatest["first"], NEVER)
        found |= {"nan": odd[0], "positive": odd[1], "negative": odd[2], "first_nonfinite": first}
    fraction, weighted = fraction_weighted & _LOW_HALF, fraction_weighted >> _HALF
    wide = seen_wide >> _HALF
    statistics = own.statistics._replace(**found)
    return Partials(own.keys, statistics, elements, wide > 0, fraction == 0, weighted > 0), seen_wide & _LOW_HALF


def _second(words: Vector, sign: int) -> Vector:
    return np.where(words == NEUTRAL, 0.0, unordered(NUMPY, np.where(words == NEUTRAL, 0, sign * words)))
