"""Write what keys have as int64 vectors that processes add, or take the greatest of, and read what came of it.

Sums travel as integer limbs (`noether_core.algebra.limbs`): adding them rounds nothing, so no order of processes matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from noether_core.algebra.limbs import EMPTY, decode, encode, ordered, unordered, window
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import NEVER
from noether_core.reduce.partial import Partials, Vector

WINDOW_WORDS = 8
NEUTRAL = -(2**63 - 1)  # less than all that is written, and so is its negative greater
_SUMS = ("total", "squares", "weighted", "weights")

Windows = Mapping[str, tuple[int, int]]  # of each sum: the number of its lowest limb, and how many there are


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


def sum_words(partials: Partials, seen: Vector, windows: Windows) -> Vector:
    """Return what is to be added: [rows, keys]; `seen` is 1 for a key that this process has."""
    statistics = partials.statistics
    limbs = [encode(NUMPY, parts, *windows[name]) for name in _SUMS if (parts := getattr(statistics, name))]
    counts = [partials.elements, seen, statistics.nan, statistics.positive, statistics.negative]
    return np.concatenate([*limbs, np.stack(counts)])


class Greatest(NamedTuple):
    """Hold what processes have the greatest of, in int64 rows with an element per key.

    Attributes:
        maximum, minimum: the first parts of the extremes, as ordered integers, the least negated.
        first: the negated position of the first value that was not finite.
        wide, fraction, weighted: flags, as in `Partials`; `fraction` is not `whole`.
        copy, other: a hash of what a process has of a replicated key, and its negative.
    """

    maximum: Vector
    minimum: Vector
    first: Vector
    wide: Vector
    fraction: Vector
    weighted: Vector
    copy: Vector
    other: Vector


def greatest_words(partials: Partials, copies: Vector) -> Greatest:
    """Return what the greatest is to be taken of; `copies` are the hashes of replicated keys, and `NEUTRAL` for others."""
    statistics = partials.statistics
    none = np.zeros(len(partials.keys), np.int64)
    return Greatest(
        ordered(NUMPY, statistics.maximum[0]) if statistics.maximum else none,
        -ordered(NUMPY, statistics.minimum[0]) if statistics.minimum else none,
        -statistics.first_nonfinite,
        partials.wide.astype(np.int64),
        (~partials.whole).astype(np.int64),
        partials.weighted.astype(np.int64),
        copies,
        np.where(copies == NEUTRAL, NEUTRAL, -copies),
    )


class Ties(NamedTuple):
    """Hold what decides between processes that are equal in `Greatest`: rows as there.

    Attributes:
        process: the negated number of one that had the first value that was not finite.
        maximum, minimum: the second parts of the extremes.
    """

    process: Vector
    maximum: Vector
    minimum: Vector


def has_second_parts(partials: Partials) -> bool:
    """Tell whether an extreme takes more than one binary64, as 64-bit ints do."""
    statistics = partials.statistics
    return bool(statistics.maximum) and bool(statistics.maximum[1].any() or statistics.minimum[1].any())


def tie_words(partials: Partials, own: Greatest, greatest: Greatest, index: int) -> Ties:
    """Return what this process has, of the keys that it is among the greatest of."""
    statistics = partials.statistics
    none = np.full(len(partials.keys), NEUTRAL, np.int64)

    def second(parts: tuple[Vector, ...], first: Vector, pooled: Vector, sign: int) -> Vector:
        return np.where(first == pooled, sign * ordered(NUMPY, parts[1]), NEUTRAL) if parts else none

    return Ties(
        np.where((own.first == greatest.first) & (partials.nonfinite > 0), -index, NEUTRAL),
        second(statistics.maximum, own.maximum, greatest.maximum, 1),
        second(statistics.minimum, own.minimum, greatest.minimum, -1),
    )


def read_words(
    own: Partials, windows: Windows, sums: Vector, greatest: Greatest, ties: Ties | None
) -> tuple[Partials, Vector]:
    """Return what all processes have together of this process's keys, and how many of them have each."""
    found, at = {}, 0
    for name in _SUMS:
        if parts := getattr(own.statistics, name):
            rows = windows[name][1] + 1
            found[name] = decode(sums[at : at + rows], windows[name][0], len(parts))
            at += rows
    elements, seen, nan, positive, negative = sums[at:]
    if own.fields.extremes:
        second = (np.zeros(len(seen)),) * 2 if ties is None else (_second(ties.maximum, 1), _second(ties.minimum, -1))
        found["maximum"] = unordered(NUMPY, greatest.maximum), second[0]
        found["minimum"] = unordered(NUMPY, -greatest.minimum), second[1]
    statistics = own.statistics._replace(
        **found,
        nan=nan,
        positive=positive,
        negative=negative,
        first_nonfinite=np.where(nan + positive + negative > 0, -greatest.first, NEVER),
    )
    return (
        Partials(own.keys, statistics, elements, greatest.wide > 0, greatest.fraction == 0, greatest.weighted > 0),
        seen,
    )


def _second(words: Vector, sign: int) -> Vector:
    return np.where(words == NEUTRAL, 0.0, unordered(NUMPY, np.where(words == NEUTRAL, 0, sign * words)))
