"""Make the cases that `rounding.py` checks: sums as they come, and ones made to be hard to round.

A case is what an interval has of one key: expansions of binary64, each part at most half a unit of the one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.expansion import Expansion, add, extended, multiply, normalise, two_sum
from noether_core.algebra.numpy_ops import NUMPY

Vector = np.ndarray[Any, Any]
Random = np.random.Generator

KINDS = ("sum", "mean", "weighted mean", "var", "weighted var", "std", "weighted std")
DEEP = 4  # parts of a sum of products


class Cases(NamedTuple):
    """Hold cases; see the module.

    Attributes:
        total: the sum of the values, or of the values times their weights; two parts, or four of weighted ones.
        squares: the sum of their squares, or of these times the weights, in four parts; empty for sums and means.
        mass: the sum of the weights in two parts, or how many values there are in one.
        wide: whether the result is rounded to float64, else to float32.
        plain: whether the case is one as they come, not made to be hard.
    """

    total: Expansion
    squares: Expansion
    mass: Expansion
    wide: Vector
    plain: Vector


@np.errstate(over="ignore", invalid="ignore")  # see `_finite`
def cases(kind: str, number: int, seed: int) -> Cases:
    """Return so many cases of one of the `KINDS`."""
    random = np.random.default_rng([KINDS.index(kind), seed])
    name = kind.removeprefix("weighted ")
    is_spread = name in {"var", "std"}
    wide = random.random(number) < 0.5
    made = [family(random, part) for family, part in zip(_FAMILIES, np.array_split(wide, len(_FAMILIES)), strict=True)]
    result = tuple(map(np.concatenate, zip(*made, strict=True)))
    plain = np.arange(number) < made[0][0].size
    is_large = np.abs(result[0]) > 2.0**900  # a product would be beyond binary64, so these are times 1
    mass = tuple(np.where(is_large, at == 0, part) for at, part in enumerate(_mass(kind, random, number)))
    deep = DEEP if kind != name else 2
    if not is_spread:
        total = _cut(result if kind == "sum" else _times(result, mass, is_large), deep)
        return _finite(Cases(total, (), mass, wide, plain))
    result = tuple(np.where(result[0] < 0, -part, part) for part in result)
    variance = _cut(result if name == "var" else _times(result, result, is_large), DEEP)
    mean = np.where(is_large, 0.0, _mean(random, np.sqrt(variance[0])))
    total = _cut(multiply(NUMPY, (mean,), mass, DEEP), deep)
    moment = add(variance, multiply(NUMPY, (mean,), (mean,), DEEP))
    return _finite(Cases(total, _nudged(random, _times(moment, mass, is_large)), mass, wide, plain))


def _times(a: Expansion, b: Expansion, is_large: Vector) -> Expansion:
    """Return products in four parts; `a` itself where it is large."""
    product = multiply(NUMPY, tuple(np.where(is_large, 0.0, part) for part in a), b, DEEP)
    return tuple(np.where(is_large, part, other) for part, other in zip(_cut(a, DEEP), product, strict=True))


def _finite(made: Cases) -> Cases:
    """Return cases with 0 instead of what is beyond binary64: where such sums come from, there is nothing to round."""
    parts = (*made.total, *made.squares)
    is_finite = np.logical_and.reduce([np.isfinite(part) for part in parts])
    total, squares = (tuple(np.where(is_finite, part, 0.0) for part in each) for each in (made.total, made.squares))
    return made._replace(total=total, squares=squares)


def _cut(expansion: Expansion, length: int) -> Expansion:
    """Return an expansion cut or filled to a length; what is cut off is lost, as it is in training."""
    return extended(expansion[:length], length, np.zeros_like(expansion[0]))


def _mass(kind: str, random: Random, number: int) -> Expansion:
    if kind == "sum":
        return (np.ones(number),)
    sizes = 2.0 ** random.uniform(0, random.choice([3, 12, 40], number))
    if not kind.startswith("weighted"):
        return (np.floor(sizes),)
    exact = random.random(number) < 0.3
    weights = np.where(exact, np.floor(sizes), sizes * random.uniform(1e-3, 1, number))
    return two_sum(weights, np.where(exact, 0.0, weights * random.uniform(-1, 1, number) * 2.0**-54))


def _mean(random: Random, spread: Vector) -> Vector:
    """Return means: none, ones of few bits, and ones with up to 2^30 times the spread, so that much cancels."""
    number = spread.size
    offset = spread * 2.0 ** random.uniform(-3, 30, number) * random.choice([-1, 1], number)
    few = np.round(random.uniform(-8, 8, number)) * 2.0 ** np.floor(np.log2(np.maximum(spread, 2.0**-400)))
    return np.choose(random.integers(3, size=number), [np.zeros(number), few, offset])


def _nudged(random: Random, expansion: Expansion) -> Expansion:
    """Return an expansion with a little added to some, from half a unit of the last part to nothing at all."""
    share = 2.0 ** -random.uniform(100, 215, expansion[0].size) * random.choice([-1, 0, 1], expansion[0].size)
    return normalise([*expansion[:-1], expansion[-1] + expansion[0] * share])


# ---------------------------------------------------------------------- the results that a case is made around


def _magnitudes(random: Random, wide: Vector, digits: Vector, exponents: tuple[float, float]) -> Vector:
    """Return numbers of so many binary digits and exponents, of both signs."""
    whole = np.floor(random.uniform(2.0 ** (digits - 1), 2.0**digits))
    signs = random.choice([-1.0, 1.0], wide.size)
    return signs * np.ldexp(whole, (np.floor(random.uniform(*exponents, wide.size)) - digits).astype(np.int64))


def _plain(random: Random, wide: Vector, exponents: tuple[float, float] = (-20, 20)) -> Expansion:
    high = random.standard_normal(wide.size) * 2.0 ** random.uniform(*exponents, wide.size)
    return two_sum(high, high * random.uniform(-1, 1, wide.size) * 2.0**-54)


def _anywhere(random: Random, wide: Vector) -> Expansion:
    return _plain(random, wide, (-1060, 1000))


def _exact(random: Random, wide: Vector) -> Expansion:
    """Return numbers that the target has, and ones with a few digits."""
    digits = np.where(random.random(wide.size) < 0.5, _digits(wide), np.floor(random.uniform(1, 12, wide.size)))
    high = _magnitudes(random, wide, digits, (-30, 30))
    return high, np.zeros_like(high)


def _near(random: Random, wide: Vector, further: int, exponents: tuple[float, float]) -> Expansion:
    """Return numbers of a few digits more than the target has, ties among them, and some with a tiny bit added."""
    digits = _digits(wide) + further
    high = _magnitudes(random, wide, np.minimum(digits, 53), exponents)
    half = np.where(digits > 53, np.spacing(np.abs(high)) * 0.5 ** (digits - 53), 0.0)  # below what binary64 holds
    tiny = high * 2.0 ** -np.floor(random.uniform(54, 112, wide.size)) * random.choice([-1, 0, 1], wide.size)
    # beside a tie that binary64 cannot hold there is room for what is within 53 bits of its second part
    return two_sum(high, np.where(half > 0, half * random.choice([-1, 1], wide.size) + tiny * 2.0**-2, tiny))


def _ties(random: Random, wide: Vector) -> Expansion:
    return _near(random, wide, 1, (-30, 30))


def _near_numbers(random: Random, wide: Vector) -> Expansion:
    return _near(random, wide, 0, (-30, 30))


def _quarters(random: Random, wide: Vector) -> Expansion:
    return _near(random, wide, 2, (-30, 30))


def _subnormal(random: Random, wide: Vector) -> Expansion:
    """Return numbers about the least that the target has, ties among them where binary64 holds them."""
    least = np.where(wide, -1074, -149)
    few = np.floor(random.uniform(0, 2.0 ** random.uniform(0, 26, wide.size)))
    high = np.ldexp(few, least - np.where(wide, 0, 1)) * random.choice([-1.0, 1.0], wide.size)
    tiny = high * 2.0 ** -np.floor(random.uniform(54, 112, wide.size)) * random.choice([-1, 0, 1], wide.size)
    return two_sum(high, np.where(wide, 0.0, tiny))


def _overflowing(random: Random, wide: Vector) -> Expansion:
    """Return numbers about the greatest that the target has, and about what is rounded to infinity."""
    greatest, half = float(np.finfo(np.float32).max), 2.0**103  # of a unit: from here on, float32 has infinity
    narrow = greatest + half * random.integers(-3, 4, wide.size)
    tiny = narrow * 2.0 ** -np.floor(random.uniform(56, 112, wide.size)) * random.choice([-1, 0, 1], wide.size)
    below = np.nextafter(2.0**970, 0) * random.choice([-1, -0.5, 0, 0.5, 1], wide.size)  # of float64's 2^970
    high, low = np.where(wide, np.finfo(np.float64).max, narrow), np.where(wide, below, tiny)
    sign = random.choice([-1.0, 1.0], wide.size)
    return two_sum(sign * high, sign * low)


def _cancelled(random: Random, wide: Vector) -> Expansion:
    """Return what is left of two numbers that cancel but for their last bits."""
    first = _plain(random, wide)
    return add(first, two_sum(-first[0] * (1 + random.integers(-3, 4, wide.size) * 2.0**-52), first[0] * 2.0**-80))


def _zero(random: Random, wide: Vector) -> Expansion:
    return np.zeros(wide.size), np.zeros(wide.size)


def _digits(wide: Vector) -> Vector:
    return np.where(wide, 53, 24)


_FAMILIES: tuple[Callable[[Random, Vector], Expansion], ...] = (
    _plain,  # the first: see `Cases.plain`
    _anywhere,
    _exact,
    _ties,
    _near_numbers,
    _quarters,
    _subnormal,
    _overflowing,
    _cancelled,
    _zero,
)
