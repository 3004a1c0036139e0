"""Draw the update outputs of generated trainings. Nothing of ours is imported: one draw serves any revision."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

# what a key holds is fixed, so that JAX compiles few signatures; two variants of each
KINDS: dict[str, tuple[tuple[Any, tuple[int, ...]], ...]] = {
    "loss": ((np.float32, ()), (ml_dtypes.bfloat16, ())),
    "aux/loss": ((np.float32, ()), (np.float16, ())),
    "aux/count": ((np.int32, ()), (np.uint8, ())),
    "flag": ((np.bool_, ()), (np.int8, ())),
    "field": ((np.float32, (2, 3)), (ml_dtypes.bfloat16, (5,))),
    "aux/mask": ((np.bool_, (4,)), (np.float16, (1, 3))),
    "lr": ((float, ()), (int, ())),
    "time/wide": ((np.float64, ()), (np.int64, (2,))),
    "weight": ((np.float32, ()), (int, ())),
}


def draw_value(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...], scale: str) -> Any:
    values = rng.normal(size=shape)
    if scale == "offset":
        values = 1000.0 + values / 64
    elif scale == "wild":
        values = values * np.exp2(rng.integers(-10, 11, shape).astype(float))
    elif scale == "whole":
        values = np.round(values * 8)
    elif scale == "steep":
        values = values * 10.0 ** rng.integers(-12, 18, shape)
        values = np.where(rng.random(shape) < 0.3, rng.choice([1e-5, 1e17, -0.0, 123456.75], shape), values)
    elif scale == "nonfinite":
        values = np.where(rng.random(shape) < 0.3, rng.choice([np.nan, np.inf, -np.inf], shape), values)
    if dtype is float:
        return float(values)
    is_whole = dtype is int or np.dtype(dtype).kind in "iub"
    if is_whole:
        low, high = (0, 2) if dtype is np.bool_ else (0, 100) if dtype is np.uint8 else (-100, 100)
        if dtype in (int, np.int64):
            low, high = -(2**62), 2**62
        whole = rng.integers(low, high, shape)
        return int(whole) if dtype is int else np.asarray(whole, dtype)
    with np.errstate(over="ignore"):  # float16 has no 1e17
        return np.asarray(values, dtype)


def draw_weight(rng: np.random.Generator, dtype: Any, scale: str) -> Any:
    if rng.random() < 0.2:
        return dtype(0)
    if dtype is int:
        return int(rng.integers(1, 5000))
    return np.asarray(np.nan if scale == "nonfinite" and rng.random() < 0.1 else rng.random(), dtype)


def nest(outputs: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in outputs.items():
        head, _, rest = key.partition("/")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            nested[key] = value
    return nested
