"""A run of ten thousand intervals holds no more than one of two thousand: no list of ours grows with a training's length."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import noether_jax
import noether_torch
from noether_core import read_run

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 1, "patterns": ["key"], "reduce": {"": ["mean", "last"]}, "missing": "skip"},
    {"every_n_updates": 5, "keys": ["key/0"], "save_output": True, "log_output": False, "id": "saved"},
    {"every_n_epochs": 1, "keys": ["key/0"], "reduce": "max", "id": "epoch"},
    {
        "kind": "BestMetricCallback",
        "every_n_updates": 1,
        "source_metric_key": "key/0/mean/U1",
        "higher_is_better": True,
    },
    {"kind": "OnlineLossCallback", "every_n_updates": 1},
    {"kind": "ThroughputCallback", "every_n_updates": 1},
]
FUSED = [{**CONFIGS[0], "reduce": {"": ["mean", "max"]}}, *CONFIGS[1:3]]
WARM = 1200  # intervals: the newest 1,000 entries are kept
MOST = 100_000  # bytes: had each of 8,800 intervals left no more than a float behind, there were 200,000 more


class Taking:
    """Take entries, and keep none."""

    inline = False

    def __init__(self) -> None:
        self.count = 0

    def log(self, entry: Mapping[str, Any]) -> None:
        self.count += 1

    def close(self) -> None:
        pass


def hooks(front_end: Any, make: Callable[[float], Any]) -> Callable[[Any], Callable[[int], None]]:
    def way(run: Any) -> Callable[[int], None]:
        def once(update: int) -> None:
            come_and_go = {f"key/of {update // 100 % 3}": make(update)}
            run.step({"key/0": make(update), "key/1": float(update), **come_and_go}, losses=make(update))
            if update % 10 == 0:
                run.log({"own": update})
            if update % 50 == 0:
                with run.evaluate():
                    run.step({"key/0": make(update)}, losses=make(update))

        return once

    return way


def fused(run: Any) -> Callable[[int], None]:
    tracked = run.init({"key/0": np.float32(0), "key/1": np.float32(0)})
    step = jax.jit(run.track, donate_argnums=0)

    def once(update: int) -> None:
        nonlocal tracked
        value = np.float32(update)
        tracked = run.step(step(tracked, {"key/0": value, "key/1": value}))

    return once


WAYS: dict[str, tuple[Any, Any, Any]] = {
    "torch hooks": (noether_torch, hooks(noether_torch, torch.tensor), CONFIGS),
    "jax hooks": (noether_jax, hooks(noether_jax, lambda value: jax.device_put(np.float32(value))), CONFIGS),
    "fused": (noether_jax, fused, FUSED),
}


def held(run: Any) -> int:
    """Return the bytes of Python objects, once what waits is written and taken."""
    if (disk := getattr(run.log_writer, "disk", None)) is not None:
        assert disk.wait(patience=60)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if "torch" in way else pytest.mark.slow) for way in WAYS])
def test_no_more_is_held_after_more_intervals(
    way: str, full: bool, tmp_path: Path, sized: Callable[..., Iterator[Any]]
) -> None:
    front_end, make, configs = WAYS[way]
    intervals = 10_000 if full else WARM + 300
    tracker = Taking()
    tracemalloc.start()
    try:
        with front_end.Run(tmp_path, configs, updates_per_epoch=7, effective_batch_size=8, trackers=[tracker]) as run:
            once = make(run)
            warm = 0
            for update in sized(range(1, intervals + 1), "intervals"):
                once(update)
                if update == WARM:
                    warm = held(run)
            grown = held(run) - warm
    finally:
        tracemalloc.stop()
    assert grown < MOST, f"{grown} bytes more after {intervals - WARM} intervals"
    assert len(read_run(tmp_path).entries) == intervals
    assert tracker.count >= intervals
