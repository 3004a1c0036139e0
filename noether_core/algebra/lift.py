"""Lift values to statistics: each alone, or a whole array at once, with the library's own sums.

`summarise` reads a large array, and gives a handful of single numbers; `statistics_of` makes statistics of them, for many
arrays at once where they are stacked. The array is summed by the library in binary64: exact while the elements' exponents
differ by no more than 29 - log2(elements) bits, else to a relative error of elements * 2^-53 * sum|x| / |sum x| at most, and
far less in practice (the libraries sum pairwise). Its squares are summed likewise about a number s close to its mean m, and its
sum, where squares are asked for, from the same differences, so that sum and squares fit together: the array's own variance,
of standard deviation d, has a relative error of 4 * elements * 2^-53 * (1 + ((m - s) / d)^2) at most, and |m - s| <= 2^-26 |m|.
So an offset of 1e6 costs a spread of 1e-2 nothing. Ints and bools are summed exactly, unless they are weighed; for their
variance the same holds while sum|x - s| < 2^53.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from noether_core.algebra.expansion import Array, Expansion, add, extended, multiply, normalise
from noether_core.algebra.sums import Fields, Ops, Statistics


def classify(ops: Ops, values: Array, weights: Array | None) -> tuple[Array, Array, Array, Array]:
    """Tell which values are used, and which count as NaN, +inf and -inf; what has weight 0 is none of these."""
    used, nan, positive, negative = (
        ops.xp.isfinite(values),
        ops.xp.isnan(values),
        values == math.inf,
        values == -math.inf,
    )
    if weights is None:
        return used, nan, positive, negative
    counts, sound = weights != 0, ops.xp.isfinite(weights)
    live = counts & sound
    return used & live, (nan | ~sound) & counts, positive & live, negative & live


def lift(ops: Ops, values: Array, positions: Array, fields: Fields, weights: Array | None = None) -> Statistics:
    """Return each value as its own sums.

    Args:
        ops: the array library.
        values: shape [rows, slots], any real dtype.
        positions: integer positions, shape [rows, 1] or [1, 1].
        fields: what to carry.
        weights: shape [rows, slots] or one that broadcasts to it; given if and only if `fields.weights`. A value whose
            weight is 0 counts for nothing, whatever it is; one whose weight is not finite counts as NaN.
    """
    wide, is_short = ops.widen(values)
    if weights is None and ops.are_finite(wide[0]):
        return _lift_finite(ops, wide, is_short, fields)
    factor, factor_is_short = ((), False) if weights is None else ops.widen(weights)
    used, nan, positive, negative = classify(ops, wide[0], factor[0] if factor else None)
    factor = tuple(ops.where(used, part, 0.0) for part in factor)
    value = tuple(ops.where(used, part, 0.0) for part in wide)
    zero = value[0] * 0.0
    squares = _product(ops, value, value, is_short) if fields.squares else ()
    if squares and factor:
        squares = multiply(ops, squares[: 1 if is_short else None], factor, ops.deep)
    least, greatest = ((ops.where(used, wide[0], end), *value[1:]) for end in (math.inf, -math.inf))
    return Statistics(
        extended(value, ops.parts, zero),
        squares,
        extended(least, ops.parts, zero) if fields.extremes else (),
        extended(greatest, ops.parts, zero) if fields.extremes else (),
        _product(ops, value, factor, is_short and factor_is_short) if factor else (),
        extended(factor, ops.parts, zero) if factor else (),
        ops.where(nan, 1, 0),
        ops.where(positive, 1, 0),
        ops.where(negative, 1, 0),
        ops.where(nan | positive | negative, positions, ops.never),
    )


def _product(ops: Ops, a: Expansion, b: Expansion, is_exact: bool) -> Expansion:
    """Return the product of two finite expansions, which may be exact in one part."""
    return extended((a[0] * b[0],), ops.deep, a[0] * 0.0) if is_exact else multiply(ops, a, b, ops.deep)


def _lift_finite(ops: Ops, wide: Expansion, is_short: bool, fields: Fields) -> Statistics:
    """Return the statistics of finite values, each alone: a third of the operations."""
    none = ops.full(wide[0].shape, 0, wide[0])
    value = extended(wide, ops.parts, wide[0] * 0.0)
    squares = _product(ops, wide, wide, is_short) if fields.squares else ()
    ends = value if fields.extremes else ()
    return Statistics(value, squares, ends, ends, (), (), none, none, none, none + ops.never)


_MOST_MERGED = 1024  # elements of an array; of a larger one the library's own sum takes over


def is_small(elements: int) -> bool:
    """Tell whether an array of so many elements is merged like everything else."""
    return 0 < elements <= _MOST_MERGED


class ArraySummary(NamedTuple):
    """Hold what is read of a large array: single numbers, see `Ops`; what no column is for is empty.

    Attributes:
        total: the sum of its finite values; two parts for ints and bools, whose sum is exact, else one.
        origin: a number near their mean, of few enough bits that its square is exact.
        first: the sum of their differences from it, weighted if there are weights.
        second: the sum of the differences' squares, likewise.
        mass: how many they are, or the sum of their weights.
        minimum: the least of them, as two parts.
        maximum: the greatest.
        nan, positive, negative, first_nonfinite: see `Statistics`.
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
    first_nonfinite: Array


def summarise(
    ops: Ops, values: Array, position: Callable[[], Array], fields: Fields, weights: Array | None = None
) -> ArraySummary:
    """Return what is read of a large array, see `summarise_all`."""
    return summarise_all(ops, [values], position, fields, weights)[0]


def summarise_all(
    ops: Ops, arrays: Sequence[Array], position: Callable[[], Array], fields: Fields, weights: Array | None = None
) -> list[ArraySummary]:
    """Return what is read of large arrays of one shape and dtype; the module says what that is worth.

    All of them are taken for finite, or none: so what the library exchanges for one branch, it exchanges for all at once.

    Args:
        ops: the array library; one with binary64.
        arrays: each of shape [elements], any real dtype. Or [arrays, *elements], if the single numbers of `ops` have the arrays
            as their leading axis.
        position: makes the integer position, shape [1, 1], if it is needed.
        fields: what to carry.
        weights: of the shape of an array's values, or one that broadcasts to it, or None; see `lift`.
    """

    def carefully() -> list[ArraySummary]:
        return [_summarise_carefully(ops, values, position(), fields, weights) for values in arrays]

    if weights is not None and math.prod(arrays[0].shape[1:] or arrays[0].shape):
        return carefully()
    totals = [ops.sum_binary64(values) for values in arrays]

    def plainly() -> list[ArraySummary]:
        return [_summarise_finite(ops, values, total, fields) for values, total in zip(arrays, totals, strict=True)]

    if len(totals[0]) == 2:  # of ints or bools
        return plainly()
    return ops.choose([total[0] for total in totals], plainly, carefully)


def _summarise_finite(ops: Ops, values: Array, total: Expansion, fields: Fields) -> ArraySummary:
    """Return what is read of a large array of finite values, without weights."""
    elements = math.prod(values.shape[1:] or values.shape)
    none, zero = ops.constant(0, total[0]), ops.constant(0.0, total[0])
    origin, first, second, mass = ((zero,) if fields.squares or fields.weights else () for _ in range(4))
    if fields.squares:
        origin = (ops.split(total[0] / ops.constant(float(max(elements, 1)), total[0]))[0],)
        first, second = _moments(ops, ops.widen(values)[0], origin[0])
        mass = (ops.constant(float(elements), total[0]),)
    least, greatest = ((ops.constant(end, total[0]), zero) if fields.extremes else () for end in (math.inf, -math.inf))
    if fields.extremes and elements:
        least, greatest = (extended(ops.widen(end)[0], 2, zero) for end in ops.extremes(values))
    never = ops.constant(ops.never, total[0])
    return ArraySummary(total, origin, first, second, mass, least, greatest, none, none, none, never)


def _moments(ops: Ops, wide: Expansion, origin: Array, weights: Array | None = None) -> tuple[Expansion, Expansion]:
    """Return the sums of values' differences from a number, and of these differences' squares."""
    shifted = wide[0] - origin
    if len(wide) == 2:
        shifted = shifted + wide[1]
    product = shifted if weights is None else shifted * weights
    return (ops.sum_own_dtype(product),), (ops.sum_own_dtype(product * shifted),)


def _summarise_carefully(
    ops: Ops, values: Array, position: Array, fields: Fields, weights: Array | None
) -> ArraySummary:
    """Return what is read of a large array that may hold NaN and infinities, or has weights."""
    wide, _ = ops.widen(values)
    factor = None if weights is None else ops.widen(weights)[0][0]
    used, *odd = classify(ops, wide[0], factor)
    parts = tuple(ops.where(used, part, 0.0) for part in wide)
    total = normalise(map(ops.sum_own_dtype, parts))
    origin: Expansion = ()
    first: Expansion = ()
    second: Expansion = ()
    mass: Expansion = ()
    if fields.squares or factor is not None:
        ones = ops.where(used, 1.0, parts[0] * 0.0)  # of the sums' dtype; two numbers would be of the library's own
        factor = ones if factor is None else ops.where(used, factor, 0.0)
        count = ops.sum_own_dtype(ones)
        origin = (ops.split(total[0] / ops.where(count == 0, 1.0, count))[0],)
        first, second = _moments(ops, parts, origin[0], factor)
        mass = (ops.sum_own_dtype(factor),)
    least: Expansion = ()
    greatest: Expansion = ()
    if fields.extremes:
        zero = total[0] * 0.0
        least, greatest = (_outermost(ops, wide, used, zero, end) for end in (0, 1))
    nan, positive, negative = map(ops.sum_own_dtype, odd)
    first_nonfinite = ops.where(nan + positive + negative > 0, ops.sum_own_dtype(position), ops.never)
    return ArraySummary(total, origin, first, second, mass, least, greatest, nan, positive, negative, first_nonfinite)


def _outermost(ops: Ops, wide: Expansion, used: Array, zero: Array, end: int) -> Expansion:
    """Return the least (end 0) or the greatest (end 1) of the values that are used."""
    beyond = (math.inf, -math.inf)[end]
    high = ops.extremes(ops.where(used, wide[0], beyond))[end]
    if len(wide) == 1:
        return high, zero
    return high, ops.extremes(ops.where(used & (wide[0] == high), wide[1], beyond))[end]


def statistics_of(ops: Ops, summary: ArraySummary, fields: Fields) -> Statistics:
    """Return the sums of large arrays, one array a row.

    sum w x^2 = sum w d^2 + 2 s sum w d + s^2 sum w and sum w x = sum w d + s sum w, with d = x - s; all but the sums of w d and
    w d^2 are exact products. What rounding took from sum w d is missing in both, and cancels in the variance.

    Args:
        ops: the array library.
        summary: arrays, all of one shape.
        fields: what to carry.
    """
    zero = summary.total[0] * 0.0
    total = summary.total
    squares: Expansion = ()
    weighted: Expansion = ()
    if fields.squares or fields.weights:
        origin, first, mass = summary.origin, summary.first, summary.mass
        weighted = add(extended(first, ops.deep, zero), multiply(ops, origin, mass, ops.deep))
        if fields.squares:
            cross = multiply(ops, (origin[0] * 2.0,), first, ops.deep)
            offset = multiply(ops, (origin[0] * origin[0],), mass, ops.deep)
            squares = add(add(extended(summary.second, ops.deep, zero), cross), offset)
            if len(total) == 1 and not fields.weights:
                total = weighted[:2]
    return Statistics(
        extended(total, 2, zero),
        squares,
        summary.minimum,
        summary.maximum,
        weighted if fields.weights else (),
        extended(summary.mass, 2, zero) if fields.weights else (),
        summary.nan,
        summary.positive,
        summary.negative,
        summary.first_nonfinite,
    )
