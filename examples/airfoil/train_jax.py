"""Train the airfoil surrogate in JAX, with Flax NNX and optax, and track its update outputs.

Run it from the repository's root: `python -m examples.airfoil.train_jax --out runs/airfoil/jax`.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.airfoil import data
from examples.probing import before_update, of_micro_batch, pieces_of_update
from noether_core.probes.stages import Pieces
from noether_jax import Run, probe, twin, twin_batch, twin_path
from noether_jax.flax import intermediate_outputs

CALLBACKS = Path(__file__).with_name("callbacks.yaml")


class Surrogate(nnx.Module):
    """Predict the flow at a point from its position and the airfoil's conditions."""

    def __init__(self, weights: data.Weights) -> None:
        """Build the layers and copy the initial weights into them."""
        rngs = nnx.Rngs(0)
        self.hidden1 = nnx.Linear(*data.LAYER_SIZES["hidden1"], kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.hidden2 = nnx.Linear(*data.LAYER_SIZES["hidden2"], kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.hidden3 = nnx.Linear(*data.LAYER_SIZES["hidden3"], kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.flow = nnx.Linear(*data.LAYER_SIZES["flow"], kernel_init=nnx.initializers.zeros, rngs=rngs)
        for name, weight in weights.items():
            layer, parameter = name.split(".")
            getattr(getattr(self, layer), parameter)[...] = jnp.asarray(weight)

    def __call__(self, position: jax.Array, conditions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the velocity (n, points, 2) and the pressure coefficient (n, points)."""
        conditions = jnp.broadcast_to(conditions[:, None, :], (*position.shape[:2], data.CONDITIONS))
        hidden = jnp.tanh(self.hidden1(jnp.concatenate([position, conditions], axis=-1)))
        hidden = jnp.tanh(self.hidden2(hidden))
        hidden = jnp.tanh(self.hidden3(hidden))
        predicted = self.flow(hidden)
        return predicted[..., :2], predicted[..., 2]


def velocity_and_divergence(
    model: Surrogate, position: jax.Array, conditions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the velocity (n, points, 2) and its divergence (n, points), from the model's own derivatives."""
    # A point's velocity depends on no other point, so one pullback per component gives all points' gradients.
    predicted, pullback = jax.vjp(lambda at: model(at, conditions)[0], position)
    (u_gradient,) = pullback(jnp.broadcast_to(jnp.array([1.0, 0.0]), position.shape))
    (v_gradient,) = pullback(jnp.broadcast_to(jnp.array([0.0, 1.0]), position.shape))
    return predicted, u_gradient[..., 0] + v_gradient[..., 1]


def loss_and_outputs(
    model: Surrogate, batch: data.Batch[jax.Array]
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """Return the loss of a micro-batch, its update outputs, and what each layer returned on the surface."""
    velocity, divergence = velocity_and_divergence(model, batch.volume_position, batch.conditions)
    forward = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    (_, pressure), returned = forward(batch.surface_position, batch.conditions)
    pressure_error = pressure - batch.surface_pressure
    velocity_error = velocity - batch.volume_velocity
    surface_pressure_loss = jnp.square(pressure_error).mean()
    volume_velocity_loss = jnp.square(velocity_error).mean()
    continuity_loss = jnp.square(divergence).mean()
    loss = surface_pressure_loss + volume_velocity_loss + data.CONTINUITY_WEIGHT * continuity_loss
    outputs = {
        "loss": loss,
        "surface_pressure_loss": surface_pressure_loss,
        "volume_velocity_loss": volume_velocity_loss,
        "continuity_residual": jnp.sqrt(continuity_loss),
        "surface_pressure_error": jnp.abs(pressure_error),
        "volume_velocity_error": jnp.linalg.norm(velocity_error, axis=-1),
    }
    layers = intermediate_outputs(returned)
    return loss, (outputs, {layer: layers[layer] for layer in data.LAYER_SIZES})


@nnx.jit
def train_step(
    model: Surrogate, optimizer: nnx.Optimizer[Surrogate], batch: data.Batch[jax.Array]
) -> tuple[dict[str, jax.Array], Pieces]:
    """Add a micro-batch's gradients, update the weights once there are enough; return update outputs and pieces for probes."""
    before = before_update(model, optimizer)
    gradients, (outputs, returned) = nnx.grad(loss_and_outputs, has_aux=True)(model, batch)
    optimizer.update(model, gradients)
    pieces = pieces_of_update(before, model, optimizer, gradients, data.ACCUMULATION_STEPS)
    pieces |= {"batch": batch, "losses": outputs["loss"], "activations": returned}
    return {**outputs, "gradient_norm": optax.tree.norm(gradients)}, pieces


def train(out: str | Path, *, epochs: int = data.EPOCHS, record: str | Path | None = None) -> float:
    """Train for `epochs`, write the run to `out`, and return the RMS error of the test airfoils' surface pressure."""
    training, test = data.load()
    model = twin(Surrogate(data.initial_weights()))
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
            arrays = twin_batch(jax.tree.map(jnp.asarray, batch))
            outputs, pieces = train_step(model, optimizer, arrays)
            ends_update = step % data.ACCUMULATION_STEPS == 0
            probes = probe(run.probes_due, **(pieces if ends_update else of_micro_batch(pieces)))
            run.step(update_outputs={**outputs, **probes})
            if step % report_every == 0:
                print(f"progress {step // data.ACCUMULATION_STEPS}/{updates}", flush=True)
    _, pressure = model(jnp.asarray(test.surface_position), jnp.asarray(test.conditions))
    return float(jnp.sqrt(jnp.square(pressure - test.surface_pressure).mean()))


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train the airfoil surrogate in JAX.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument("--record", type=Path, help="file that gets each accumulation step's update outputs")
    parser.add_argument("--epochs", type=int, default=data.EPOCHS)
    arguments = parser.parse_args()
    error = train(arguments.out, epochs=arguments.epochs, record=arguments.record)
    print(f"test surface pressure RMS error {error:.4f}")


if __name__ == "__main__":
    main()
