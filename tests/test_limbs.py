"""Check the integers that expansions are written as against exact fractions, in every library."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from noether_core.algebra.limbs import EMPTY, LIMBS, decode, encode, window
from noether_core.algebra.numpy_ops import NUMPY

Host = np.ndarray[Any, Any]

KEYS = 50


def sums(seed: int) -> Iterator[Host]:
    """Yield numbers to be added up for each key: [processes, parts, keys]."""
    rng = np.random.default_rng(seed)
    for trial in range(20):
        shape = (rng.integers(1, 65), rng.integers(1, 9), KEYS)
        spread, middle = rng.choice([5, 60, 400, 1000]), rng.integers(-1074, 964)
        exponents = np.clip(middle + rng.integers(-spread, spread + 1, shape), -1080, 964)
        digits = rng.standard_normal(shape) if trial % 2 else rng.choice([-1.0, 1.0], shape)
        values = np.ldexp(digits, exponents)
        if trial % 3 == 0:  # what is left is far smaller than what was added
            values[shape[0] // 2 + 1 :] = -values[: shape[0] - shape[0] // 2 - 1]
        yield rng.permutation(values)


def nearest_parts(total: Fraction, parts: int) -> list[float]:
    found = []
    for _ in range(parts):
        found.append(float(total))  # correctly rounded
        total -= Fraction(found[-1])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_total_is_the_exact_one_in_parts_that_are_the_nearest(seed: int) -> None:
    for values in sums(seed):
        low, high = window(tuple(values.reshape(-1, KEYS)))
        total = sum(encode(NUMPY, tuple(parts), low, high - low) for parts in values)
        exact = [sum(map(Fraction, values[..., key].ravel().tolist()), Fraction(0)) for key in range(KEYS)]
        for length in (1, 2, 4):
            found = np.stack(decode(total, low, length), axis=1)
            wanted = np.array([nearest_parts(value, length) for value in exact]) + 0.0
            np.testing.assert_array_equal(found.view(np.int64), wanted.view(np.int64))


def test_no_number_needs_no_limb() -> None:
    nothing = (np.array([0.0, -0.0]), np.array([np.nan, -np.inf]))
    assert window(nothing) == EMPTY
    limbs = encode(NUMPY, nothing, LIMBS, 0)
    assert limbs.tolist() == [[1, 1]]
    np.testing.assert_array_equal(decode(limbs, LIMBS, 2), np.full((2, 2), np.nan))
