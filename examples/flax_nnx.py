"""Track a Flax NNX loop: `nnx.jit`, `nnx.Optimizer`, sown intermediates. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.flax_nnx`.
"""

import sys

import optax
from flax import nnx

import noether_jax.flax  # +
from examples.digits import data
from noether_core.cli import app

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/flax_nnx"
CALLBACKS = [{"every_n_epochs": 1, "keys": ["loss", "accuracy"], "patterns": ["_loss", "features"]}]


class Network(nnx.Module):
    """Classify digits and reconstruct them; sow the features."""

    def __init__(self, rngs):
        self.body, self.classify, self.rebuild = (nnx.Linear(*s, rngs=rngs) for s in [(64, 32), (32, 10), (32, 64)])

    def __call__(self, images):
        """Return the logits and the reconstructed images."""
        features = nnx.relu(self.body(images))
        self.sow(nnx.Intermediate, "features", features)
        return self.classify(features), self.rebuild(features)


@nnx.jit
def train_step(model, optimizer, images, labels):
    """Update the weights, and return the outputs and what was sown."""

    def loss_and_outputs(model):
        (logits, rebuilt), sown = nnx.capture(model, nnx.Intermediate)(images)
        class_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        image_loss = optax.squared_error(rebuilt, images).mean()
        outputs = {"loss": class_loss + 0.1 * image_loss, "class_loss": class_loss, "image_loss": image_loss}
        return outputs["loss"], ({**outputs, "accuracy": (logits.argmax(-1) == labels).mean()}, sown)

    gradients, outputs_and_sown = nnx.grad(loss_and_outputs, has_aux=True)(model)
    optimizer.update(model, gradients)
    return outputs_and_sown


def main():
    """Train for four epochs of 44 updates."""
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    with noether_jax.Run(OUT, CALLBACKS, updates_per_epoch=44, effective_batch_size=32) as run:  # +
        for images, labels in data.batches(data.load()[0], 4):
            outputs, sown = train_step(model, optimizer, images, labels)
            run.step({**outputs, **noether_jax.flax.intermediate_outputs(sown)})  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
