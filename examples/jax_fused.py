"""Track inside of a compiled JAX step: nothing leaves the device between the intervals' ends. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.jax_fused`.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from examples.digits import data
from noether_core.cli import app
from noether_jax import Run  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/jax_fused"
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "accuracy"]},
    {"every_n_updates": 16, "patterns": ["_loss"], "reduce": ["mean", "std"]},
]
OPTIMIZER = optax.adam(3e-3)


def loss_and_outputs(weights: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss of a network that classifies digits and reconstructs them, and the update outputs."""
    hidden = jax.nn.relu(images @ weights["body"])
    logits = hidden @ weights["classify"]
    class_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    image_loss = jnp.square(hidden @ weights["rebuild"] - images).mean()
    loss = class_loss + 0.1 * image_loss
    accuracy = jnp.mean(logits.argmax(-1) == labels, dtype=jnp.float32)
    return loss, {"loss": loss, "class_loss": class_loss, "image_loss": image_loss, "accuracy": accuracy}


def main() -> None:
    """Train for four epochs of 44 batches."""
    digits = data.load()[0]
    sizes, keys = {"body": (64, 32), "classify": (32, 10), "rebuild": (32, 64)}, jax.random.split(jax.random.key(0), 3)
    weights = {name: jax.random.normal(key, sizes[name]) / 8 for name, key in zip(sizes, keys, strict=True)}
    carry: dict[str, Any] = {"weights": weights, "optimizer": OPTIMIZER.init(weights)}

    @jax.jit
    def train_step(carry: dict[str, Any], images: jax.Array, labels: jax.Array) -> dict[str, Any]:
        grads, outputs = jax.grad(loss_and_outputs, has_aux=True)(carry["weights"], images, labels)
        updates, state = OPTIMIZER.update(grads, carry["optimizer"])
        carry = {**carry, "weights": optax.apply_updates(carry["weights"], updates), "optimizer": state}
        carry["tracked"] = run.track(carry["tracked"], outputs)  # +
        return carry

    with Run(OUT, CALLBACKS, updates_per_epoch=44, effective_batch_size=32) as run:  # +
        carry["tracked"] = run.init(jax.eval_shape(loss_and_outputs, weights, *digits)[1])  # +
        for images, labels in data.batches(digits, epochs=4):
            carry = train_step(carry, images, labels)
            carry["tracked"] = run.step(carry["tracked"])  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
