"""Measure how a contender's memory grows over the steps of one interval, in a process of its own.

`python -m benchmarks.memory torch 'torchmetrics.MeanMetric' 100 10000` prints the bytes that the process grew by a step.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import psutil
import torch

from benchmarks.contenders import JAX, TORCH

_BEFORE = 600  # steps after which what is kept for reuse has been made


def growth(framework: str, name: str, elements: int, keys: int, steps: int) -> tuple[int, int]:
    """Return by how many bytes a process grew over so many steps, and its peak beyond what it had before them.

    Args:
        framework: `torch` or `jax`.
        name: of the contender.
        elements: of each value; 0 for a scalar.
        keys: how many keys a step has.
        steps: of the interval, after a few hundred others.
    """
    arguments = [framework, name, str(elements), str(keys), str(steps)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    grown, peak = map(int, done.stdout.split())
    return grown, peak


def _main() -> None:
    framework, name, *numbers = sys.argv[1:]
    elements, keys, steps = map(int, numbers)
    contenders = TORCH if framework == "torch" else JAX
    names = [f"key_{key}" for key in range(keys)]
    shape = (keys, elements) if elements else (keys,)
    fresh = jax.jit(lambda at: list(jnp.full(shape, at, jnp.float32)))

    def outputs(at: int) -> dict[str, object]:
        values = torch.full(shape, float(at)).unbind() if framework == "torch" else fresh(at)
        return dict(zip(names, values, strict=True))

    contender = contenders[name](outputs(0))
    process = psutil.Process()
    before = peak = 0
    warm_up = min(_BEFORE, steps)
    for at in range(warm_up + steps):
        contender.step(outputs(at))
        if at == warm_up - 1:
            before = process.memory_info().rss
        elif at >= warm_up and at % 50 == 0:
            peak = max(peak, process.memory_info().rss)
    after = process.memory_info().rss
    print(after - before, max(peak, after) - before)


if __name__ == "__main__":
    _main()
