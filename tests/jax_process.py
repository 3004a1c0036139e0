"""Train a sharded model with JAX as one of some processes, tracked in each way; arguments: process, how many, port, folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from examples.jax_processes import CALLBACKS, OPTIMIZER, update
from noether_jax import Run

UPDATES = 8
CONFIGS = [{**config, "every_n_updates": 4} for config in CALLBACKS for _ in [config.pop("every_n_epochs", None)]]


def train(folder: Path) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("shard",), axis_types=(AxisType.Auto,))

    def spread(array: Any, *axes: Any) -> jax.Array:
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, P(*axes)), array.__getitem__)

    rng = np.random.default_rng(0)
    body, classify = (rng.normal(size=size).astype(np.float32) / 8 for size in ((64, 32), (32, 10)))
    weights = {"body": spread(body, None, "shard"), "classify": spread(classify, "shard")}
    batches = [(rng.random((32, 64), np.float32), rng.integers(0, 10, 32)) for _ in range(UPDATES)]
    state = jax.jit(OPTIMIZER.init)(weights)
    with Run(folder / "eager", CONFIGS) as eager, Run(folder / "fused", CONFIGS) as fused:
        images, labels = (spread(array, "shard") for array in batches[0])
        tracked = fused.init(jax.eval_shape(update, weights, state, images, labels)[2])
        tracked = jax.device_put(tracked, NamedSharding(mesh, P()))

        @jax.jit
        def step(weights: Any, state: Any, tracked: Any, images: Any, labels: Any) -> Any:
            weights, state, outputs = update(weights, state, images, labels)
            return weights, state, fused.track(tracked, outputs), outputs

        for batch in batches:
            images, labels = (spread(array, "shard") for array in batch)
            weights, state, tracked, outputs = step(weights, state, tracked, images, labels)
            eager.step(outputs)
            tracked = fused.step(tracked)


if __name__ == "__main__":
    index, count, port, folder = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if int(count) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
    train(Path(folder) / count)
