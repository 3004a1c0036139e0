"""Track a Flax Linen loop: a `TrainState`, intermediates, and accumulation by optax. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.flax_linen`.
"""

import sys

import jax
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import noether_jax.flax  # +
from examples.digits import data
from noether_core.cli import app

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/flax_linen"
CALLBACKS = [{"every_n_epochs": 1, "keys": ["loss", "accuracy"], "patterns": ["_loss", "body"]}]


class Network(nn.Module):
    """Classify digits and reconstruct them."""

    @nn.compact
    def __call__(self, images):
        """Return the logits and the reconstructed images."""
        hidden = nn.relu(nn.Dense(32, name="body")(images))
        return nn.Dense(10, name="classify")(hidden), nn.Dense(64, name="rebuild")(hidden)


@jax.jit
def train_step(state, images, labels):
    """Return the new state, the outputs and the intermediates; the weights move once there are enough gradients."""

    def loss_and_outputs(params):
        (logits, rebuilt), variables = state.apply_fn({"params": params}, images, capture_intermediates=True)
        class_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        image_loss = optax.squared_error(rebuilt, images).mean()
        outputs = {"loss": class_loss + 0.1 * image_loss, "class_loss": class_loss, "image_loss": image_loss}
        return outputs["loss"], ({**outputs, "accuracy": (logits.argmax(-1) == labels).mean()}, variables)

    gradients, (outputs, variables) = jax.grad(loss_and_outputs, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients), outputs, variables["intermediates"]


def main():
    """Train for four epochs of 22 updates, of two steps each."""
    training, model, optimizer = data.load()[0], Network(), optax.MultiSteps(optax.adam(3e-3), 2)
    params = model.init(jax.random.key(0), training.images)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    with noether_jax.Run(OUT, CALLBACKS, updates_per_epoch=22, accumulation_steps=2) as run:  # +
        for images, labels in data.batches(training, 4):
            state, outputs, intermediates = train_step(state, images, labels)
            run.step({**outputs, **noether_jax.flax.intermediate_outputs(intermediates)})  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
