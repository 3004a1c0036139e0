"""Check that many sums are rounded as exact integers say: `python -m benchmarks.rounding 10000000`.

The integers take a way of their own: the result is the multiple of the target's unit that is nearest, found by whole division
(of a square root: by `math.isqrt`, and the square of the number half way to the next).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rounding_cases import KINDS, Cases, cases
from noether_core.algebra.expansion import Expansion, two_sum
from noether_core.algebra.rounding import Near, quotient, ratio, rounded, square_root, variance

Vector = np.ndarray[Any, Any]

CHUNK = 50_000
FLOAT32 = (24, -149, 128)  # digits, the exponent of the least number, that of the first number beyond
FLOAT64 = (53, -1074, 1024)


class Found(NamedTuple):
    """Hold what became of the cases of one kind."""

    cases: int
    differing: int  # of those that were not left open
    open: int  # that only exact fractions decide
    plain: int  # cases as they come, not made to be hard
    plain_open: int
    example: str  # the first that differs


def check(kind: str, number: int, seed: int = 0) -> Found:
    """Return what became of so many cases of a kind."""
    counts, example = np.zeros(5, np.int64), ""
    for at, start in enumerate(range(0, number, CHUNK)):
        made = cases(kind, min(CHUNK, number - start), 1000 * seed + at)
        found, is_open = _rounded(kind, made)
        wanted = expected(kind, made)
        differs = ~is_open & (found.view(np.int64) != wanted.view(np.int64))  # so -0.0 is not 0.0
        for case in np.flatnonzero(differs)[:1] if not example else ():
            example = f"{_described(made, case)}: {float(found[case])} instead of {float(wanted[case])}"
        counts += [differs.size, differs.sum(), is_open.sum(), made.plain.sum(), (made.plain & is_open).sum()]
    return Found(*counts.tolist(), example)


def _described(made: Cases, case: int) -> str:
    parts = {name: [float(part[case]) for part in getattr(made, name)] for name in ("total", "squares", "mass")}
    return f"{parts} to {'float64' if made.wide[case] else 'float32'}"


def _rounded(kind: str, made: Cases) -> tuple[Vector, Vector]:
    """Return what the package makes of cases, and a mask of what it leaves open."""
    with np.errstate(all="ignore"):
        if kind == "sum":
            return rounded(Near(*two_sum(*made.total), None), made.wide)
        if kind == "mean":
            return rounded(quotient(made.total, made.mass[0]), made.wide)
        if kind == "weighted mean":
            return rounded(ratio(made.total, made.mass), made.wide)
        found = variance(made.total, made.squares, made.mass)
        return rounded(found if kind.endswith("var") else square_root(found), made.wide)


def expected(kind: str, made: Cases) -> Vector:
    """Return the correctly rounded results, in binary64: of what is 0, 0.0; of what is less but rounded to it, -0.0."""
    round_one = _root if kind.endswith("std") else _quotient
    fractions = _spreads(made) if made.squares else _quotients(made)
    targets = [FLOAT64 if wide else FLOAT32 for wide in made.wide.tolist()]
    return np.array([round_one(*fraction, *target) for fraction, target in zip(fractions, targets, strict=True)])


def _quotients(made: Cases) -> Iterator[tuple[int, int, int]]:
    """Yield total / mass as numerator, denominator, and the exponent of the power of two that they are times."""
    for (total, of_total), (mass, of_mass) in zip(_integers(made.total), _integers(made.mass), strict=True):
        yield total, mass, of_total - of_mass


def _spreads(made: Cases) -> Iterator[tuple[int, int, int]]:
    """Yield squares / mass - (total / mass)^2, or 0 where that is less."""
    for (total, of_total), (squares, of_squares), (mass, of_mass) in zip(
        *map(_integers, (made.total, made.squares, made.mass)), strict=True
    ):
        first, second = squares * mass, total * total
        exponent, other = of_squares + of_mass, 2 * of_total
        least = min(exponent, other)
        difference = (first << (exponent - least)) - (second << (other - least))
        yield max(difference, 0), mass * mass, least - 2 * of_mass


def _integers(expansion: Expansion) -> Iterator[tuple[int, int]]:
    """Yield what an expansion stands for, as integers and exponents of the powers of two that they are times."""
    fractions, exponents = np.frexp(np.stack(expansion))
    whole = (fractions * 2.0**53).astype(np.int64)
    exponents = np.where(whole == 0, 2000, exponents) - 53
    least = exponents.min(axis=0)
    shifts = np.where(whole == 0, 0, exponents - least)
    parts = [zip(*each, strict=True) for each in zip(whole.tolist(), shifts.tolist(), strict=True)]
    for exponent, *terms in zip(least.tolist(), *parts, strict=True):
        yield sum([value << shift for value, shift in terms]), exponent


def _quotient(numerator: int, denominator: int, exponent: int, digits: int, least: int, beyond: int) -> float:
    """Return numerator / denominator * 2^exponent, rounded once, ties to even."""
    sign = -1.0 if numerator < 0 else 1.0
    numerator = abs(numerator)
    # the value is below 2^(lengths + 1 + exponent), and at least a quarter of that: its unit is this one or half of it
    unit = max(numerator.bit_length() - denominator.bit_length() + 1 + exponent - digits, least)
    found, rest, whole = _divided(numerator, denominator, exponent - unit)
    if found >> (digits - 1) == 0 and unit > least:
        unit -= 1
        found, rest, whole = _divided(numerator, denominator, exponent - unit)
    if 2 * rest > whole or (2 * rest == whole and found & 1):
        found += 1
    return sign * _float(found, unit, beyond) if numerator else 0.0


def _divided(numerator: int, denominator: int, shift: int) -> tuple[int, int, int]:
    """Return the whole quotient of numerator * 2^shift and denominator, the rest, and what that is a rest of."""
    if shift > 0:
        numerator <<= shift
    else:
        denominator <<= -shift
    return *divmod(numerator, denominator), denominator


def _root(numerator: int, denominator: int, exponent: int, digits: int, least: int, beyond: int) -> float:
    """Return the square root of numerator / denominator * 2^exponent, rounded once, ties to even."""
    top = numerator.bit_length() - denominator.bit_length() + 1 + exponent  # the value is below 2^top
    unit = max((top + 1) // 2 - digits, least)
    found = math.isqrt(_divided(numerator, denominator, exponent - 2 * unit)[0])
    if found >> (digits - 1) == 0 and unit > least:
        unit -= 1
        found = math.isqrt(_divided(numerator, denominator, exponent - 2 * unit)[0])
    half_way, rest, _ = _divided(
        4 * numerator, denominator, exponent - 2 * unit
    )  # four times the root's square, in units
    middle = (2 * found + 1) ** 2
    if half_way > middle or (half_way == middle and (rest or found & 1)):
        found += 1
    return _float(found, unit, beyond)


def _float(found: int, unit: int, beyond: int) -> float:
    """Return found * 2^unit, which the target has, or infinity."""
    return math.inf if found and found.bit_length() + unit > beyond else math.ldexp(found, unit)


def main() -> None:
    """Print what became of the cases of each kind; the exit status is 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    any_differs = False
    for kind in KINDS:
        found = check(kind, given.number // len(KINDS), given.seed)
        any_differs |= found.differing > 0
        print(
            f"{kind}: {found.cases:,} cases, {found.differing} differ; exact fractions are needed for {found.open:,}, and for"
            f" {found.plain_open} of {found.plain:,} that were not made to be hard. {found.example}",
            flush=True,
        )
    sys.exit(any_differs)


if __name__ == "__main__":
    main()
