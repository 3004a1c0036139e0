"""An optimizer, its parameters and update outputs, and what a plain loop tracks of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noether_core import read_run
from noether_jax import Run
from noether_jax.optax import record_outputs

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 3, "keys": ["loss"], "reduce": ["mean", "std"]},
    {"every_n_samples": 20, "id": "x", "patterns": ["n"], "reduce": "last", "save_output": True},
]
TRAINING = {"updates_per_epoch": 5, "effective_batch_size": 8, "accumulation_steps": 2}
PARAMS = {"encoder": jnp.ones(3), "decoder": {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}}


def outputs(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"loss": np.float32(rng.normal()), "n": np.int32(number)} for number in range(count)]


def stacked(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return jax.tree.map(lambda *values: np.stack(values), *steps)


def gradients(number: int) -> Any:
    return jax.tree.map(lambda array: (number + 1.0) * jnp.ones_like(array), PARAMS)


def entries(path: Path) -> str:
    read = read_run(path)
    assert read.problems == []
    return repr(read.entries) + repr([(str(file.iteration), file.load()) for file in read.arrays])


def by_hooks(path: Path, steps: list[dict[str, Any]], configs: Any = CONFIGS, **training: int) -> str:
    with Run(path, configs, **(training or TRAINING)) as run:
        for given in steps:
            run.step(update_outputs=jax.tree.map(jnp.asarray, given))
    return entries(path)


def stepping(optimizer: Any) -> Any:
    """Return a compiled update of PARAMS whose optimizer's state is donated."""

    def step(state: Any, given: Any) -> Any:
        return optimizer.update(PARAMS, state, PARAMS, update_outputs=given)[1]

    return jax.jit(step, donate_argnums=0)


def before_multi_steps(run: Run, **arguments: Any) -> Any:
    accumulated = optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
    return optax.chain(record_outputs(run, outputs(1)[0], **arguments), accumulated)


SCHEDULE = optax.linear_schedule(1.0, 0.0, 4)
INJECTED = optax.inject_hyperparams(optax.sgd)
