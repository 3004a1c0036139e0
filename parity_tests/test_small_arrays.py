"""Steps of many small arrays, of several sizes and dtypes: they are stacked together, and come apart as they went in."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity_tests.reference import Schedule, Tracker
from parity_tests.test_schedules import check
from parity_tests.ways import WAYS

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.bool_, np.float64)
STEPS = 40  # of the widest case more than are stacked at a time


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    if np.dtype(dtype).kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    values = np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3)).astype(dtype)
    return np.where(rng.random(shape) < 0.001, np.asarray(np.nan, dtype), values)


@pytest.mark.parametrize("weight", [None, (), (4, 3)], ids=["unweighted", "a scalar weight", "a mask"])
@pytest.mark.parametrize("reduce", ["mean", "var", "max", "last"])
def test_arrays_of_many_sizes_give_the_exact_numbers(reduce: str, weight: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(0)
    shapes = [(4, 3)] * 4 if weight else [(), (2,), (3, 5), (1,), (15,), (1, 0), (700,), (2,), (3,), (1025,)]
    shapes = [
        shape for shape in shapes if reduce != "var" or shape != (1025,)
    ]  # see `summarise` for what that is worth
    kinds = {f"{at}": (shape, DTYPES[at % len(DTYPES)]) for at, shape in enumerate([*shapes, *shapes[:5]])}

    def step() -> dict[str, Any]:
        outputs = {key: draw(rng, *kind) for key, kind in kinds.items()}
        return outputs if weight is None else outputs | {"weight": np.abs(draw(rng, weight, np.float32))}

    steps = tuple((step(),) for _ in range(STEPS))
    tracker = Tracker(
        *("update", 25, tuple(kinds), (), reduce, reduce != "last", True, "propagate"),
        weight if weight is None else "weight",
    )
    check(Schedule(steps, 1, 10, 4, (tracker,)), WAYS)
