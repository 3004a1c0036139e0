"""Measure what a step of `Run("runs/x")` costs, beside a list and beside TensorBoard at every step.

python -m benchmarks.one_line [ROUNDS]

`Run("runs/x")` logs the mean of every scalar each 50 updates. What is timed are 50 steps, from the scalars, new arrays
that are there, to all that follows from them: the interval's end, or the lines of TensorBoard's file. They are timed in turns,
on the CPU; the fastest of the turns counts, which what else the machine does touches least.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from tensorboardX import SummaryWriter

from benchmarks.contenders import Outputs
from benchmarks.logged import MODULES, fresh_outputs
from benchmarks.measure import side_by_side

STEPS = 50  # in an interval
KEYS = (1, 10, 100)
Steps = Callable[[Sequence[Outputs]], None]


def _run(framework: str, directory: Path, opened: ExitStack) -> Steps:
    run = opened.enter_context(MODULES[framework].Run(directory / "run"))

    def steps(interval: Sequence[Outputs]) -> None:
        for outputs in interval:
            run.step(outputs)

    return steps


def _means(framework: str, lists: Mapping[str, Sequence[Any]]) -> list[float]:
    if framework == "PyTorch":
        return [torch.stack(list(values)).mean().item() for values in lists.values()]
    return [float(np.mean(jax.device_get(values))) for values in lists.values()]


def _lists(framework: str, *, has_means: bool) -> Steps:
    def steps(interval: Sequence[Outputs]) -> None:
        lists: dict[str, list[Any]] = {key: [] for key in interval[0]}
        for outputs in interval:
            for key, value in outputs.items():
                lists[key].append(value)
        if has_means:
            _means(framework, lists)

    return steps


def _tensorboard(directory: Path, opened: ExitStack) -> Steps:
    writer = opened.enter_context(SummaryWriter(str(directory / "tensorboard")))
    updates = count(1)

    def steps(interval: Sequence[Outputs]) -> None:
        for outputs in interval:
            update = next(updates)
            for key, value in outputs.items():
                writer.add_scalar(key, value.item(), update)

    return steps


def measure(framework: str, num_keys: int, rounds: int) -> dict[str, float]:
    """Return the least time of a step, in µs, of each way."""
    fresh = fresh_outputs(framework, num_keys)
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        ways = {
            '`Run("runs/x")`': _run(framework, Path(name), opened),
            "a list for each": _lists(framework, has_means=False),
            "a list for each, its mean after 50": _lists(framework, has_means=True),
            "TensorBoard, every step": _tensorboard(Path(name), opened),
        }
        times = side_by_side(ways, rounds=rounds, seconds=0, fresh=lambda calls: [fresh(STEPS) for _ in range(calls)])
    return {way: min(each) / STEPS for way, each in times.items()}


def main(rounds: int) -> None:
    """Print a table for each framework."""
    torch.set_num_threads(1)
    for framework in MODULES:
        columns = [measure(framework, num_keys, rounds) for num_keys in KEYS]
        heads = " | ".join("1 key" if num_keys == 1 else f"{num_keys} keys" for num_keys in KEYS)
        print(f"\n| {framework}, µs a step | {heads} |")
        print(f"|---|{'---|' * len(KEYS)}")
        for way in columns[0]:
            print(f"| {way} | {' | '.join(f'{each[way]:.1f}' for each in columns)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
