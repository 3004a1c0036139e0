"""Make shapes and arrays by name, and read what was matched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from noether_core.names import (
    Matching,
)

Shapes = dict[str, tuple[int, ...]]


def pairs(matching: Matching) -> dict[str, tuple[str, ...]]:
    return {entry.name: entry.paths for entry in matching.entries}


def ways(matching: Matching) -> set[str]:
    return {entry.how for entry in matching.entries}


def dense(path: str, ins: int, outs: int) -> Shapes:
    return {f"{path}/bias": (outs,), f"{path}/kernel": (ins, outs)}  # sorted, as JAX leaves a tree


def torch_linear(name: str, ins: int, outs: int) -> Shapes:
    return {f"{name}.weight": (outs, ins), f"{name}.bias": (outs,)}


def numbered(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
