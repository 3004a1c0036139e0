"""Measure what tracking adds to a compiled training step of a small network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.measure import ratio, side_by_side
from noether_jax import Run

WIDTHS = (784, 512, 512, 10)
BATCH = 128
STEPS = 20  # of a turn; a loop does not wait for each


def _loss(params: list[jax.Array], x: jax.Array, labels: jax.Array) -> jax.Array:
    for weights in params[:-1]:
        x = jax.nn.relu(x @ weights)
    return optax.softmax_cross_entropy_with_integer_labels(x @ params[-1], labels)


def training_step(num_keys: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a training step with so many scalar update outputs, and its arguments: parameters, optimizer state, a batch."""
    keys = jax.random.split(jax.random.key(0), len(WIDTHS))
    shapes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=False)
    params = [jax.random.normal(key, shape) * shape[0] ** -0.5 for key, *shape in shapes]
    optimizer = optax.adam(1e-3)
    x = jax.random.normal(keys[-1], (BATCH, WIDTHS[0]))
    labels = jnp.arange(BATCH) % WIDTHS[-1]

    def step(params: Any, opt_state: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
        def mean_loss(params: Any) -> tuple[jax.Array, jax.Array]:
            losses = _loss(params, x, labels)
            return jnp.mean(losses), losses

        grads, losses = jax.grad(mean_loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        # a loss of each part of the batch, so that there are as many keys as are wanted, and a reduction for each
        parts = {f"loss/{at:03}": jnp.mean(losses[at::num_keys]) for at in range(num_keys)}
        return optax.apply_updates(params, updates), opt_state, parts

    return step, (params, optimizer.init(params), x, labels)


def measure(num_keys: int, directory: Path, rounds: int) -> tuple[float, float]:
    """Return the bare step's median in µs, and by what share of it the tracked step takes longer."""
    step, (params, opt_state, x, labels) = training_step(num_keys)

    @partial(jax.jit, donate_argnums=(0, 1))
    def bare(params: Any, opt_state: Any) -> tuple[Any, Any, jax.Array]:
        params, opt_state, outputs = step(params, opt_state, x, labels)
        return params, opt_state, jnp.stack(list(outputs.values()))  # so that they are computed

    run = Run(directory, [{"every_n_updates": 10**6, "patterns": ["loss/"]}])

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def fused(params: Any, opt_state: Any, tracked: Any) -> tuple[Any, Any, Any]:
        params, opt_state, outputs = step(params, opt_state, x, labels)
        return params, opt_state, run.track(tracked, outputs)

    carried = {name: jax.tree.map(jnp.copy, (params, opt_state)) for name in ("bare", "fused")}

    def train_bare() -> None:
        for _ in range(STEPS):
            *carried["bare"], outputs = bare(*carried["bare"])
        jax.block_until_ready(outputs)

    def train_fused() -> None:
        nonlocal tracked
        for _ in range(STEPS):
            *carried["fused"], tracked = fused(*carried["fused"], tracked)
            tracked = run.step(tracked)
        jax.block_until_ready(tracked)

    with run:
        tracked = run.init(jax.eval_shape(step, params, opt_state, x, labels)[2])
        times = side_by_side({"bare": train_bare, "fused": train_fused}, rounds=rounds, seconds=0.0)
    return median(times["bare"]) / STEPS, ratio(times["bare"], times["fused"]) - 1
