"""Share how the tests of the smaller callbacks train, and how they read what was logged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import noether_jax
import noether_torch
from noether_core import read_run

FRONT_ENDS = (noether_jax, noether_torch)
NAN, INF = math.nan, math.inf

each_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda module: module.__name__)

MINIMAL: dict[str, dict[str, Any]] = {
    "OnlineLossCallback": {},
    "LearningRateCallback": {"key": "lr"},
    "ThroughputCallback": {},
    "ProgressCallback": {},
    "BestMetricCallback": {"source_metric_key": "v/U2", "higher_is_better": False},
    "MetricEarlyStopCallback": {"source_metric_key": "v/U2", "higher_is_better": False, "patience": 2},
}
each_kind = pytest.mark.parametrize("kind", MINIMAL)


def entry(kind: str, every: int = 2, unit: str = "update", **fields: Any) -> dict[str, Any]:
    return {"kind": kind, f"every_n_{unit}s": every, **MINIMAL[kind], **fields}


TRACK = {"every_n_updates": 2, "keys": ["v"], "reduce": "last"}


def array(front_end: Any, value: Any) -> Any:
    return front_end.Run.backend.from_numpy(np.asarray(value, np.float32))


def step(run: Any, number: int) -> None:
    """Do one step of a training in which everything has something to log."""
    value = float(number * 7 % 5) / 4
    losses = (run.backend.from_numpy(np.asarray(loss, np.float32)) for loss in (value, 2 * value))
    run.step(
        {"v": value, "lr": 0.1 / (1 + number)},
        losses=dict(zip(("data", "physics"), losses, strict=True)),
        times={"data": 0.25 * (number % 3), "update": 1.0},
    )


def train(front_end: Any, path: Path, callbacks: Any, steps: Iterable[int] = range(9), **arguments: Any) -> Any:
    with front_end.Run(path, callbacks, **{"effective_batch_size": 1, **arguments}) as run:
        for number in steps:
            step(run, number)
            if run.is_finished:
                break
    return run


def points(path: Path) -> dict[str, list[tuple[int, Any]]]:
    return {key: [(p.update, p.value) for p in series] for key, series in read_run(path).series.items()}


class Clock:
    """Count seconds by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
