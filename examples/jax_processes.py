"""Track a JAX training in several processes, whose weights are spread over the devices of all. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.jax_processes`, which starts two; or start each of as many as you like by
`python -m examples.jax_processes runs/jax_processes 127.0.0.1:1234 COUNT INDEX`.
"""

import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from examples.digits import data
from noether_core.cli import app
from noether_jax import Run  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/jax_processes"
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "correct"], "reduce": {"correct": ["mean", "count"]}},
    {"every_n_updates": 16, "patterns": ["gradient/"], "reduce": ["std", "max"]},
]
OPTIMIZER = optax.adam(3e-3)


def loss_of(weights: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the loss of a network that classifies digits, and of each image whether it is right."""
    logits = jax.nn.relu(images @ weights["body"]) @ weights["classify"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits.argmax(-1) == labels


def update(weights: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
    """Return the weights and the optimizer's state after a batch, and the update outputs."""
    (loss, correct), gradient = jax.value_and_grad(loss_of, has_aux=True)(weights, images, labels)
    updates, state = OPTIMIZER.update(gradient, state)
    return optax.apply_updates(weights, updates), state, {"loss": loss, "correct": correct, "gradient": gradient}


def train() -> None:
    """Train a classifier of digits in this process of some; each device has a share of every batch and weight."""
    mesh = jax.make_mesh((jax.device_count(),), ("shard",), axis_types=(AxisType.Auto,))

    def spread(array: Any, *axes: str | None) -> jax.Array:
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, PartitionSpec(*axes)), array.__getitem__)

    rng = np.random.default_rng(0)
    body, classify = (rng.normal(size=size).astype(np.float32) / 8 for size in ((64, 32), (32, 10)))
    weights = {"body": spread(body, None, "shard"), "classify": spread(classify, "shard")}
    state, step = jax.jit(OPTIMIZER.init)(weights), jax.jit(update)
    with Run(OUT, CALLBACKS, updates_per_epoch=44, effective_batch_size=32) as run:  # +
        for batch in data.batches(data.load()[0], epochs=4):
            weights, state, outputs = step(weights, state, spread(batch.images, "shard"), spread(batch.labels, "shard"))
            run.step(outputs)  # +


def launch() -> bool:
    """Train in this process if it is one of some, else in two that this starts; return whether it did that."""
    if len(sys.argv) > 2:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[2], *map(int, sys.argv[3:]))
        train()
        return False
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    command = [sys.executable, "-m", "examples.jax_processes", OUT, address, "2"]
    started = [subprocess.Popen([*command, str(index)]) for index in range(2)]
    if sum(process.wait() != 0 for process in started):
        raise SystemExit("a process failed")
    return True


if __name__ == "__main__":
    if launch():
        app(["show", OUT], standalone_mode=False)
