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
    2.0**-900,
    2.0**900,
)  # between them no product of parts, nor an error of one, leaves binary64's range
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
    return Near(near, rest, np.abs(second) * 2.0**-51 + np.abs(lost))


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
    bound = np.abs(rest) * 2.0**-52 + np.abs(third) * 2.0**-50 + np.abs(lost / mass[0]) * 2
    return Near(near, more, np.where(is_exact & (left[0] == 0), 0.0, bound))


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
    return ratio(difference[:_DEEP], multiply(NUMPY, mass, mass, _DEEP), lost)


def square_root(value: Near) -> Near:
    """Return square roots: one step of Newton's method from the rounded one."""
    lost: Vector | float = 0.0 if value.bound is None else value.bound
    first = np.sqrt(value.near)
    product, error = two_product(NUMPY, first, first)
    left = ((value.near - product) - error) + value.rest
    double = np.where(first == 0, 1.0, first * 2)
    second = left / double
    near, rest = two_sum(first, second)
    bound = np.abs(second) * 2.0**-50 + second * second / double * 4 + lost / double * 2
    return Near(near, rest, np.where((left == 0) & (lost == 0), 0.0, bound))


def rounded(value: Near, wide: Vector | bool) -> tuple[Vector, Vector]:
    """Return numbers of float32 (of float64 where `wide`), in binary64, and a mask of those that are left open."""
    near, rest, bound = value
    narrow = near if wide is True else _by_odd(near, rest)
    found = near + 0.0 if wide is True else np.where(wide, near, narrow) + 0.0 if wide is not False else narrow
    if bound is None:
        return found, ~np.isfinite(near)
    magnitude, size = np.abs(near), np.abs(rest)
    is_open = ~((magnitude > _LEAST) & (magnitude < _GREATEST)) & ((near != 0) | (bound != 0))
    is_open |= (size <= bound) & (bound != 0) & ~np.asarray(wide)
    if wide is not False:
        unit = np.spacing(magnitude)
        near_half = (np.abs(size - unit / 2) <= bound) | (np.abs(size - unit / 4) <= bound)
        is_open |= near_half & (bound != 0) & wide
    return found, is_open


def _by_odd(near: Vector, rest: Vector) -> Vector:
    """Return `near + rest`, |rest| <= ulp(near) / 2, rounded once to float32, in binary64."""
    if rest.any():
        bits = near.view(np.int64)
        is_even = (bits & 1) == 0
        step = np.where((rest > 0) == (near > 0), 1, -1)
        near = np.where((rest != 0) & is_even, bits + step, bits).view(np.float64)
    return near.astype(np.float32).astype(np.float64) + 0.0
