"""Round many quotients and square roots at once, each once: with a bound on the error, and the keys that it leaves open.

A result is first had as `near + rest`, two binary64 numbers with |rest| <= ulp(near) / 2, and a bound on what is missing.
Where `rest` is larger than that bound, its sign is known, and so which number of the target is nearest: to float32 by way of
rounding to odd, which cannot round twice (Boldo and Melquiond, IEEE Transactions on Computers 57, 2008); to float64, unless
`rest` is as near to half a unit of `near` as the bound. What is left open, and all that is near an end of binary64's range, is
for `exact.py`: the functions return a mask of it. `benchmarks/rounding.py` holds ten million cases against exact integers.

For use where NumPy's warnings of overflow and invalid operations are off: what they warn of is in the mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.expansion import Expansion, add, extended, multiply, two_product, two_sum
from noether_core.algebra.numpy_ops import NUMPY

Vector = np.ndarray[Any, Any]

_LEAST, _GREATEST = (
    2.0**-450,
    2.0**450,
)  # of numbers between these neither a product nor its error leaves binary64's range
_TINY = 2.0**-1070  # more than what a quotient below that range may lose
_DEEP = 4  # parts of the products that a variance is a difference of
_LOST = 2.0**-200  # what these products lose, at the most, as a share of the product


class Near(NamedTuple):
    """Hold numbers as `near + rest`, to within `bound`: vectors. A bound of 0 is exact, None is exact throughout."""

    near: Vector
    rest: Vector
    bound: Vector | float | None


def quotient(total: Expansion, count: Vector) -> Near:
    """Return the quotients of two-part expansions and positive whole numbers below 2^53.

    The remainder of the rounded quotient is a binary64 number (exact for a division, as for a multiplication its error is);
    divided once more it gives the rest to 2^-52 of itself.
    """
    first = total[0] / count
    product, error = two_product(NUMPY, first, count)
    remainder, lost = two_sum((total[0] - product) - error, total[1])
    second = remainder / count
    near, rest = two_sum(first, second)
    bound = np.where(remainder == 0, 0.0, np.abs(second) * 2.0**-51 + np.abs(lost) + _TINY)
    return Near(near, rest, _guarded(bound, (first,)))


def ratio(total: Expansion, mass: Expansion, lost: Vector | float = 0.0) -> Near:
    """Return the quotients of four-part expansions and others, the first known to within `lost`; three divisions deep.

    A remainder of 0 is exact where the terms that it is the sum of find room in its four parts.
    """
    first = total[0] / mass[0]
    left = add(total, multiply(NUMPY, (-first,), mass, _DEEP))
    is_exact = (lost == 0) & _is_zero(total[2:], mass[1:], left[2:])
    second = left[0] / mass[0]
    left = add(left, multiply(NUMPY, (-second,), mass, _DEEP))
    third = left[0] / mass[0]
    near, rest = two_sum(first, second)
    near, more = two_sum(near, rest + third)
    bound = np.abs(rest) * 2.0**-52 + np.abs(third) * 2.0**-50 + np.abs(lost / mass[0]) * 2 + _TINY
    return Near(near, more, _guarded(np.where(is_exact & (left[0] == 0), 0.0, bound), mass, (first,)))


def _guarded(bound: Vector, *expansions: Expansion) -> Vector:
    """Return the bound, infinite where some part, other than 0, is so small or large that products of it are not safe."""
    for parts in expansions:
        for part in parts:
            size = np.abs(part)
            bound = np.where(((size > _LEAST) & (size < _GREATEST)) | (size == 0), bound, np.inf)
    return bound


def _is_zero(*expansions: Expansion) -> Vector:
    """Tell where all parts are 0."""
    return np.logical_and.reduce([part == 0 for parts in expansions for part in parts])  # type: ignore[no-any-return]


def variance(total: Expansion, squares: Expansion, mass: Expansion) -> Near:
    """Return squares / mass - (total / mass)^2, as (squares mass - total^2) / mass^2.

    Where the two products have more parts than are kept, their difference is known to within a share of them: the more of it
    cancels, the larger the bound.
    """
    product = multiply(NUMPY, squares, mass, _DEEP)
    square = multiply(NUMPY, total, total, _DEEP)
    difference = add(extended(product, 2 * _DEEP, 0.0), extended([-part for part in square], 2 * _DEEP, 0.0))
    is_short = _is_zero(squares[2:], total[1:], mass[1:])
    lost = np.where(is_short, np.abs(difference[_DEEP]) * 2, np.abs(product[0]) * _LOST)
    lost = np.where(difference[0] < 0, np.inf, lost)  # what rounding alone has made: a variance is never below 0
    found = ratio(difference[:_DEEP], multiply(NUMPY, mass, mass, _DEEP), lost)
    return found._replace(bound=_guarded(np.asarray(found.bound), total, squares, mass))


def square_root(value: Near) -> Near:
    """Return square roots: one step of Newton's method from the rounded one."""
    lost: Vector | float = 0.0 if value.bound is None else value.bound
    first = np.sqrt(value.near)
    product, error = two_product(NUMPY, first, first)
    left = ((value.near - product) - error) + value.rest
    double = np.where(first == 0, 1.0, first * 2)
    second = left / double
    near, rest = two_sum(first, second)
    bound = np.abs(second) * 2.0**-50 + second * second / double * 4 + lost / double * 2 + _TINY
    return Near(near, rest, np.where((left == 0) & (lost == 0), 0.0, bound))


def rounded(value: Near, wide: Vector | bool) -> tuple[Vector, Vector]:
    """Return numbers of float32 (of float64 where `wide`), in binary64, and a mask of those that are left open."""
    near, rest, bound = value
    near = near + 0.0  # no -0.0 where nothing was rounded away
    found = near if wide is True else _by_odd(near, rest)
    if isinstance(wide, np.ndarray):
        found = np.where(wide, near, found)
    if bound is None:
        return found, ~np.isfinite(near)
    size, unit = np.abs(rest), np.spacing(np.abs(near))
    open_narrow = size <= bound
    open_wide = (np.abs(size - unit / 2) <= bound) | (np.abs(size - unit / 4) <= bound)
    return found, ~np.isfinite(near) | ((bound != 0) & np.where(wide, open_wide, open_narrow)) | np.isinf(bound)


def _by_odd(near: Vector, rest: Vector) -> Vector:
    """Return `near + rest`, |rest| <= ulp(near) / 2, rounded once to float32, in binary64."""
    if rest.any():
        bits = near.view(np.int64)
        step = np.where((rest > 0) == (near > 0), 1, -1)
        near = np.where((rest != 0) & ((bits & 1) == 0), bits + step, bits).view(np.float64)
    return near.astype(np.float32).astype(np.float64)
