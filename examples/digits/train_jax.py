"""Train the digit network in JAX, with Flax NNX and optax, and track its update outputs.

Run it from the repository's root: `python -m examples.digits.train_jax --out runs/digits/jax`.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.digits import data
from noether_jax import Run

CALLBACKS = Path(__file__).with_name("callbacks.yaml")


class DigitNetwork(nnx.Module):
    """Classify a digit and, as an auxiliary task, reconstruct its image."""

    def __init__(self, weights: data.Weights) -> None:
        """Build the layers and copy the initial weights into them."""
        rngs = nnx.Rngs(0)
        self.hidden1 = nnx.Linear(*data.LAYER_SIZES["hidden1"], rngs=rngs)
        self.hidden2 = nnx.Linear(*data.LAYER_SIZES["hidden2"], rngs=rngs)
        self.classifier = nnx.Linear(*data.LAYER_SIZES["classifier"], rngs=rngs)
        self.decoder = nnx.Linear(*data.LAYER_SIZES["decoder"], rngs=rngs)
        for name, weight in weights.items():
            layer, parameter = name.split(".")
            getattr(getattr(self, layer), parameter)[...] = jnp.asarray(weight)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Return the logits, the reconstructed images and each hidden layer's activations."""
        hidden1 = jax.nn.relu(self.hidden1(images))
        hidden2 = jax.nn.relu(self.hidden2(hidden1))
        return self.classifier(hidden2), self.decoder(hidden2), {"hidden1": hidden1, "hidden2": hidden2}


def activation_statistics(activations: jax.Array) -> dict[str, jax.Array]:
    """Return the mean, the standard deviation and the share of zeros of a layer's activations."""
    zeros = (activations == 0).astype(jnp.float32)
    return {"mean": activations.mean(), "std": activations.std(), "zero_fraction": zeros.mean()}


def confusion_counts(labels: jax.Array, predicted: jax.Array) -> jax.Array:
    """Count, in int32 of shape (true class, predicted class), how a micro-batch was classified."""
    true = jax.nn.one_hot(labels, data.CLASSES, dtype=jnp.int32)
    guessed = jax.nn.one_hot(predicted, data.CLASSES, dtype=jnp.int32)
    return (true[:, :, None] * guessed[:, None, :]).sum(axis=0)


def loss_and_outputs(model: DigitNetwork, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """Return the loss of a micro-batch and its update outputs."""
    logits, reconstruction, activations = model(images)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    auxiliary = jnp.square(reconstruction - images).mean()
    loss = cross_entropy + data.AUXILIARY_WEIGHT * auxiliary
    predicted = logits.argmax(axis=-1)
    outputs = {
        "loss": loss,
        "cross_entropy_loss": cross_entropy,
        "auxiliary_loss": auxiliary,
        "accuracy": (predicted == labels).astype(jnp.float32).mean(),
        "activations": {layer: activation_statistics(values) for layer, values in activations.items()},
        "confusion": confusion_counts(labels, predicted),
    }
    return loss, outputs


@nnx.jit
def train_step(
    model: DigitNetwork, optimizer: nnx.Optimizer[DigitNetwork], images: jax.Array, labels: jax.Array
) -> dict[str, Any]:
    """Add a micro-batch's gradients, update the weights once there are enough, and return the update outputs."""
    gradients, outputs = nnx.grad(loss_and_outputs, has_aux=True)(model, images, labels)
    optimizer.update(model, gradients)
    return {**outputs, "gradient_norm": optax.tree.norm(gradients)}


def train(out: str | Path, *, epochs: int = data.EPOCHS, record: str | Path | None = None) -> float:
    """Train for `epochs`, write the run to `out`, and return the accuracy on the test digits."""
    training, test = data.load()
    model = DigitNetwork(data.initial_weights())
    accumulated = optax.MultiSteps(optax.adam(data.LEARNING_RATE), every_k_schedule=data.ACCUMULATION_STEPS)
    optimizer = nnx.Optimizer(model, accumulated, wrt=nnx.Param)
    updates = epochs * data.UPDATES_PER_EPOCH
    report_every = data.ACCUMULATION_STEPS * data.UPDATES_PER_EPOCH // 2
    run = Run(
        out,
        callbacks=CALLBACKS,
        updates_per_epoch=data.UPDATES_PER_EPOCH,
        effective_batch_size=data.EFFECTIVE_BATCH_SIZE,
        accumulation_steps=data.ACCUMULATION_STEPS,
        end={"epoch": epochs},
        trackers=["tensorboard"],
        record=record,
    )
    with run:
        for step, (images, labels) in enumerate(data.batches(training, epochs), start=1):
            run.step(update_outputs=train_step(model, optimizer, jnp.asarray(images), jnp.asarray(labels)))
            if step % report_every == 0:
                print(f"progress {step // data.ACCUMULATION_STEPS}/{updates}", flush=True)
    logits, _, _ = model(jnp.asarray(test.images))
    return float((logits.argmax(axis=-1) == test.labels).mean())


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train the digit network in JAX.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument("--record", type=Path, help="file that gets each accumulation step's update outputs")
    parser.add_argument("--epochs", type=int, default=data.EPOCHS)
    arguments = parser.parse_args()
    accuracy = train(arguments.out, epochs=arguments.epochs, record=arguments.record)
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
