"""REDUCE: the monoids, written once over a small `ops` argument (NumPy, jax.numpy or torch).

A monoid is an identity, a lift of one step's values, an associative merge and a finish. The same merge joins steps,
accumulation steps and resumed runs. Everything that any reduction needs of a key is in `Sums`, a handful of vectors
with one slot per key:

- `high + low`, the sum of the finite values as an unevaluated pair of binary64 numbers, kept by Knuth's error-free
  transformation TwoSum (The Art of Computer Programming vol. 2, 4.2.2) and Dekker's renormalisation (Numerische
  Mathematik 18, 1971). Each merge errs by at most 2^-104 of the values' magnitude, far below half a unit of float32, so
  the finished number, rounded once, is the same for every order and split;
- how many values were NaN, +inf and -inf. Keeping them out of the sum keeps the pair finite; the finish puts them back
  as IEEE 754 arithmetic would have had them, or leaves them out, as the config says;
- where the first of them was, as one number that `place_code` makes and `place_of` reads.

Laws, tested for every `ops`: merge(identity, a) = a; merge is commutative; finish(merge) does not depend on how the
values were grouped.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = Any  # an array of whatever library `ops` stands for
NEVER = 2**63 - 1  # the place code of "no non-finite value yet"
_STEPS_PER_UPDATE = 2**20
_TREE_ROWS = 1024  # beyond this many elements the library's own binary64 sum takes over


class Ops(Protocol):
    """List what the algebra needs of an array library beside the arrays' own operators."""

    def where(self, condition: Array, values: Array, others: Array, /) -> Array:
        """Return `values` where the condition holds, else `others`."""

    def isnan(self, values: Array, /) -> Array:
        """Tell which values are NaN."""

    def isfinite(self, values: Array, /) -> Array:
        """Tell which values are neither NaN nor infinite."""

    def minimum(self, values: Array, others: Array, /) -> Array:
        """Return the smaller of each two values."""

    def widen(self, values: Array) -> tuple[Array, Array]:
        """Return values of any real dtype, exactly, as the sum of two binary64 arrays of the same shape."""

    def full(self, shape: tuple[int, ...], value: float | int, like: Array) -> Array:
        """Return a constant array, binary64 for a float and int64 for an int, on the device of `like`."""

    def min(self, values: Array) -> Array:
        """Return the minimum over the leading axis."""

    def fold(self, sums: Sums) -> Sums:
        """Return `merge` over the leading axis (at least one row): [rows, slots] to [slots]; `fold_tree` will do."""


class Sums(NamedTuple):
    """Hold the reduced values of every slot; all fields have the same shape. Binary64, then int64."""

    high: Array
    low: Array
    nan: Array
    positive: Array
    negative: Array
    first: Array


def place_code(update: int, accumulation_step: int) -> int:
    """Return update (counted from 1) and accumulation step (from 0) as one number that orders as they do."""
    return update * _STEPS_PER_UPDATE + accumulation_step


def place_of(code: int) -> tuple[int, int]:
    """Return the update and the accumulation step of a place code.

    >>> place_of(place_code(update=7, accumulation_step=1))
    (7, 1)
    """
    return divmod(code, _STEPS_PER_UPDATE)


NOTHING = Sums(0.0, 0.0, 0, 0, 0, NEVER)  # one slot of the identity


def identity(ops: Ops, slots: int, like: Array) -> Sums:
    """Return the sums of nothing: merging them with any other gives that other."""
    return Sums(*(ops.full((slots,), value, like) for value in NOTHING))


def lift(ops: Ops, values: Array, codes: Array) -> Sums:
    """Return each value as its own sums.

    Args:
        ops: the array library.
        values: shape [rows, slots], any real dtype.
        codes: int64 place codes, shape [rows, 1] or [1, 1].
    """
    high, low = ops.widen(values)
    finite = ops.isfinite(high)
    return Sums(
        ops.where(finite, high, 0.0),
        ops.where(finite, low, 0.0),
        ops.where(ops.isnan(high), 1, 0),
        ops.where(high == math.inf, 1, 0),
        ops.where(high == -math.inf, 1, 0),
        ops.where(finite, NEVER, codes),
    )


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def merge(ops: Ops, a: Sums, b: Sums) -> Sums:
    """Return the sums of the values of both, slot by slot."""
    total, error = _two_sum(a.high, b.high)
    low = error + (a.low + b.low)
    high = total + low
    return Sums(
        high,
        low - (high - total),
        a.nan + b.nan,
        a.positive + b.positive,
        a.negative + b.negative,
        ops.minimum(a.first, b.first),
    )


def fold_tree(ops: Ops, sums: Sums) -> Sums:
    """Return the merge over the leading axis (at least one row), by halves: [rows, slots] to [slots]."""
    rows = sums.high.shape[0]
    if rows == 1:
        return Sums(*(field[0] for field in sums))
    half = rows // 2
    left, right = (Sums(*(field[at] for field in sums)) for at in (slice(half), slice(half, 2 * half)))
    total = fold_tree(ops, merge(ops, left, right))
    return merge(ops, total, Sums(*(field[-1] for field in sums))) if rows % 2 else total


def lift_array(ops: Ops, values: Array, code: Array) -> Sums:
    """Return the sums of one array, as one slot.

    Up to 1,024 elements are merged like everything else. A larger array is summed by the library in binary64: exact
    while the elements' exponents differ by no more than 29 - log2(elements) bits, else to a relative error of
    elements * 2^-53 * sum|x| / |sum x| at most, and far less in practice (the libraries sum pairwise).

    Args:
        ops: the array library.
        values: shape [elements], any real dtype.
        code: an int64 place code, shape [1, 1].
    """
    if values.shape[0] == 0:
        return identity(ops, 1, code)
    each = lift(ops, values[:, None], code)
    if values.shape[0] <= _TREE_ROWS:
        return ops.fold(each)
    high, low, nan, positive, negative = (field.sum(0) for field in each[:5])
    return Sums(high, low, nan, positive, negative, ops.min(each.first))


class NumpyOps:
    """Give the algebra NumPy: for Python and NumPy values, and for whatever is done on the host."""

    where = staticmethod(np.where)
    isnan = staticmethod(np.isnan)
    isfinite = staticmethod(np.isfinite)
    minimum = staticmethod(np.minimum)

    def widen(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values exactly as the sum of two binary64 arrays."""
        if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
            low = (values & np.array(0xFFFFFFFF, values.dtype)).astype(np.float64)
            return (values >> np.array(32, values.dtype)).astype(np.float64) * 2.0**32, low
        high = values.astype(np.float64)
        return high, np.zeros_like(high)

    def full(self, shape: tuple[int, ...], value: float | int, like: Any) -> np.ndarray:
        """Return a constant array."""
        return np.full(shape, value, np.int64 if isinstance(value, int) else np.float64)

    def min(self, values: np.ndarray) -> np.ndarray:
        """Return the minimum over the leading axis."""
        return np.asarray(values.min(axis=0))

    def fold(self, sums: Sums) -> Sums:
        """Return the merge over the leading axis."""
        return fold_tree(self, sums)


NUMPY = NumpyOps()


def nearest(value: Fraction, dtype: type[np.floating[Any]]) -> float:
    """Return the number of `dtype` (float32 or float64) nearest to an exact value, ties to even.

    Rounding to binary64 and then to float32 could round twice. Rounding to odd in between cannot (Boldo and Melquiond,
    IEEE Transactions on Computers 57, 2008).
    """
    try:
        wide = float(value)  # correctly rounded
    except OverflowError:
        return math.copysign(math.inf, value)
    if dtype is np.float64 or Fraction(wide) == value:
        return _cast(wide, dtype)
    if not int(np.float64(wide).view(np.int64)) & 1:
        wide = math.nextafter(wide, math.inf if value > Fraction(wide) else -math.inf)
    return _cast(wide, dtype)


def _cast(wide: float, dtype: type[np.floating[Any]]) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(dtype(wide))


def mean(sums: Sums, elements: int, dtype: type[np.floating[Any]], skip_nonfinite: bool) -> float | None:
    """Finish one slot as the mean of its elements, rounded once to `dtype`; None if there is nothing to average.

    Args:
        sums: the sums of one slot, scalar fields on the host.
        elements: how many values were lifted into it.
        dtype: `np.float32` or `np.float64`.
        skip_nonfinite: leave NaN and infinities out, instead of letting them through.
    """
    nan, positive, negative = int(sums.nan), int(sums.positive), int(sums.negative)
    if not skip_nonfinite and nan + positive + negative:
        if nan or (positive and negative):
            return math.nan
        return math.inf if positive else -math.inf
    count = elements - nan - positive - negative
    if count == 0:
        return None
    high, low = float(sums.high), float(sums.low)
    if not math.isfinite(high):  # the total overflowed binary64
        return high
    return nearest((Fraction(high) + Fraction(low)) / count, dtype)
