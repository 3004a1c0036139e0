"""A variance of numbers that lie close together, far from 0: what is promised, and that it holds."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import noether_jax
import noether_torch
from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig, UpdateCounter
from parity_tests.reference import nearest, root

FRONT_ENDS = (noether_jax, noether_torch)


def reduced(front_end: Any, arrays: list[np.ndarray[Any, Any]]) -> list[Any]:
    """Return the mean, the variance and the standard deviation over a step for each array."""
    counter = UpdateCounter()
    config = TrackAdditionalOutputsCallbackConfig(
        every_n_updates=99, keys=["x"], reduce=["mean", "var", "std"], nonfinite="skip"
    )
    callback = front_end.TrackAdditionalOutputsCallback(config, log_writer=LogWriter(update_counter=counter))
    for array in arrays:
        given = {"x": front_end.Run.backend.from_numpy(array)}
        callback.track_after_accumulation_step(update_counter=counter, update_outputs=given)
        counter.next_update()
    values: list[Any] = callback.tracked_values["x"]
    return values


def exact(arrays: list[np.ndarray[Any, Any]]) -> tuple[Fraction, Fraction]:
    numbers = [Fraction(value) for array in arrays for value in array.tolist()]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    return mean, sum(((number - mean) ** 2 for number in numbers), Fraction(0)) / len(numbers)


def drawn(dtype: Any, offset: float, spread: float, size: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(size)
    return [(offset + spread * rng.normal(size=size)).astype(dtype) for _ in range(2)]


CASES = [
    (np.float32, 1e6, 1.0),
    (np.float32, 1e3, 1e-2),
    (np.float64, 1e6, 1e-2),
    (np.float64, 1e6, 1e-6),
    (np.int64, 1e15, 1e3),
]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize(("dtype", "offset", "spread"), CASES)
@pytest.mark.parametrize("size", [3, 1024])
def test_up_to_1024_elements_are_correctly_rounded(
    front_end: Any, dtype: Any, offset: float, spread: float, size: int
) -> None:
    arrays = drawn(dtype, offset, spread, size)
    mean, variance = exact(arrays)
    kind = np.float64 if dtype is np.float64 else np.float32
    wanted = [float(nearest(value, kind)) for value in (mean, variance, root(variance))]
    assert reduced(front_end, arrays) == wanted


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize(("dtype", "offset", "spread"), CASES)
@pytest.mark.parametrize("is_odd", [False, True], ids=["finite", "with a NaN left out"])
def test_a_larger_arrays_variance_is_as_close_as_promised(
    front_end: Any, dtype: Any, offset: float, spread: float, is_odd: bool
) -> None:
    size = 5_000
    arrays = drawn(dtype, offset, spread, size)
    mean, variance = exact(arrays)
    if is_odd:
        if dtype is np.int64:
            pytest.skip("ints have no NaN")
        arrays = [np.append(array, np.asarray(np.nan, dtype)) for array in arrays]
    found_mean, found, _ = reduced(front_end, arrays)
    kind = 2.0**-53 if dtype is np.float64 else 2.0**-24
    near = 1 + (2.0**-26 * abs(float(mean))) ** 2 / float(variance)
    assert abs(Fraction(found) - variance) / variance <= 4 * size * 2.0**-53 * near + kind
    assert abs(Fraction(found_mean) - mean) / abs(mean) <= 4 * size * 2.0**-53 + kind
