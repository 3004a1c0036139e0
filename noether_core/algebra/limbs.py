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

    xp: Any  # clip, concat, stack and where are used

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
    lowest = position + np.frexp((number & -number).astype(np.float64))[1] - 1
    above = position + np.frexp(number.astype(np.float64))[1]
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
    values = ops.xp.stack(parts)
    number, position, is_odd = _taken_apart(ops, values)
    sign = (ops.bits(values) >> 63) | 1
    first = (ops.places(limbs, values) + low) * _BITS
    shift = position - first.reshape(limbs, *(1 for _ in values.shape))
    digits = ((number << ops.xp.clip(shift, 0, 63)) >> ops.xp.clip(-shift, 0, 63)) & _MASK
    return ops.xp.concat([(digits * sign).sum(1), is_odd.sum(0)[None]])


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
    """Return the digits of numbers and those of their negatives, in two's complement, above padding: [2, digits, keys]."""
    found = np.zeros((2, _PAD + len(digits), digits.shape[1]), np.int64)
    found[0, _PAD:] = digits
    place = np.arange(len(digits))[:, None]
    lowest = (digits != 0).argmax(0)
    found[1, _PAD:] = (_MASK + (place == lowest) - digits) * (place >= lowest)
    return found


def _rounded_off(digits: Vector, exponent: int, parts: int) -> list[Vector]:
    """Return so many parts of the numbers whose lowest bit counts 2^exponent.

    Of what is left only bits below some place count; where a part was rounded up, those of the negative.
    """
    _, rows, keys = digits.shape
    flat, key = digits.reshape(-1), np.arange(keys)
    row = np.arange(rows)[:, None]
    highest = np.maximum.accumulate(np.where(digits != 0, row, _PAD - 1), 1).reshape(-1)  # at or below each
    lowest = (digits[0] != 0).argmax(0)  # the same for the negative
    lowest_digit = flat[lowest * keys + key]
    lowest_bit = (lowest - _PAD) * _BITS + np.frexp((lowest_digit & -lowest_digit).astype(np.float64))[1] - 1
    is_negative = (digits[0, -1] != 0).astype(np.int64)
    sign = 1 - 2 * is_negative
    left = np.full(keys, (rows - _PAD - 1) * _BITS)  # how many bits are; the last digit is the sign
    found = []
    for _ in range(parts):
        start = is_negative * (rows * keys) + key
        top = left // _BITS + _PAD
        cut = flat[start + top * keys] & ((1 << left % _BITS) - 1)
        top = np.where(cut != 0, top, highest[start + (top - 1) * keys])
        at = start + top * keys
        high = np.where(cut != 0, cut, flat[at])
        length = np.frexp(high.astype(np.float64))[1].astype(np.int64)
        leading = (((high << _BITS) | flat[at - keys]) << (_BITS - length)) | (flat[at - 2 * keys] >> length)
        number = (leading >> 11) & (2**_DIGITS - 1)
        unit = (top - _PAD) * _BITS + length - _DIGITS
        is_up = (leading >> 10) & 1 & (number | (lowest_bit < unit - 1))
        found.append(np.ldexp(((number + is_up) * sign).astype(np.float64), unit + exponent))
        sign, is_negative, left = sign * (1 - 2 * is_up), is_negative ^ is_up, np.maximum(unit, 0)
    return found


def ordered(ops: LimbOps, values: Array) -> Array:
    """Return int64s that compare as binary64 numbers do, infinities too; -0.0 is 0.0, and there must be no NaN."""
    bits = ops.bits(values)
    magnitude = bits & _MAGNITUDE
    return ops.xp.where(bits < 0, -magnitude, magnitude)


def unordered(ops: LimbOps, places: Array) -> Array:
    """Return the binary64 numbers of what `ordered` gave."""
    return ops.from_bits(ops.xp.where(places < 0, -places | ~_MAGNITUDE, places))
