"""The same numbers, however they are split: every reduction and dtype, through every way of running, bit for bit.

A draw is 32 numbers of each dtype. They come as 4 arrays of 8 or as 32 scalars, through hooks or compiled functions, whole or
over 8 devices. A case is one finished value: of one draw, key and reduction, by one way. It must be the exact reference's.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from noether_core import TrackAdditionalOutputsCallbackConfig
from parity_tests import reference
from parity_tests.drawing import draw_value
from parity_tests.split_ways import STEPS, WAYS, WIDTH, Config, Finished, Values, Way

LEAST_CASES = 20_000
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.int8, np.uint8, np.bool_)
# every fifth draw is of these, in a session with x64
WIDE_DTYPES = (np.float64, np.int64, np.uint64, np.int16, np.uint16, np.uint32)


def is_wide(seed: int) -> bool:
    return seed % 5 == 4


def config_of(seed: int, reductions: tuple[str, ...]) -> Config:
    return TrackAdditionalOutputsCallbackConfig(
        every_n_updates=10**6,
        keys=[np.dtype(dtype).name for dtype in (WIDE_DTYPES if is_wide(seed) else DTYPES)],
        reduce=list(reductions),
        weight="weight" if seed % 2 else None,
        nonfinite="skip" if seed % 3 == 0 else "propagate",
        log_output=False,
        save_output=True,
    )


def draw(seed: int) -> Values:
    rng = np.random.default_rng(seed)
    scale = ("unit", "offset", "wild", "whole", "nonfinite")[seed // 5 % 5]
    dtypes = WIDE_DTYPES if is_wide(seed) else DTYPES
    values = {np.dtype(dtype).name: draw_value(rng, dtype, (STEPS, WIDTH), scale) for dtype in dtypes}
    for key in {"int64", "uint64"} & values.keys():
        values[key] = values[key] >> values[key].dtype.type(3)  # so that binary32 can hold the sum of their squares
    weight = np.where(rng.random((STEPS, WIDTH)) < 0.2, 0.0, rng.random((STEPS, WIDTH)))
    return values | {"weight": weight.astype(np.float32)}


def exact(values: Values, steps: list[Values], config: Config, reductions: tuple[str, ...]) -> Finished:
    found: Finished = {}
    for key in config.keys or ():
        weights = values["weight"].reshape(-1) if config.weight else [None] * (STEPS * WIDTH)
        elements = [(1, value, weight) for value, weight in zip(values[key].reshape(-1), weights, strict=True)]
        whole = [(1, step[key], None) for step in steps]
        results = [
            reference.reduced(
                reference.Tracker("update", 1, (key,), (), reduction, True, False, config.nonfinite, config.weight),
                whole if reduction in ("last", "stack") else elements,
                1,
            )
            for reduction in reductions
        ]
        found[key] = [
            reference.as_array(result) if isinstance(result, int) else result
            for result in results
            if result is not None
        ]
    return found


def shown(value: Any) -> tuple[Any, ...]:
    """Return what tells a finished value from any other: all its bits."""
    if isinstance(value, np.ndarray) and value.ndim:
        return value.dtype.name, value.shape, value.tobytes()
    return (repr(value if isinstance(value, bool | int | float) else value.item()),)


def seeds_of(name: str, full: bool) -> list[int]:
    """Return a way's draws. What it compiles depends on the dtypes and on whether there is a weight, and takes the longest.

    Without --full each way has half of these four: weights with one set of dtypes, none with the other, the next way in turn.
    """
    draws = range(int(os.environ.get("PARITY_SPLITS", "300" if full else "30")))
    parity = [*WAYS].index(name) % 2
    return [seed for seed in draws if full or seed % 2 == (parity + is_wide(seed)) % 2]


def compare(name: str, way: Way, seeds: list[int]) -> int:
    """Return how many finished values were compared."""
    cases = 0
    for seed in seeds:
        values, config = draw(seed), config_of(seed, way.reductions)
        steps = way.cut(values)
        with jax.enable_x64(is_wide(seed)):
            found = way.run(steps, config)
        for key, wanted in exact(values, steps, config, way.reductions).items():
            assert [*map(shown, found[key])] == [*map(shown, wanted)], f"{name}, draw {seed}, {key}"
            cases += len(wanted)
    print(f"{name}: {cases} finished values compared")
    return cases


@pytest.mark.parametrize("name", WAYS)
def test_every_split_gives_the_exact_numbers(name: str, full: bool) -> None:
    seeds = seeds_of(name, full)
    assert compare(name, WAYS[name], seeds) * len(WAYS) >= LEAST_CASES * len(seeds) / 40
