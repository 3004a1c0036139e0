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
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from noether_core.expansion import Array, Expansion, SplitOps, add, extended, is_less, multiply

_Chosen = TypeVar("_Chosen")

NEVER = 2**63 - 1  # the place code of "no non-finite value yet"
_STEPS_PER_UPDATE = 2**20


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

    def fold(self, sums: Sums) -> Sums:
        """Return `merge` over the leading axis (at least one row): [rows, slots] to [slots]; `fold_tree` will do."""

    # What follows gives single numbers: of shape [1], or Python's, with which a library that runs operation by operation is
    # a hundred times faster; then `where`, `widen` and `split` take those too.

    def sum(self, values: Array) -> Expansion:
        """Return the library's own sum of all values, in binary64; exact for ints and bools, as two parts."""

    def total(self, values: Array) -> Array:
        """Return the library's own sum of all values, in their own dtype, binary64 or int64 (without binary64 binary32)."""

    def extremes(self, values: Array) -> tuple[Array, Array]:
        """Return the least and the greatest of all values; NaN if there is one."""

    def constant(self, value: float | int, like: Array) -> Array:
        """Return a constant as such a number; see `full`."""

    def choose(self, total: Array, plain: Callable[[], _Chosen], careful: Callable[[], _Chosen]) -> _Chosen:
        """Return `plain()` if the total, a single number, is finite, else `careful()`; do not wait for a device."""


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


_Record = TypeVar("_Record", bound=tuple[Any, ...])


def each(function: Callable[..., Any], *records: _Record) -> _Record:
    """Return sums with a function applied to every array, or to the arrays that several sums have in one place."""
    return type(records[0])(
        *(
            tuple(map(function, *fields)) if isinstance(fields[0], tuple) else function(*fields)
            for fields in zip(*records, strict=True)
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


def sort(ops: Ops, values: Array, weights: Array | None) -> tuple[Array, Array, Array, Array]:
    """Tell which values are used, and which count as NaN, +inf and -inf; what has weight 0 is none of these."""
    used, nan, positive, negative = ops.isfinite(values), ops.isnan(values), values == math.inf, values == -math.inf
    if weights is None:
        return used, nan, positive, negative
    counts, sound = weights != 0, ops.isfinite(weights)
    live = counts & sound
    return used & live, (nan | ~sound) & counts, positive & live, negative & live


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
    factor: Expansion = ()
    if weights is not None:
        factor, factor_is_short = ops.widen(weights)
    used, nan, positive, negative = sort(ops, high, factor[0] if factor else None)
    factor = tuple(ops.where(used, part, 0.0) for part in factor)
    value = tuple(ops.where(used, part, 0.0) for part in wide)
    zero = value[0] * 0.0

    def padded(*parts: Array) -> Expansion:
        return extended(parts, ops.parts, zero)

    def product(a: Expansion, b: Expansion, is_exact: bool) -> Expansion:
        return extended((a[0] * b[0],), ops.deep, zero) if is_exact else multiply(ops, a, b, ops.deep)

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
