"""Add and multiply with more bits than the hardware's numbers have, by error-free transformations.

An expansion is the unevaluated sum of arrays, the largest first: n of binary64 hold 53 n bits, n of binary32 hold 24 n.
Sources: Knuth, The Art of Computer Programming vol. 2, 4.2.2 (the exact sum of two numbers); Dekker, Numerische Mathematik
18, 1971 (halves and their products, renormalisation); Shewchuk, Discrete & Computational Geometry 18, 1997 (longer expansions).

No step relies on a product being rounded before it is added, so a compiler's fused multiply-adds change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

Array = Any  # an array of NumPy, JAX or PyTorch
Expansion = tuple[Array, ...]


class SplitOps(Protocol):
    """List what products need of an array library."""

    def split(self, values: Array) -> tuple[Array, Array]:
        """Return values as exact sums of two that have half of the bits each, the first the nearest such number."""


def extended(parts: Sequence[Array], length: int, zero: Array) -> Expansion:
    """Return parts as an expansion of that length, the rest of it `zero`."""
    return (*parts, *(zero,) * (length - len(parts)))


def two_sum(a: Array, b: Array) -> Expansion:
    """Return the rounded sum and what the rounding took away."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def two_product(ops: SplitOps, a: Array, b: Array) -> Expansion:
    """Return the rounded product and what the rounding took away.

    Only products of halves are multiplied out, which are exact, and so is the sum of the middle two: what a compiler fuses
    into a multiply-add rounds nothing else. (Dekker's error term starts from `a * b` itself, whose rounding a fused
    `a_high * b_high - a * b` would skip.)
    """
    a_high, a_low = ops.split(a)
    b_high, b_low = ops.split(b)
    high, error = two_sum(a_high * b_high, a_high * b_low + a_low * b_high)
    high, more = two_sum(high, a_low * b_low)
    low = error + more
    product = high + low
    return product, low - (product - high)


def add(a: Expansion, b: Expansion) -> Expansion:
    """Return the sum of two expansions of one length, to within the last two bits or so of its last part."""
    if len(a) == 2:
        total, error = two_sum(a[0], b[0])
        low = error + (a[1] + b[1])
        high = total + low
        return high, low - (high - total)
    parts = list(a)
    for at, part in enumerate(b):
        _include(parts, part, at)
    return normalise(parts)


def _include(parts: list[Array], value: Array, start: int) -> None:
    """Add a value at one place of an expansion; what each part cannot hold goes on to the next, and from the last is lost."""
    for at in range(start, len(parts)):
        parts[at], value = two_sum(parts[at], value)


def normalise(parts: Any) -> Expansion:
    """Return the same number with each part at most half a unit in the last place of the one before it."""
    parts = list(parts)
    for _ in range(2):
        for at in reversed(range(len(parts) - 1)):
            parts[at], parts[at + 1] = two_sum(parts[at], parts[at + 1])
    return tuple(parts)


def multiply(ops: SplitOps, a: Expansion, b: Expansion, parts: int) -> Expansion:
    """Return the product of two expansions of any lengths as one of `parts` parts."""
    total = [a[0] * 0 + b[0] * 0] * parts
    for i, part in enumerate(a):
        for j, other in enumerate(b[: parts - i]):
            product, error = two_product(ops, part, other)
            _include(total, product, i + j)
            _include(total, error, i + j + 1)
    return normalise(total)


def is_less(a: Expansion, b: Expansion) -> Array:
    """Tell where a < b, for normalised expansions: the first parts decide, then the second ones."""
    less = a[-1] < b[-1]
    for x, y in zip(reversed(a[:-1]), reversed(b[:-1]), strict=True):
        less = (x < y) | ((x == y) & less)
    return less


def exact(expansion: Expansion) -> Fraction:
    """Return the number that an expansion of finite numbers on the host stands for."""
    return sum((Fraction(float(part)) for part in expansion), Fraction(0))
