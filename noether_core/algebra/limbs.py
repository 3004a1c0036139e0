"""Write expansions as integers that add without rounding: of any processes, in any order and grouping, the same total.

A finite binary64 number is a whole multiple of 2^-1074. The multiple is written in limbs of 32 bits, each in an int64 and with
the number's sign: limb i counts 2^(32 i - 1074). Plain integer addition, such as an `all_reduce` or a `psum`, adds them, and
carries wait until `decode`: an expansion of n parts adds less than n 2^32 to a limb, so 2^31 / n processes find room.
(Kulisch's long accumulator; for sums between processes: Collange et al., Parallel Computing 49, 2015; Demmel and Nguyen, IEEE
Transactions on Computers 64, 2015.)

All numbers together take 66 limbs; those of one interval few of them: its `window`. The order-preserving integers of extremes
are here too, for `max`.

>>> ours, theirs = (np.array([1e16, 0.1]),), (np.array([1.0, 0.2]),)
>>> low, high = window((*ours, *theirs))
>>> total = encode(NUMPY, ours, low, high - low) + encode(NUMPY, theirs, low, high - low)
>>> [part.tolist() for part in decode(total, low, parts=2)]
[[1e+16, 0.30000000000000004], [1.0, -2.7755575615628914e-17]]
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from noether_core.algebra.expansion import Array, Expansion
from noether_core.algebra.numpy_ops import NUMPY

Vector = np.ndarray[Any, Any]

LIMBS = 66  # that hold every finite number
EMPTY = (LIMBS, 0)  # the window of no number: neutral where the least low and the greatest high are taken

_BITS = 32
_MASK = 2**_BITS - 1
_DIGITS = 53
_LEAST = -1074  # the exponent of the least positive number
_MAGNITUDE = 2**63 - 1


class LimbOps(Protocol):
    """List what limbs need of an array library: with int64 and binary64, so of JAX under `jax.enable_x64(True)`."""

    xp: Any  # clip, concat and where are used

    def bits(self, values: Array) -> Array:
        """Return the bits of binary64 numbers as int64."""

    def from_bits(self, bits: Array) -> Array:
        """Return the binary64 numbers of such bits."""

    def places(self, count: int, like: Array) -> Array:
        """Return the int64s from 0 up to a count, on the device of `like`."""


def _taken_apart(ops: LimbOps, values: Array) -> tuple[Array, Array, Array]:
    """Return whole numbers below 2^53 and p with |value| = number * 2^(p - 1074), 0 if not finite; and 1 where it is not."""
    bits = ops.bits(values)
    exponent = (bits >> 52) & 0x7FF
    is_normal = ops.xp.clip(exponent, 0, 1)
    is_odd = (exponent + 1) >> 11
    return ((bits & (2**52 - 1)) | (is_normal << 52)) * (1 - is_odd), exponent - is_normal, is_odd


def window(parts: Expansion) -> tuple[int, int]:
    """Return the limbs that the finite numbers in any of these NumPy arrays need: the first, and the one after the last."""
    number, position, _ = _taken_apart(NUMPY, np.concatenate([np.ravel(part) for part in parts]))
    number, position = number[number != 0], position[number != 0]
    if not number.size:
        return EMPTY
    lowest, above = position + _length(number & -number) - 1, position + _length(number)
    return int(lowest.min()) // _BITS, (int(above.max()) - 1) // _BITS + 1


def encode(ops: LimbOps, parts: Expansion, low: int, limbs: int) -> Array:
    """Return expansions as int64 limbs, which add.

    Args:
        ops: the array library.
        parts: binary64 arrays of one shape, at most 8; they need not be normalised.
        low: the first limb.
        limbs: how many there are. What does not lie in these limbs is lost: see `window`.

    Returns:
        shape [limbs + 1, *shape of a part]; the last row counts the parts that are not finite.
    """
    first = (ops.places(limbs, parts[0]) + low) * _BITS
    first = first.reshape(limbs, *(1 for _ in parts[0].shape))
    total: Array = 0
    odd: Array = 0
    for part in parts:  # one at a time: what is made for all together would not stay in the cache
        number, position, is_odd = _taken_apart(ops, part)
        shift = position - first
        digits = ((number << ops.xp.clip(shift, 0, 63)) >> ops.xp.clip(-shift, 0, 63)) & _MASK
        total = total + digits * ((ops.bits(part) >> 63) | 1)
        odd = odd + is_odd
    return ops.xp.concat([total, odd[None]])


def decode(limbs: Vector, low: int, parts: int) -> Expansion:
    """Return the expansions that limbs, added up, stand for.

    Each part is the binary64 number nearest to what the parts before it leave, ties to even: what is left in the end is at
    most half a unit in the last place of the last part, and nothing where the total has so few bits. The parts depend on the
    total alone, not on how it is spread over the limbs. A zero is 0.0.

    A total beyond binary64's range, and one that had a part that was not finite, is NaN in every part: what `expansion.add`
    makes of it in the ordinary way, and what a sum or mean of it is then. Where a running sum leaves the range on its way
    and a total does not, this is the total. (Left apart: within 2^970 of the end of the range `add` may give an infinity,
    and a lone expansion that has one already is passed on by what adds nothing to it; here both are NaN.)

    Args:
        limbs: int64, shape [limbs + 1, keys], see `encode`.
        low: the first limb.
        parts: the length of the expansions.
    """
    digits = _both_signs(_carried(limbs[:-1]))
    with np.errstate(over="ignore"):
        found = _rounded_off(digits, _BITS * low + _LEAST, parts)
    is_beyond = (limbs[-1] != 0) | np.isinf(found[0])
    return tuple(np.where(is_beyond, np.nan, part) for part in found) if is_beyond.any() else tuple(found)


def _carried(limbs: Vector) -> Vector:
    """Return digits of 32 bits, two more than there were limbs, in two's complement."""
    digits = np.empty((len(limbs) + 2, limbs.shape[1]), np.int64)
    carry = np.zeros(limbs.shape[1], np.int64)
    for digit, limb in zip(digits, limbs, strict=False):
        carry = carry + limb
        np.bitwise_and(carry, _MASK, out=digit)
        carry >>= _BITS
    digits[-2], digits[-1] = carry & _MASK, (carry >> _BITS) & _MASK
    return digits


_PAD = 3  # digits of 0 below the first


def _both_signs(digits: Vector) -> Vector:
    """Return the digits of numbers and those of their negatives, in two's complement, above padding: [digits, 2, keys]."""
    found = np.zeros((_PAD + len(digits), 2, digits.shape[1]), np.int64)
    found[_PAD:, 0] = digits
    place = np.arange(len(digits))[:, None]
    lowest = (digits != 0).argmax(0)
    found[_PAD:, 1] = (_MASK + (place == lowest) - digits) * (place >= lowest)
    return found


def _rounded_off(digits: Vector, exponent: int, parts: int) -> list[Vector]:
    """Return so many parts of the numbers whose lowest bit counts 2^exponent.

    Of what is left only bits below some place count; where a part was rounded up, those of the negative.
    """
    rows, _, keys = digits.shape
    flat, key, step = digits.reshape(-1), np.arange(keys), 2 * keys
    highest = _last_used(digits).reshape(-1)
    lowest = (digits[:, 0] != 0).argmax(0)  # the same for the negative
    lowest_bit = (lowest - _PAD) * _BITS + _length(flat[lowest * step + key] & -flat[lowest * step + key]) - 1
    is_negative = (digits[-1, 0] != 0).astype(np.int64)
    sign = 1 - 2 * is_negative
    left = np.full(keys, (rows - _PAD - 1) * _BITS)  # how many bits are; the last digit is the sign
    found = []
    for _ in range(parts):
        start = is_negative * keys + key
        at = ((left >> 5) + _PAD) * step + start
        high = flat[at] & ((1 << (left & 31)) - 1)
        top = np.where(high != 0, (left >> 5) + _PAD, highest[at - step])
        at = top * step + start
        high = np.where(high != 0, high, flat[at])
        length = _length(high)
        leading = (((high << _BITS) | flat[at - step]) << (_BITS - length)) | (flat[at - 2 * step] >> length)
        number = (leading >> 11) & (2**_DIGITS - 1)
        unit = (top - _PAD) * _BITS + length - _DIGITS
        is_up = (leading >> 10) & 1 & (number | (lowest_bit < unit - 1))
        found.append(np.ldexp(((number + is_up) * sign).astype(np.float64), (unit + exponent).astype(np.int32)))
        sign, is_negative, left = sign * (1 - 2 * is_up), is_negative ^ is_up, np.maximum(unit, 0)
    return found


def _last_used(digits: Vector) -> Vector:
    """Return for each digit the row of the last one up to it that is not 0."""
    rows: Vector = np.arange(len(digits))[:, None, None] * (digits != 0)
    rows[_PAD - 1] = _PAD - 1  # of padding
    for before, row in zip(rows[_PAD - 1 :], rows[_PAD:], strict=False):  # five times as fast as maximum.accumulate
        np.maximum(before, row, out=row)
    return rows


def _length(values: Vector) -> Vector:
    """Return how many bits whole numbers below 2^53 have."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def ordered(ops: LimbOps, values: Array) -> Array:
    """Return int64s that compare as binary64 numbers do, infinities too; -0.0 is 0.0, and there must be no NaN."""
    bits = ops.bits(values)
    magnitude = bits & _MAGNITUDE
    return ops.xp.where(bits < 0, -magnitude, magnitude)


def unordered(ops: LimbOps, places: Array) -> Array:
    """Return the binary64 numbers of what `ordered` gave."""
    return ops.from_bits(ops.xp.where(places < 0, -places | ~_MAGNITUDE, places))
