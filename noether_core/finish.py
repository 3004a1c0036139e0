"""Finish a key's interval: from what was accumulated to the numbers that are logged and the arrays that are saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from noether_core.accumulate import Partial
from noether_core.config import Reduction, TrackAdditionalOutputsCallbackConfig
from noether_core.reduce import mean

Scalar = float | int | bool


@dataclass
class Finished:
    """Hold what one key gives at an interval's end.

    Attributes:
        values: each reduction's value, in its dtype and shape.
        scalars: log key to plain Python number.
        arrays: tensor name to array.
    """

    values: dict[Reduction, np.ndarray[Any, Any]] = field(default_factory=dict)
    scalars: dict[str, Scalar] = field(default_factory=dict)
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def finish(config: TrackAdditionalOutputsCallbackConfig, key: str, partial: Partial, update: int) -> Finished:
    """Return what a key gives at the end of an interval whose last update is `update`."""
    result = Finished()
    for reduction in config.reductions(key):
        value = _reduced(reduction, partial, update, skip=config.nonfinite == "skip")
        if value is None:
            continue
        result.values[reduction] = value
        result.arrays[config.tensor_name(key, reduction)] = value
        if value.size == 1:
            result.scalars[config.log_key(key, reduction)] = value.item()
    sums = partial.sums
    nonfinite = int(sums.nan) + int(sums.positive) + int(sums.negative)
    if nonfinite:
        result.scalars[f"{key}/nonfinite/{config.interval}"] = nonfinite
    return result


def _reduced(reduction: Reduction, partial: Partial, update: int, *, skip: bool) -> np.ndarray[Any, Any] | None:
    if reduction == "last":
        return _last(partial, update, skip)
    dtype = np.float64 if partial.wide else np.float32
    value = mean(partial.sums, partial.elements, dtype, skip)
    return None if value is None else np.asarray(value, dtype)


def _last(partial: Partial, update: int, skip: bool) -> np.ndarray[Any, Any] | None:
    value = partial.last
    if value is None or partial.last_update != update:
        return None
    is_left_out = skip and value.size == 1 and not np.isfinite(value.astype(np.float64)).all()
    return None if is_left_out else value
