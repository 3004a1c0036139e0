"""Measure how long JAX's first step takes, nearly all of it compilation: `python -m benchmarks.compilation 150 64 35`.

That is until the mean and the standard deviation of each array are logged: by the hooks, and fused into a compiled function;
beside a compiled function that computes them with jax.numpy, until they are on the host.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from noether_jax import Run

WAYS = ("jax.numpy", "hooks", "fused")


def measure(arrays: int, shape: tuple[int, ...]) -> dict[str, float]:
    """Return the seconds of each way's first step with so many arrays of a shape, each in a process of its own."""
    size = [str(number) for number in (arrays, *shape)]
    command = [sys.executable, "-m", "benchmarks.compilation", "--way"]
    return {way: float(subprocess.check_output([*command, way, *size], text=True)) for way in WAYS}


def first_step(way: str, arrays: int, shape: tuple[int, ...]) -> float:
    """Return the seconds of one way's first step in this process."""
    rng = np.random.default_rng(0)
    outputs = {f"array/{at}": jnp.asarray(rng.standard_normal(shape).astype(np.float32)) for at in range(arrays)}
    jax.block_until_ready(jax.jit(jnp.sum)(jnp.ones(2)))  # JAX itself has started
    config = {"every_n_updates": 1, "patterns": ["array/"], "reduce": ["mean", "std"]}
    with tempfile.TemporaryDirectory() as directory, Run(Path(directory), [config]) as run:
        started = time.perf_counter()
        if way == "hooks":
            run.step(outputs)
        elif way == "fused":
            run.step(jax.jit(run.track)(run.init(outputs), outputs))
        else:
            compute = jax.jit(
                lambda outputs: {key: (jnp.mean(array), jnp.std(array)) for key, array in outputs.items()}
            )
            jax.device_get(compute(outputs))
        return time.perf_counter() - started


def main(arguments: Sequence[str]) -> None:
    """Print the times, and how many times the plain function's they are."""
    if arguments[:1] == ["--way"]:
        way, *numbers = arguments[1:]
        arrays, *shape = map(int, numbers)
        print(first_step(way, arrays, tuple(shape)))
        return
    arrays, *shape = map(int, arguments or ("150", "64", "35"))
    times = measure(arrays, tuple(shape))
    for way, seconds in times.items():
        print(f"{way:10} {seconds:7.2f} s {seconds / times['jax.numpy']:6.2f} x")


if __name__ == "__main__":
    main(sys.argv[1:])
