"""Reduce a whole array to the sums of one slot: small ones element by element, large ones with the library's own sums."""

from __future__ import annotations

import math
from collections.abc import Callable

from noether_core.expansion import Array, Expansion, add, extended, multiply, normalise
from noether_core.reduce import Columns, Ops, Sums, identity, lift

_MOST_MERGED = 1024  # elements of an array; of a larger one the library's own sum takes over


def is_small(elements: int) -> bool:
    """Tell whether an array of so many elements is merged like everything else."""
    return 0 < elements <= _MOST_MERGED


def lift_array(
    ops: Ops, values: Array, code: Callable[[], Array], columns: Columns, weights: Array | None = None
) -> Sums:
    """Return the sums of one array, as one slot.

    Up to 1,024 elements are merged like everything else. A larger array is summed by the library in binary64: exact
    while the elements' exponents differ by no more than 29 - log2(elements) bits, else to a relative error of
    elements * 2^-53 * sum|x| / |sum x| at most, and far less in practice (the libraries sum pairwise). Its squares are
    summed likewise about a number s close to its mean m, and its sum, where squares are asked for, from the same
    differences, so that sum and squares fit together: the array's own variance, of standard deviation d, has a relative
    error of 4 * elements * 2^-53 * (1 + ((m - s) / d)^2) at most, and |m - s| <= 2^-26 |m|. So an offset of 1e6 costs a
    spread of 1e-2 nothing. Ints and bools are summed exactly, unless they are weighed; for their variance the same holds
    while sum|x - s| < 2^53. Without binary64 every array is merged.

    Args:
        ops: the array library.
        values: shape [elements], any real dtype.
        code: makes the integer place code, shape [1, 1], if it is needed.
        columns: what to carry.
        weights: shape [elements] or [1], or None; see `lift`.
    """
    if values.shape[0] == 0:
        return identity(ops, 1, columns, code())
    if is_small(values.shape[0]) or ops.parts != 2:
        return ops.fold(lift(ops, values[:, None], code(), columns, None if weights is None else weights[:, None]))
    if weights is not None:
        return _lift_carefully(ops, values, code(), columns, weights)
    total = ops.sum(values)
    is_whole = len(total) == 2  # of floats it is a single number

    def plain() -> Sums:
        none, zero = ops.constant(0, total[0]), ops.constant(0.0, total[0])
        summed = total
        least, greatest = (
            (extended(ops.widen(end)[0], 2, zero) for end in ops.extremes(values)) if columns.extremes else ((), ())
        )
        squares: Expansion = ()
        if columns.squares:
            mass = ops.constant(float(values.shape[0]), total[0])
            squares, fitting = _moments(ops, ops.widen(values)[0], total[0] / mass, mass)
            summed = total if is_whole else fitting[:2]
        first = ops.constant(ops.never, total[0])
        return Sums(extended(summed, 2, zero), squares, least, greatest, (), (), none, none, none, first)

    if is_whole:
        return plain()
    return ops.choose(total[0], plain, lambda: _lift_carefully(ops, values, code(), columns, weights=None))


def _moments(
    ops: Ops, wide: Expansion, near: Array, mass: Array, weights: Array | None = None, used: Array | None = None
) -> tuple[Expansion, Expansion]:
    """Return the sums of weighted squares and of weighted values of a large array, worked out about a number near its mean.

    sum w x^2 = sum w d^2 + 2 s sum w d + s^2 sum w and sum w x = sum w d + s sum w, with d = x - s; all but the sums of w d and
    w d^2 are exact products. What rounding took from sum w d is missing in both, and cancels in the variance.
    """
    (origin, _) = ops.split(near)
    shifted = wide[0] - origin
    if len(wide) == 2:
        shifted = shifted + wide[1]
    if used is not None:
        shifted = ops.where(used, shifted, 0.0)
    product = shifted if weights is None else shifted * weights
    first, second = (
        (sum_, *(sum_ * 0.0,) * (ops.deep - 1)) for sum_ in (ops.total(product), ops.total(product * shifted))
    )
    squares = add(second, multiply(ops, (origin * 2.0,), first[:1], ops.deep))
    squares = add(squares, multiply(ops, (origin * origin,), (mass,), ops.deep))
    return squares, add(first, multiply(ops, (origin,), (mass,), ops.deep))


def _lift_carefully(ops: Ops, values: Array, code: Array, columns: Columns, weights: Array | None) -> Sums:
    """Return the sums of a large array that may hold NaN and infinities, or has weights."""
    lifted = lift(ops, values, code[0], Columns(extremes=True, weights=weights is not None), weights)
    used = lifted.minimum[0] != math.inf
    total = normalise(map(ops.total, lifted.total))
    factor = lifted.weights[0] if weights is not None else None
    ones = ops.where(used, 1.0, lifted.total[0] * 0.0)  # of the sums' dtype; two numbers would be of the library's own
    count = ops.total(ones)
    mass = count if factor is None else ops.total(factor)
    near = total[0] / ops.where(count == 0, 1.0, count)
    squares, weighted = _moments(ops, lifted.total, near, mass, factor, used)
    if columns.squares and not columns.weights:
        total = weighted[:2]
    first = ops.min(lifted.first[:, None])
    least = _outermost(ops, lifted.minimum, 0, math.inf)
    greatest = _outermost(ops, lifted.maximum, 1, -math.inf)
    counts = (ops.total(lifted.nan), ops.total(lifted.positive), ops.total(lifted.negative))
    return Sums(
        total,
        squares if columns.squares else (),
        least if columns.extremes else (),
        greatest if columns.extremes else (),
        weighted if columns.weights else (),
        (mass, mass * 0.0) if columns.weights else (),
        *counts,
        first,
    )


def _outermost(ops: Ops, values: Expansion, end: int, beyond: float) -> Expansion:
    """Return the least (end 0) or the greatest (end 1) of many pairs."""
    high = ops.extremes(values[0])[end]
    return high, ops.extremes(ops.where(values[0] == high, values[1], beyond))[end]
