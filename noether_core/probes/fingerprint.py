"""Take the fingerprint of an array: of the multiset of its values, whatever their order, layout, sharding and dtype.

Each value becomes 32 bits, which a bijection mixes; both what its first half gives and what it gives are added up modulo 2^32,
which no order and no partition of the values changes. So one bit of one value always shows. The bijection is `lowbias32` of
Chris Wellons, with the constants of https://github.com/skeeto/hash-prospector. The front-ends do the same on their devices.

What counts is the value. A bfloat16, float16 or float8 is the float32 that equals it, and so is a float64 that one equals; an
int is the same in every width. -0.0 equals 0.0, so both are one value; every NaN is one, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from noether_core.errors import NoetherError
from noether_core.silence import SILENT

FIRST, SECOND = 0x21F0AAAD, 0xD35A2D97  # factors of the bijection; its shifts are 16, 15 and 15
LEAST = 2.0**-126  # of the normal float32
NAN_BITS, INFINITY_BITS, SIGN_BIT = 0x7FC00000, 0x7F800000, 0x80000000
_EACH = 0x85EBCA6B, 0xC2B2AE35  # added for each value, so that zeros count
_PIECE = 2**16  # values: what is made of so many fits into a cache
_NARROW_INTS = ("int2", "int4", "uint2", "uint4")  # of `ml_dtypes`
Array = np.ndarray[Any, Any]


def fingerprint(array: Any) -> str:
    """Return the fingerprint of an array: 16 hexadecimal digits.

    Args:
        array: of bools, ints, floats (those of `ml_dtypes` too) or complex numbers, of which each is two values.

    Raises:
        NoetherError: for another dtype.

    >>> fingerprint(np.array([[1.0, 2.0], [3.0, 4.0]], "float32")) == fingerprint([4.0, 3.0, 2.0, 1.0])
    True
    >>> fingerprint([0.0]) == fingerprint([-0.0]), fingerprint([0.0]) == fingerprint([0.0, 0.0])
    (True, False)
    """
    values = flat_values(np.asarray(array))
    first = second = 0
    for begin in range(0, len(values), _PIECE):
        sums = mixed_sums(value_bits(values[begin : begin + _PIECE]))
        first, second = first + sums[0], second + sums[1]
    return f"{whole_fingerprint(first, second, len(values)):016x}"


def whole_fingerprint(first: int, second: int, count: int) -> int:
    """Return a fingerprint as an int of 64 bits, of the two sums over `count` values."""
    high, low = ((each + count * factor) & 0xFFFFFFFF for each, factor in zip((first, second), _EACH, strict=True))
    return high << 32 | low


def whole_fingerprints(sums: Array, counts: Array) -> Array:
    """Return fingerprints, uint64 [keys], of sums, uint32 [keys, 2], over so many values, [keys]."""
    wide = (sums.astype(np.uint64) + counts.astype(np.uint64)[:, None] * np.array(_EACH, np.uint64)) & np.uint64(
        0xFFFFFFFF
    )
    return wide[:, 0] << np.uint64(32) | wide[:, 1]


def holds_numbers(dtype: Any) -> bool:
    """Tell whether arrays of a dtype hold bools, ints, floats or complex numbers: no text, no objects, no random keys.

    >>> holds_numbers(np.dtype("float32")), holds_numbers(np.dtype("<U3"))
    (True, False)
    """
    return getattr(dtype, "kind", "none") in "biufc" or getattr(dtype, "type", object).__module__ == "ml_dtypes"


def plain_copy(value: Any) -> Array:
    """Return a copy of a number or an array of NumPy, of a dtype that frameworks have: of at most binary64, in native order.

    >>> plain_copy(np.ones(2, ">f4")).dtype, plain_copy(np.longdouble(1)).dtype
    (dtype('float32'), dtype('float64'))
    """
    array = np.array(value)
    most = {"f": np.float64, "c": np.complex128}.get(array.dtype.kind)
    if most is not None and array.dtype.itemsize > np.dtype(most).itemsize:
        return array.astype(most)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def as_reals(array: Array) -> Array:
    """Return an array of real numbers as it is, and of a complex one both parts, along a last axis of their own.

    >>> as_reals(np.array([1 + 2j], np.complex64))
    array([[1., 2.]], dtype=float32)
    """
    if array.dtype.kind != "c":
        return array
    return np.ascontiguousarray(array).view(array.real.dtype).reshape(*array.shape, 2)


def flat_values(array: Array) -> Array:
    """Return an array's values as a vector of real numbers, in any order; a view, unless there are gaps in its memory."""
    array = as_reals(array)
    if array.dtype.name in _NARROW_INTS:
        array = array.astype(np.int8)
    if not holds_numbers(array.dtype):
        raise NoetherError(
            f"a probe got an array of dtype {array.dtype}; expected bools, ints, floats or complex numbers"
        )
    if not array.flags.c_contiguous:
        array = array.transpose(sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis])))
    return array.reshape(-1)


def has_float32s(dtype: Any) -> bool:
    """Tell whether float32s equal all values of a dtype that are floats."""
    return dtype.kind not in "biu" and dtype.itemsize <= 4


def float32s(values: Array, out: Array) -> Array:
    """Return floats of at most 32 bits as float32, in `out`; every zero as 0.0."""
    if values.dtype == np.float32:
        return np.add(values, np.float32(0), out=out)  # -0.0 + 0.0 = 0.0
    np.copyto(out, values, casting="unsafe")
    out += np.float32(0)
    return out


def float32_bits(own: Array, has_nan: bool) -> Array:
    """Return the bits of what `float32s` returned, as uint32 in its memory."""
    bits: Array = own.view(np.uint32)
    if has_nan:
        bits[np.isnan(own)] = NAN_BITS
    return bits


@SILENT
def value_bits(values: Array) -> Array:
    """Return a new vector of uint32 that stands for values: equal ones have equal bits."""
    if values.dtype.kind in "biu":
        return _whole_bits(values)
    if has_float32s(values.dtype):
        return _float_bits(values)
    wide = values.astype(np.float64)
    short = wide.astype(np.float32)
    words = wide.view(np.uint64)
    # a float32 below its normal range is not asked for, for some devices flush it to zero
    is_short = ((short == wide) & ((np.abs(wide) >= LEAST) | (wide == 0))) | np.isnan(wide)
    return np.where(is_short, _float_bits(short), _folded(words))


def _whole_bits(values: Array) -> Array:
    if values.dtype.kind == "b" or (values.dtype.kind == "u" and values.dtype.itemsize <= 4):
        return values.astype(np.uint32)
    return _folded(values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).view(np.uint64))


def _folded(words: Array) -> Array:
    """Return 32 bits for each 64: the lower half, and the upper one mixed, of which nothing comes if it is zero."""
    upper = (words >> np.uint64(32)).astype(np.uint32)
    for _ in _mixed(upper):
        pass
    upper ^= words.astype(np.uint32)
    return upper


def _float_bits(values: Array) -> Array:
    own = float32s(values, np.empty(values.shape, np.float32))
    return float32_bits(own, bool(np.isnan(own.min(initial=0.0))))


def mixed_sums(bits: Array, memory: Array | None = None) -> tuple[int, int]:
    """Return the two sums of mixed bits, each modulo 2^32; the bits, and as many more in `memory`, are overwritten."""
    first, second = (int(each.sum(dtype=np.uint32)) for each in _mixed(bits, memory))
    return first, second


def _mixed(bits: Array, memory: Array | None = None) -> Iterator[Array]:
    """Mix bits in their place; yield them half-way, and at the end."""
    shifted = np.right_shift(bits, np.uint32(16), out=memory)
    bits ^= shifted
    bits *= np.uint32(FIRST)
    np.right_shift(bits, np.uint32(15), out=shifted)
    bits ^= shifted
    yield bits
    bits *= np.uint32(SECOND)
    np.right_shift(bits, np.uint32(15), out=shifted)
    bits ^= shifted
    yield bits
