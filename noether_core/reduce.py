"""REDUCE: the monoids, written once over a small `ops` argument (NumPy, jax.numpy or torch).

A monoid is an identity, a lift of one step's values, an associative merge and a finish (`finish.py`). The same merge joins
steps, accumulation steps, shards and resumed runs. What all the reductions need of a key is in `Sums`, a handful of vectors
with one slot per key:

- sums of the finite values as expansions of about 100 bits (`expansion.py`), far more than the finished number has, so that
  it is the same for every order and split, and the correctly rounded one. Squares are summed about 0, not about a mean
  that would differ between the parts of a split: twice as many bits pay for the cancellation at the end;
- the least and the greatest finite value;
- how many values were NaN, +inf and -inf. Keeping them out of the sums keeps those finite; the finish puts them back
  as IEEE 754 arithmetic would have had them, or leaves them out, as the config says;
- where the first of them was, as one number that `place_code` makes and `place_of` reads.

Laws, tested for every `ops`: merge(identity, a) = a; merge is commutative; finish(merge) does not depend on how the
values were grouped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from noether_core.expansion import Array, Expansion, SplitOps, add, is_less, multiply, normalise

NEVER = 2**63 - 1  # the place code of "no non-finite value yet"
_STEPS_PER_UPDATE = 2**20
_TREE_ROWS = 1024  # beyond this many elements of an array the library's own sum takes over


class Ops(SplitOps, Protocol):
    """List what the algebra needs of an array library beside the arrays' own operators."""

    parts: int  # the length of the expansion that holds a sum of values: 2 of binary64, or 4 of binary32
    deep: int  # of one that holds a sum of products: 4 of binary64, or 6 of binary32
    never: int  # the greatest integer of the place codes' dtype, for "no non-finite value yet"

    def where(self, condition: Array, values: Array, others: Array, /) -> Array:
        """Return `values` where the condition holds, else `others`."""

    def isnan(self, values: Array, /) -> Array:
        """Tell which values are NaN."""

    def isfinite(self, values: Array, /) -> Array:
        """Tell which values are neither NaN nor infinite."""

    def minimum(self, values: Array, others: Array, /) -> Array:
        """Return the smaller of each two values."""

    def widen(self, values: Array) -> tuple[Expansion, bool]:
        """Return values of any real dtype, exactly, as an expansion of as few parts as their dtype needs.

        And whether products of two of them are exact in one part.
        """

    def full(self, shape: tuple[int, ...], value: float | int, like: Array) -> Array:
        """Return a constant array, of the expansions' dtype for a float and integer for an int, on the device of `like`."""

    def min(self, values: Array) -> Array:
        """Return the minimum over the leading axis."""

    def fold(self, sums: Sums) -> Sums:
        """Return `merge` over the leading axis (at least one row): [rows, slots] to [slots]; `fold_tree` will do."""

    def sum(self, values: Array) -> Expansion:
        """Return the library's own sum of all values, shape [1], in binary64; exact for ints and bools."""

    def extremes(self, values: Array) -> tuple[Array, Array]:
        """Return the least and the greatest of all values, each of shape [1]; NaN if there is one."""

    def constant(self, value: float | int, like: Array) -> Array:
        """Return what `full` would, of shape [1]; or the number itself, if `choose` runs but one function."""

    def choose(self, total: Array, plain: Callable[[], Sums], careful: Callable[[], Sums]) -> Sums:
        """Return `plain()` if the total, of shape [1], is finite, else `careful()`; do not wait for a device."""


class Columns(NamedTuple):
    """Say what `Sums` carries beside the sum, for the reductions that need it."""

    squares: bool = False
    extremes: bool = False
    weights: bool = False


class Sums(NamedTuple):
    """Hold the reduced values of every slot; all arrays have the same shape.

    Attributes:
        total: the sum of the finite values, as an expansion.
        squares: the sum of their squares, weighted if there are weights; empty where no column is for it, as the next ones.
        minimum: the least of them; +inf where there is none.
        maximum: the greatest of them; -inf where there is none.
        weighted: the sum of the values times their weights.
        weights: the sum of the weights.
        nan, positive, negative: how many were NaN, +inf, -inf; integers.
        first: the place code of the first of these; an integer.
    """

    total: Expansion
    squares: Expansion
    minimum: Expansion
    maximum: Expansion
    weighted: Expansion
    weights: Expansion
    nan: Array
    positive: Array
    negative: Array
    first: Array


def each(function: Callable[..., Any], *sums: Sums) -> Sums:
    """Return sums with a function applied to every array, or to the arrays that several sums have in one place."""
    return Sums(
        *(
            tuple(map(function, *fields)) if isinstance(fields[0], tuple) else function(*fields)
            for fields in zip(*sums, strict=True)
        )
    )


def place_code(update: int, accumulation_step: int) -> int:
    """Return update (counted from 1) and accumulation step (from 0) as one number that orders as they do."""
    return update * _STEPS_PER_UPDATE + accumulation_step


def place_of(code: int) -> tuple[int, int]:
    """Return the update and the accumulation step of a place code.

    >>> place_of(place_code(update=7, accumulation_step=1))
    (7, 1)
    """
    return divmod(code, _STEPS_PER_UPDATE)


def nothing(ops: Ops, columns: Columns) -> Sums:
    """Return one slot of the identity, as Python numbers."""
    zero = (0.0,) * ops.parts
    deep = (0.0,) * ops.deep
    return Sums(
        total=zero,
        squares=deep if columns.squares else (),
        minimum=(math.inf, *zero[1:]) if columns.extremes else (),
        maximum=(-math.inf, *zero[1:]) if columns.extremes else (),
        weighted=deep if columns.weights else (),
        weights=zero if columns.weights else (),
        nan=0,
        positive=0,
        negative=0,
        first=ops.never,
    )


def identity(ops: Ops, slots: int, columns: Columns, like: Array) -> Sums:
    """Return the sums of nothing: merging them with any other gives that other."""
    return each(lambda value: ops.full((slots,), value, like), nothing(ops, columns))


def lift(ops: Ops, values: Array, codes: Array, columns: Columns, weights: Array | None = None) -> Sums:
    """Return each value as its own sums.

    Args:
        ops: the array library.
        values: shape [rows, slots], any real dtype.
        codes: integer place codes, shape [rows, 1] or [1, 1].
        columns: what to carry.
        weights: shape [rows, slots] or one that broadcasts to it; given if and only if `columns.weights`. A value whose
            weight is 0 counts for nothing, whatever it is; one whose weight is not finite counts as NaN.
    """
    wide, is_short = ops.widen(values)
    high = wide[0]
    used, nan, positive, negative = ops.isfinite(high), ops.isnan(high), high == math.inf, high == -math.inf
    factor: Expansion = ()
    if weights is not None:
        factor, factor_is_short = ops.widen(weights)
        counts, sound = factor[0] != 0, ops.isfinite(factor[0])
        used, nan = used & counts & sound, (nan | ~sound) & counts
        positive, negative = positive & counts & sound, negative & counts & sound
        factor = tuple(ops.where(used, part, 0.0) for part in factor)
    value = tuple(ops.where(used, part, 0.0) for part in wide)
    zero = value[0] * 0.0

    def padded(*parts: Array) -> Expansion:
        return _padded(parts, ops.parts, zero)

    def product(a: Expansion, b: Expansion, is_exact: bool) -> Expansion:
        return _padded((a[0] * b[0],), ops.deep, zero) if is_exact else multiply(ops, a, b, ops.deep)

    squares: Expansion = ()
    if columns.squares:
        squares = product(value, value, is_short)
        if factor:
            squares = multiply(ops, squares[: 1 if is_short else None], factor, ops.deep)
    return Sums(
        padded(*value),
        squares,
        padded(ops.where(used, high, math.inf), *value[1:]) if columns.extremes else (),
        padded(ops.where(used, high, -math.inf), *value[1:]) if columns.extremes else (),
        product(value, factor, is_short and factor_is_short) if factor else (),
        padded(*factor) if factor else (),
        ops.where(nan, 1, 0),
        ops.where(positive, 1, 0),
        ops.where(negative, 1, 0),
        ops.where(nan | positive | negative, codes, ops.never),
    )


def _padded(parts: Sequence[Array], length: int, zero: Array) -> Expansion:
    return (*parts, *(zero,) * (length - len(parts)))


def merge(ops: Ops, a: Sums, b: Sums) -> Sums:
    """Return the sums of the values of both, slot by slot."""

    def least(x: Expansion, y: Expansion) -> Expansion:
        is_x = is_less(x, y)
        return tuple(ops.where(is_x, *parts) for parts in zip(x, y, strict=True))

    def greatest(x: Expansion, y: Expansion) -> Expansion:
        is_y = is_less(x, y)
        return tuple(ops.where(is_y, *parts) for parts in zip(y, x, strict=True))

    return Sums(
        add(a.total, b.total),
        add(a.squares, b.squares) if a.squares else (),
        least(a.minimum, b.minimum) if a.minimum else (),
        greatest(a.maximum, b.maximum) if a.maximum else (),
        add(a.weighted, b.weighted) if a.weighted else (),
        add(a.weights, b.weights) if a.weights else (),
        a.nan + b.nan,
        a.positive + b.positive,
        a.negative + b.negative,
        ops.minimum(a.first, b.first),
    )


def fold_tree(ops: Ops, sums: Sums) -> Sums:
    """Return the merge over the leading axis (at least one row), by halves: [rows, slots] to [slots]."""
    rows = sums.first.shape[0]
    if rows == 1:
        return each(lambda array: array[0], sums)
    half = rows // 2
    pairs = merge(ops, each(lambda array: array[:half], sums), each(lambda array: array[half : 2 * half], sums))
    total = fold_tree(ops, pairs)
    return merge(ops, total, each(lambda array: array[-1], sums)) if rows % 2 else total


def is_small(elements: int) -> bool:
    """Tell whether an array of so many elements is merged like everything else."""
    return 0 < elements <= _TREE_ROWS


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
            (_padded(ops.widen(end)[0], 2, zero) for end in ops.extremes(values)) if columns.extremes else ((), ())
        )
        squares: Expansion = ()
        if columns.squares:
            mass = ops.full((1,), float(values.shape[0]), total[0])
            squares, fitting = _moments(ops, ops.widen(values)[0], total[0] / mass, mass)
            summed = total if is_whole else fitting[:2]
        first = ops.constant(ops.never, total[0])
        return Sums(_padded(summed, 2, zero), squares, least, greatest, (), (), none, none, none, first)

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
    first, second = ((sum_, *(sum_ * 0.0,) * (ops.deep - 1)) for sum_ in (_total(product), _total(product * shifted)))
    squares = add(second, multiply(ops, (origin * 2.0,), first[:1], ops.deep))
    squares = add(squares, multiply(ops, (origin * origin,), (mass,), ops.deep))
    return squares, add(first, multiply(ops, (origin,), (mass,), ops.deep))


def _total(values: Array) -> Array:
    return values.sum().reshape(1)


def _lift_carefully(ops: Ops, values: Array, code: Array, columns: Columns, weights: Array | None) -> Sums:
    """Return the sums of a large array that may hold NaN and infinities, or has weights."""
    lifted = lift(ops, values, code[0], Columns(extremes=True, weights=weights is not None), weights)
    used = lifted.minimum[0] != math.inf
    total = normalise(map(_total, lifted.total))
    factor = lifted.weights[0] if weights is not None else None
    ones = ops.where(used, 1.0, lifted.total[0] * 0.0)  # of the sums' dtype; two numbers would be of the library's own
    count = _total(ones)
    mass = count if factor is None else _total(factor)
    near = total[0] / ops.where(count == 0, 1.0, count)
    squares, weighted = _moments(ops, lifted.total, near, mass, factor, used)
    if columns.squares and not columns.weights:
        total = weighted[:2]
    first = ops.min(lifted.first[:, None])
    least = _outermost(ops, lifted.minimum, 0, math.inf)
    greatest = _outermost(ops, lifted.maximum, 1, -math.inf)
    counts = (_total(lifted.nan), _total(lifted.positive), _total(lifted.negative))
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


class NumpyOps:
    """Give the algebra NumPy: for Python and NumPy values, and for whatever is done on the host."""

    parts, deep = 2, 4
    never = NEVER
    where = staticmethod(np.where)
    isnan = staticmethod(np.isnan)
    isfinite = staticmethod(np.isfinite)
    minimum = staticmethod(np.minimum)

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values as the exact sums of two that have 26 bits each."""
        high = ((np.asarray(values).view(np.int64) + np.int64(2**26)) & -np.int64(2**27)).view(np.float64)
        return high, values - high

    def widen(self, values: np.ndarray) -> tuple[Expansion, bool]:
        """Return values exactly as expansions, and whether products of two are exact in one part."""
        if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
            low = (values & np.array(0xFFFFFFFF, values.dtype)).astype(np.float64)
            return normalise(((values >> np.array(32, values.dtype)).astype(np.float64) * 2.0**32, low)), False
        return (values.astype(np.float64),), values.dtype.itemsize <= 2 or values.dtype == np.float32

    def full(self, shape: tuple[int, ...], value: float | int, like: Any) -> np.ndarray:
        """Return a constant array."""
        return np.full(shape, value, np.int64 if isinstance(value, int) else np.float64)

    def min(self, values: np.ndarray) -> np.ndarray:
        """Return the minimum over the leading axis."""
        return np.asarray(values.min(axis=0))

    def fold(self, sums: Sums) -> Sums:
        """Return the merge over the leading axis."""
        return fold_tree(self, sums)

    def sum(self, values: np.ndarray) -> Expansion:
        """Return the sum of all values; exact for ints and bools."""
        if values.dtype.kind not in "iub":
            return (values.sum(dtype=np.float64).reshape(1),)
        halves = (values >> 32, values & 0xFFFFFFFF) if values.dtype.itemsize == 8 else (values,)
        first, *rest = [self.widen(half.sum(dtype=np.int64).reshape(1))[0] for half in halves]
        return add((first[0] * 2.0**32, first[1] * 2.0**32), rest[0]) if rest else first

    def extremes(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the greatest of all values."""
        return values.min().reshape(1), values.max().reshape(1)

    def constant(self, value: float | int, like: Any) -> np.ndarray:
        """Return a constant array of shape [1]."""
        return self.full((1,), value, like)

    def choose(self, total: np.ndarray, plain: Callable[[], Sums], careful: Callable[[], Sums]) -> Sums:
        """Return what the total asks for."""
        return plain() if math.isfinite(total[0]) else careful()


NUMPY = NumpyOps()
