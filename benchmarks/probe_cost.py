"""Measure what probing every 100th update costs a training of a model of 1e7 parameters, beside that training, in one run.

python -m benchmarks.probe_cost [UPDATES [DEVICE]]

Every third update of one training is probed, in all its stages. What it takes longer than the two before it, divided by a
hundred updates' time, is the cost. It is told in the processors' time, of all threads, and by the clock, which on another
device, such as `cuda`, is the one that counts: it runs until the device is done. Both need cores on which nothing else runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import noether_jax
import noether_torch
from noether_core.probes import read_training

WIDTHS = (784, 2048, 2048, 2048, 10)
BATCH = 256
EVERY = 3
INTERVAL = 100  # updates, at which the statistics are left on
MOST = 0.01  # of the training's time
CLOCKS = {"processor time": time.process_time, "time by the clock": time.perf_counter}
Seconds = np.ndarray[Any, Any]  # float64 [updates, clocks]
CONFIG = {"kind": "ProbeCallback", "every_n_updates": EVERY, "arrays": 0}


def batch(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images and labels."""
    drawn = np.random.default_rng(number)
    return drawn.standard_normal((BATCH, WIDTHS[0]), np.float32), drawn.integers(0, WIDTHS[-1], BATCH)


def torch_times(path: Path, updates: int, device: str) -> Seconds:
    """Return the seconds of each update in PyTorch, by each of the clocks."""
    layers = [torch.nn.Linear(*widths) for widths in pairwise(WIDTHS)]
    model = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU()))).to(device)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(run: Any, number: int) -> None:
        x, y = (torch.from_numpy(each).to(device) for each in batch(number))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        run.step({"loss": loss}, batch=(x, y), losses=loss)
        if device != "cpu":
            torch.accelerator.synchronize()

    with noether_torch.Run(path, [CONFIG]) as run:
        run.probe(model, optimizer)
        return timed(step, run, updates)


def jax_times(path: Path, updates: int, _: str) -> Seconds:
    """Return the seconds of each update in JAX, on its default device, by each of the clocks; compiling is not timed."""
    keys = jax.random.split(jax.random.key(0), len(WIDTHS))
    shapes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=False)
    params = [{"kernel": 0.03 * jax.random.normal(key, shape), "bias": jnp.zeros(shape[1])} for key, *shape in shapes]
    optimizer = optax.adamw(1e-3)
    state = [params, optimizer.init(params)]

    def loss_of(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        acts = []
        for layer in params:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
            acts.append(x)
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean(), acts

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array, due: Any) -> Any:
        (loss, acts), grads = jax.value_and_grad(loss_of, has_aux=True)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        pieces = {"batch": (x, y), "params": params, "activations": acts, "losses": loss, "grads": grads}
        probes = noether_jax.probe(due, **pieces, updates=updates, opt_state=opt_state)
        return optax.apply_updates(params, updates), opt_state, {"loss": loss, **probes}

    def train(run: Any, number: int) -> None:
        *state[:], outputs = step(*state, *batch(number), run.probes_due)
        jax.block_until_ready(state)
        run.step(outputs)

    with noether_jax.Run(path, [CONFIG]) as run:
        return timed(train, run, updates)


def timed(step: Callable[[Any, int], None], run: Any, updates: int) -> Seconds:
    """Return the seconds of each update but the first ones, which compile."""
    times = []
    for number in range(2 * EVERY + updates):
        begun = [clock() for clock in CLOCKS.values()]
        step(run, number)
        times.append([clock() - then for clock, then in zip(CLOCKS.values(), begun, strict=True)])
    return np.array(times[2 * EVERY :])


def shares(name: str, seconds: Seconds) -> list[float]:
    """Print what probing costs, and return its share of the training's time, by each of the clocks."""
    found = []
    for clock, of_clock in zip(CLOCKS, seconds.T, strict=True):
        rounds = of_clock[: len(of_clock) // EVERY * EVERY].reshape(-1, EVERY)
        plain = float(np.median(rounds[:, :-1]))
        more = float(np.median(rounds[:, -1] - rounds[:, :-1].mean(1)))
        found.append(more / (INTERVAL * plain))
        print(
            f"{name}, {clock}: an update takes {plain * 1e3:.3g} ms, a probed one {more * 1e3:.3g} ms more;"
            f" of every {INTERVAL}th that is {found[-1]:.2%} of the training"
        )
    return found


def main(updates: int, device: str) -> None:
    """Measure both frameworks."""
    count = sum(a * b + b for a, b in pairwise(WIDTHS))
    print(f"{count:,} parameters, AdamW, batches of {BATCH}, {updates} updates, on {device}")
    with tempfile.TemporaryDirectory() as folder:
        for name, times in (("PyTorch", torch_times), ("JAX", jax_times)):
            path = Path(folder) / name
            found = shares(name, times(path, updates, device))
            is_dear = max(found if device == "cpu" else found[-1:]) >= MOST
            training = read_training(path)
            print(
                f"  {len(training.all_keys)} keys at {len(training.updates())} updates{': too dear' if is_dear else ''}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30, sys.argv[2] if len(sys.argv) > 2 else "cpu")
