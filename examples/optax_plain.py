"""Track a plain optax loop. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.optax_plain`.
"""

import sys

import jax
import jax.numpy as jnp
import optax

from examples.digits import data
from noether_core.cli import app
from noether_jax import Run  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/optax_plain"
EPOCHS = 4
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "accuracy"]},
    {"every_n_updates": 22, "patterns": ["_loss"], "reduce": ["mean", "std"]},
]
optimizer = optax.adam(3e-3)


def loss_and_outputs(params, images, labels):
    """Return the loss of a network that classifies digits and reconstructs them, and what else it computes."""
    hidden1 = jax.nn.relu(images @ params["hidden1.kernel"] + params["hidden1.bias"])
    hidden2 = jax.nn.relu(hidden1 @ params["hidden2.kernel"] + params["hidden2.bias"])
    logits = hidden2 @ params["classifier.kernel"] + params["classifier.bias"]
    class_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    image_loss = jnp.square(hidden2 @ params["decoder.kernel"] + params["decoder.bias"] - images).mean()
    accuracy = (logits.argmax(-1) == labels).astype(jnp.float32).mean()
    loss = class_loss + 0.1 * image_loss
    return loss, {"loss": loss, "class_loss": class_loss, "image_loss": image_loss, "accuracy": accuracy}


@jax.jit
def train_step(params, opt_state, images, labels):
    """Return the parameters and the optimizer's state after an update, and its outputs."""
    grads, outputs = jax.grad(loss_and_outputs, has_aux=True)(params, images, labels)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, outputs


def main() -> None:
    """Train for four epochs of 44 updates."""
    params = data.initial_weights()
    opt_state = optimizer.init(params)
    with Run(OUT, CALLBACKS, updates_per_epoch=44, effective_batch_size=32) as run:  # +
        for images, labels in data.batches(data.load()[0], EPOCHS):
            params, opt_state, outputs = train_step(params, opt_state, images, labels)
            run.step(outputs)  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
