"""Hold what is reduced of each slot, and merge it: the monoid; see `noether_core.algebra` for its laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from noether_core.algebra.expansion import Array, Expansion, SplitOps, add, is_less

_Chosen = TypeVar("_Chosen")


class Ops(SplitOps, Protocol):
    """List what the algebra needs of an array library beside the arrays' own operators.

    Most of it all libraries spell alike, and is taken from `xp`, the library's namespace, by the array API's names:
    https://data-apis.org/array-api. The rest is what they don't.
    """

    xp: Any  # isfinite, isnan, minimum, concat and stack are used
    parts: int  # the length of the expansion that holds a sum of values: 2 of binary64, or 4 of binary32
    # The length of one that holds a sum of products: 4 of binary64, or 6 of binary32. With 2 of binary64, 2 and 110 of 300
    # variances of float64 values with a mean of 1e7 and 1e8 times their spread came out wrong, with 4 none.
    deep: int
    never: int  # the greatest integer of the positions' dtype, for "no non-finite value yet"

    def where(self, condition: Array, values: Array, others: Array, /) -> Array:
        """Return `values` where the condition holds, else `others`."""

    def are_finite(self, values: Array) -> bool:
        """Tell whether all values are known to be finite; False where a device would have to be waited for."""

    def widen(self, values: Array) -> tuple[Expansion, bool]:
        """Return values of any real dtype, exactly, as an expansion of as few parts as their dtype needs.

        And whether products of two of them are exact in one part.
        """

    def full(self, shape: tuple[int, ...], value: float | int, like: Array) -> Array:
        """Return a constant array, of the expansions' dtype for a float and integer for an int, on the device of `like`."""

    def fold(self, sums: Statistics) -> Statistics:
        """Return `merge` over the leading axis (at least one row): [rows, slots] to [slots]; `fold_tree` will do."""

    # What follows gives single numbers: of shape [1], or Python's, with which a library that runs operation by operation is
    # a hundred times faster; then `where`, `widen` and `split` take those too.

    def sum_binary64(self, values: Array) -> Expansion:
        """Return the library's own sum of all values, in binary64; exact for ints and bools, as two parts."""

    def sum_own_dtype(self, values: Array) -> Array:
        """Return the library's own sum of all values, in their own dtype, binary64 or int64 (without binary64 binary32)."""

    def extremes(self, values: Array) -> tuple[Array, Array]:
        """Return the least and the greatest of all values; NaN if there is one."""

    def constant(self, value: float | int, like: Array) -> Array:
        """Return a constant as such a number; see `full`."""

    def choose(self, totals: Sequence[Array], plain: Callable[[], _Chosen], careful: Callable[[], _Chosen]) -> _Chosen:
        """Return `plain()` if all totals, each a single number, are finite, else `careful()`; do not wait for a device."""


class Fields(NamedTuple):
    """Say what `Statistics` carries beside the sum, for the reductions that need it."""

    squares: bool = False
    extremes: bool = False
    weights: bool = False


class Statistics(NamedTuple):
    """Hold the reduced values of every slot; all arrays have the same shape.

    Attributes:
        total: the sum of the finite values, as an expansion.
        squares: the sum of their squares, weighted if there are weights; empty where no column is for it, as the next ones.
        minimum: the least of them; +inf where there is none.
        maximum: the greatest of them; -inf where there is none.
        weighted: the sum of the values times their weights.
        weights: the sum of the weights.
        nan, positive, negative: how many were NaN, +inf, -inf; integers.
        first_nonfinite: the position of the first of these (`position.py`); an integer.
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
    first_nonfinite: Array


_Vectors = TypeVar("_Vectors", bound=tuple[Any, ...])


def each(function: Callable[..., Any], *statistics: _Vectors) -> _Vectors:
    """Return statistics with a function applied to every array, or to the arrays that several statistics have in one field."""
    return type(statistics[0])(
        *(
            tuple(map(function, *values)) if isinstance(values[0], tuple) else function(*values)
            for values in zip(*statistics, strict=True)
        )
    )


def empty(ops: Ops, fields: Fields, slots: int | None = None, like: Array = None) -> Statistics:
    """Return the identity: merging it with any other statistics gives these.

    Args:
        ops: the array library.
        fields: what to carry.
        slots: how many slots; None: one, as Python numbers.
        like: an array on the device that `slots` are to be on.
    """
    zero = (0.0,) * ops.parts
    deep = (0.0,) * ops.deep
    one = Statistics(
        total=zero,
        squares=deep if fields.squares else (),
        minimum=(math.inf, *zero[1:]) if fields.extremes else (),
        maximum=(-math.inf, *zero[1:]) if fields.extremes else (),
        weighted=deep if fields.weights else (),
        weights=zero if fields.weights else (),
        nan=0,
        positive=0,
        negative=0,
        first_nonfinite=ops.never,
    )
    return one if slots is None else each(lambda value: ops.full((slots,), value, like), one)


def merge(ops: Ops, a: Statistics, b: Statistics) -> Statistics:
    """Return the sums of the values of both, slot by slot."""

    def least(x: Expansion, y: Expansion) -> Expansion:
        is_x = is_less(x, y)
        return tuple(ops.where(is_x, *parts) for parts in zip(x, y, strict=True))

    def greatest(x: Expansion, y: Expansion) -> Expansion:
        is_y = is_less(x, y)
        return tuple(ops.where(is_y, *parts) for parts in zip(y, x, strict=True))

    return Statistics(
        add(a.total, b.total),
        add(a.squares, b.squares) if a.squares else (),
        least(a.minimum, b.minimum) if a.minimum else (),
        greatest(a.maximum, b.maximum) if a.maximum else (),
        add(a.weighted, b.weighted) if a.weighted else (),
        add(a.weights, b.weights) if a.weights else (),
        a.nan + b.nan,
        a.positive + b.positive,
        a.negative + b.negative,
        ops.xp.minimum(a.first_nonfinite, b.first_nonfinite),
    )


def fold_tree(ops: Ops, sums: Statistics) -> Statistics:
    """Return the merge over the leading axis (at least one row), by halves: [rows, slots] to [slots]."""
    rows = sums.first_nonfinite.shape[0]
    if rows == 1:
        return each(lambda array: array[0], sums)
    half = rows // 2
    pairs = merge(ops, each(lambda array: array[:half], sums), each(lambda array: array[half : 2 * half], sums))
    total = fold_tree(ops, pairs)
    return merge(ops, total, each(lambda array: array[-1], sums)) if rows % 2 else total


class SlotOps(Ops, Protocol):
    """Add what `into_slots` needs of an array library."""

    def put(self, target: Array, slots: Any, values: Array) -> Array:
        """Return `target` with `values` at `slots`, leaving `target` as it is."""


def into_slots(
    ops: SlotOps, sums: Statistics | None, total: Statistics, slots: Array | None, num_slots: int, fields: Fields
) -> Statistics:
    """Return `sums` (None: nothing yet), grown to `num_slots`, with `total` merged into `slots` (None: all, in order)."""
    present = 0 if sums is None else sums.nan.shape[0]
    if slots is None and present in (0, num_slots):
        return total if sums is None else merge(ops, sums, total)
    blank = empty(ops, fields, num_slots, total.nan)
    if slots is not None:
        total = each(lambda array, values: ops.put(array, slots, values), blank, total)
    if sums is None:
        return total
    if present < num_slots:
        sums = each(lambda old, new: ops.xp.concat([old, new[present:]]), sums, blank)
    return merge(ops, sums, total)
