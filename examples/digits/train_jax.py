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
from examples.probing import before_update, of_micro_batch, pieces_of_update
from noether_core.probes.stages import Pieces
from noether_jax import Run, probe, twin, twin_batch, twin_path
from noether_jax.flax import intermediate_outputs

CALLBACKS = Path(__file__).with_name("callbacks.yaml")


class DigitNetwork(nnx.Module):
    """Classify a digit and, as an auxiliary task, reconstruct its image."""

    def __init__(self, weights: data.Weights) -> None:
        """Build the layers and copy the initial weights into them."""
        rngs = nnx.Rngs(0)
        self.hidden1 = nnx.Linear(*data.LAYER_SIZES["hidden1"], kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.hidden2 = nnx.Linear(*data.LAYER_SIZES["hidden2"], kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.classifier = nnx.Linear(*data.LAYER_SIZES["classifier"], kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.decoder = nnx.Linear(*data.LAYER_SIZES["decoder"], kernel_init=nnx.initializers.zeros, rngs=rngs)
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


def loss_and_outputs(
    model: DigitNetwork, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[dict[str, Any], dict[str, jax.Array]]]:
    """Return the loss of a micro-batch, its update outputs, and what each layer returned."""
    forward = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    (logits, reconstruction, activations), returned = forward(images)
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
    layers = intermediate_outputs(returned)
    return loss, (outputs, {layer: layers[layer] for layer in data.LAYER_SIZES})


@nnx.jit
def train_step(
    model: DigitNetwork, optimizer: nnx.Optimizer[DigitNetwork], images: jax.Array, labels: jax.Array
) -> tuple[dict[str, Any], Pieces]:
    """Add a micro-batch's gradients, update the weights once there are enough; return update outputs and pieces for probes."""
    before = before_update(model, optimizer)
    gradients, (outputs, returned) = nnx.grad(loss_and_outputs, has_aux=True)(model, images, labels)
    optimizer.update(model, gradients)
    pieces = pieces_of_update(before, model, optimizer, gradients, data.ACCUMULATION_STEPS)
    pieces |= {"batch": {"images": images, "labels": labels}, "losses": outputs["loss"], "activations": returned}
    return {**outputs, "gradient_norm": optax.tree.norm(gradients)}, pieces


def train(out: str | Path, *, epochs: int = data.EPOCHS, record: str | Path | None = None) -> float:
    """Train for `epochs`, write the run to `out`, and return the accuracy on the test digits."""
    training, test = data.load()
    model = twin(DigitNetwork(data.initial_weights()))
    accumulated = optax.MultiSteps(optax.adam(data.LEARNING_RATE), every_k_schedule=data.ACCUMULATION_STEPS)
    optimizer = nnx.Optimizer(model, accumulated, wrt=nnx.Param)
    updates = epochs * data.UPDATES_PER_EPOCH
    report_every = data.ACCUMULATION_STEPS * data.UPDATES_PER_EPOCH // 2
    run = Run(
        twin_path(out),
        callbacks=CALLBACKS,
        updates_per_epoch=data.UPDATES_PER_EPOCH,
        effective_batch_size=data.EFFECTIVE_BATCH_SIZE,
        accumulation_steps=data.ACCUMULATION_STEPS,
        end={"epoch": epochs},
        trackers=["tensorboard"],
        record=record,
    )
    with run:
        for step, batch in enumerate(data.batches(training, epochs), start=1):
            images, labels = twin_batch((jnp.asarray(batch.images), jnp.asarray(batch.labels)))
            outputs, pieces = train_step(model, optimizer, images, labels)
            ends_update = step % data.ACCUMULATION_STEPS == 0
            probes = probe(run.probes_due, **(pieces if ends_update else of_micro_batch(pieces)))
            run.step(update_outputs={**outputs, **probes})
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
