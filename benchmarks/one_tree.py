"""Measure the packages of whichever tree is on the path: a program for `before.py`, which runs it with two trees in turns.

It first prints where the packages are; then, for each line that it is sent, the next times as JSON, in µs by name.
It imports nothing of this folder, and uses only what stays the same from one revision to the next.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import noether_core
from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig, UpdateCounter

NUM_KEYS = (1, 10, 100, 1000)
FRAMEWORKS = {"PyTorch": "noether_torch", "JAX": "noether_jax"}
STEPS = 256  # of a turn: as many as are ever reduced together, so that every turn has a reduction
END_AFTER = 100  # steps of the interval whose end is measured
TURNS = 5


def fresh(framework: str, num_keys: int, steps: int) -> list[dict[str, Any]]:
    """Return so many steps' update outputs: new scalars, which are there already."""
    values = np.random.default_rng(0).standard_normal((steps, num_keys)).astype(np.float32)
    apart = jax.jit(list)
    if framework == "PyTorch":
        rows: list[Any] = [[value.clone() for value in torch.from_numpy(row)] for row in values]
    else:
        rows = jax.block_until_ready([apart(row) for row in values])
    return [{f"key_{at}": value for at, value in enumerate(row)} for row in rows]


def timed(function: Callable[[], object], *, waits: bool = False) -> float:
    """Return how long a call takes, until the devices are done with it; `waits`: it waits for them itself."""
    started = time.perf_counter()
    function()
    if not waits:
        jax.block_until_ready(jax.live_arrays())
    return (time.perf_counter() - started) * 1e6


def steps_and_ends(framework: str, num_keys: int) -> Iterator[tuple[float, float]]:
    """Yield the time of a step that only tracks, and that of an interval's end, until all is logged in memory."""
    module = importlib.import_module(FRAMEWORKS[framework])
    outputs = fresh(framework, num_keys, 8)
    counter = UpdateCounter()
    writer = LogWriter(update_counter=counter)
    config = TrackAdditionalOutputsCallbackConfig(every_n_updates=10**9, keys=list(outputs[0]))
    callback = module.TrackAdditionalOutputsCallback(config, log_writer=writer)
    callback.before_training(update_counter=counter)

    def train(steps: int) -> None:
        for each in islice(cycle(outputs), steps):
            callback.track_after_accumulation_step(update_counter=counter, update_outputs=each)
            counter.next_update()

    def end() -> None:
        callback.periodic_callback(interval_type="update", update_counter=counter)
        writer.flush()

    for _ in range(1 + TURNS):
        step = timed(lambda: train(STEPS)) / STEPS
        end()
        timed(lambda: train(END_AFTER))
        yield step, timed(end, waits=True)


def logged_steps(framework: str, num_keys: int, directory: Path) -> Iterator[float]:
    """Yield the time of a step after which the values stand in the run directory's log."""
    module = importlib.import_module(FRAMEWORKS[framework])
    steps = 100 if num_keys < 1000 else 10
    with module.Run(directory, [{"every_n_updates": 1, "keys": [f"key_{at}" for at in range(num_keys)]}]) as run:
        for _ in range(1 + TURNS):
            outputs = fresh(framework, num_keys, steps)
            yield timed(lambda outputs=outputs: [run.step(each) for each in outputs]) / steps


def measure(directory: Path) -> Iterator[dict[str, float]]:
    """Yield times by what was measured, those of each turn; the first turn, which compiles, is left out."""
    for framework in FRAMEWORKS:
        for num_keys in NUM_KEYS:
            keys = f"{num_keys:,} key{'s' * (num_keys > 1)}"
            for step, end in islice(steps_and_ends(framework, num_keys), 1, None):
                yield {f"{framework}: a step, {keys}": step, f"{framework}: an interval's end, {keys}": end}
            for step in islice(logged_steps(framework, num_keys, directory / framework / keys), 1, None):
                yield {f"{framework}: a step that logs, {keys}": step}


def main() -> None:
    """Answer each line with the next times."""
    print(Path(noether_core.__file__).parents[1], flush=True)
    with tempfile.TemporaryDirectory() as directory:
        times = measure(Path(directory))
        while sys.stdin.readline():
            print(json.dumps(next(times, {})), flush=True)


if __name__ == "__main__":
    main()
