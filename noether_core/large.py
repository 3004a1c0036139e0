"""Reduce a whole array to the sums of one slot: small ones element by element, large ones with the library's own sums.

`measure` reads a large array, and gives a handful of single numbers; `sums_of` makes sums of them, for many arrays at once
where they are stacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from noether_core.expansion import Array, Expansion, add, extended, multiply, normalise
from noether_core.reduce import Columns, Ops, Sums, identity, lift, sort

_MOST_MERGED = 1024  # elements of an array; of a larger one the library's own sum takes over


def is_small(elements: int) -> bool:
    """Tell whether an array of so many elements is merged like everything else."""
    return 0 < elements <= _MOST_MERGED


def lift_array(
    ops: Ops, values: Array, code: Callable[[], Array], columns: Columns, weights: Array | None = None
) -> Sums:
    """Return the sums of one array, as one slot: of shape [1]; see `measure` for the arguments and for what they are worth."""
    if values.shape[0] == 0:
        return identity(ops, 1, columns, code())
    if is_small(values.shape[0]) or ops.parts != 2:  # without binary64 every array is merged
        return ops.fold(lift(ops, values[:, None], code(), columns, None if weights is None else weights[:, None]))
    return sums_of(ops, measure(ops, values, code, columns, weights), columns)


class Measured(NamedTuple):
    """Hold what is read of a large array: single numbers, see `Ops`; what no column is for is empty.

    Attributes:
        total: the sum of its finite values; two parts for ints and bools, whose sum is exact, else one.
        origin: a number near their mean, of few enough bits that its square is exact.
        first: the sum of their differences from it, weighted if there are weights.
        second: the sum of the differences' squares, likewise.
        mass: how many they are, or the sum of their weights.
        minimum: the least of them, as two parts.
        maximum: the greatest.
        nan, positive, negative, place: see `Sums`.
    """

    total: Expansion
    origin: Expansion
    first: Expansion
    second: Expansion
    mass: Expansion
    minimum: Expansion
    maximum: Expansion
    nan: Array
    positive: Array
    negative: Array
    place: Array


def measure(
    ops: Ops, values: Array, code: Callable[[], Array], columns: Columns, weights: Array | None = None
) -> Measured:
    """Return what is read of a large array.

    It is summed by the library in binary64: exact while the elements' exponents differ by no more than 29 - log2(elements)
    bits, else to a relative error of elements * 2^-53 * sum|x| / |sum x| at most, and far less in practice (the libraries
    sum pairwise). Its squares are summed likewise about a number s close to its mean m, and its sum, where squares are asked
    for, from the same differences, so that sum and squares fit together: the array's own variance, of standard deviation d,
    has a relative error of 4 * elements * 2^-53 * (1 + ((m - s) / d)^2) at most, and |m - s| <= 2^-26 |m|. So an
    offset of 1e6 costs a spread of 1e-2 nothing. Ints and bools are summed exactly, unless they are weighed; for their
    variance the same holds while sum|x - s| < 2^53.

    Args:
        ops: the array library; one with binary64.
        values: shape [elements], any real dtype.
        code: makes the integer place code, shape [1, 1], if it is needed.
        columns: what to carry.
        weights: shape [elements] or [1], or None; see `lift`.
    """
    elements = values.shape[0]
    if weights is not None and elements:
        return _measure_carefully(ops, values, code(), columns, weights)
    total = ops.sum(values)

    def plain() -> Measured:
        none, zero = ops.constant(0, total[0]), ops.constant(0.0, total[0])
        origin, first, second, mass = ((zero,) if columns.squares or columns.weights else () for _ in range(4))
        if columns.squares:
            origin = (ops.split(total[0] / ops.constant(float(max(elements, 1)), total[0]))[0],)
            first, second = _moments(ops, ops.widen(values)[0], origin[0])
            mass = (ops.constant(float(elements), total[0]),)
        least, greatest = (
            (ops.constant(end, total[0]), zero) if columns.extremes else () for end in (math.inf, -math.inf)
        )
        if columns.extremes and elements:
            least, greatest = (extended(ops.widen(end)[0], 2, zero) for end in ops.extremes(values))
        never = ops.constant(ops.never, total[0])
        return Measured(total, origin, first, second, mass, least, greatest, none, none, none, never)

    if len(total) == 2:  # of ints or bools
        return plain()
    return ops.choose(total[0], plain, lambda: _measure_carefully(ops, values, code(), columns, weights=None))


def _moments(ops: Ops, wide: Expansion, origin: Array, weights: Array | None = None) -> tuple[Expansion, Expansion]:
    """Return the sums of values' differences from a number, and of these differences' squares."""
    shifted = wide[0] - origin
    if len(wide) == 2:
        shifted = shifted + wide[1]
    product = shifted if weights is None else shifted * weights
    return (ops.total(product),), (ops.total(product * shifted),)


def _measure_carefully(ops: Ops, values: Array, code: Array, columns: Columns, weights: Array | None) -> Measured:
    """Return what is read of a large array that may hold NaN and infinities, or has weights."""
    wide, _ = ops.widen(values)
    factor = None if weights is None else ops.widen(weights)[0][0]
    used, *odd = sort(ops, wide[0], factor)
    parts = tuple(ops.where(used, part, 0.0) for part in wide)
    total = normalise(map(ops.total, parts))
    origin: Expansion = ()
    first: Expansion = ()
    second: Expansion = ()
    mass: Expansion = ()
    if columns.squares or factor is not None:
        ones = ops.where(used, 1.0, parts[0] * 0.0)  # of the sums' dtype; two numbers would be of the library's own
        factor = ones if factor is None else ops.where(used, factor, 0.0)
        count = ops.total(ones)
        origin = (ops.split(total[0] / ops.where(count == 0, 1.0, count))[0],)
        first, second = _moments(ops, parts, origin[0], factor)
        mass = (ops.total(factor),)
    least: Expansion = ()
    greatest: Expansion = ()
    if columns.extremes:
        zero = total[0] * 0.0
        least, greatest = (_outermost(ops, wide, used, zero, end) for end in (0, 1))
    nan, positive, negative = map(ops.total, odd)
    place = ops.where(nan + positive + negative > 0, ops.total(code), ops.never)
    return Measured(total, origin, first, second, mass, least, greatest, nan, positive, negative, place)


def _outermost(ops: Ops, wide: Expansion, used: Array, zero: Array, end: int) -> Expansion:
    """Return the least (end 0) or the greatest (end 1) of the values that are used."""
    beyond = (math.inf, -math.inf)[end]
    high = ops.extremes(ops.where(used, wide[0], beyond))[end]
    if len(wide) == 1:
        return high, zero
    return high, ops.extremes(ops.where(used & (wide[0] == high), wide[1], beyond))[end]


def sums_of(ops: Ops, measured: Measured, columns: Columns) -> Sums:
    """Return the sums of large arrays, one array a row.

    sum w x^2 = sum w d^2 + 2 s sum w d + s^2 sum w and sum w x = sum w d + s sum w, with d = x - s; all but the sums of w d and
    w d^2 are exact products. What rounding took from sum w d is missing in both, and cancels in the variance.

    Args:
        ops: the array library.
        measured: arrays, all of one shape.
        columns: what to carry.
    """
    zero = measured.total[0] * 0.0
    total = measured.total
    squares: Expansion = ()
    weighted: Expansion = ()
    if columns.squares or columns.weights:
        origin, first, mass = measured.origin, measured.first, measured.mass
        weighted = add(extended(first, ops.deep, zero), multiply(ops, origin, mass, ops.deep))
        if columns.squares:
            cross = multiply(ops, (origin[0] * 2.0,), first, ops.deep)
            offset = multiply(ops, (origin[0] * origin[0],), mass, ops.deep)
            squares = add(add(extended(measured.second, ops.deep, zero), cross), offset)
            if len(total) == 1 and not columns.weights:
                total = weighted[:2]
    return Sums(
        extended(total, 2, zero),
        squares,
        measured.minimum,
        measured.maximum,
        weighted if columns.weights else (),
        extended(measured.mass, 2, zero) if columns.weights else (),
        measured.nan,
        measured.positive,
        measured.negative,
        measured.place,
    )
