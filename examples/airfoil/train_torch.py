"""Train the airfoil surrogate in PyTorch and track its update outputs.

Run it from the repository's root: `python -m examples.airfoil.train_torch --out runs/airfoil/torch`.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.airfoil import data
from noether_torch import Run, twin, twin_batch, twin_path

CALLBACKS = Path(__file__).with_name("callbacks.yaml")


class Surrogate(nn.Module):
    """Predict the flow at a point from its position and the airfoil's conditions."""

    def __init__(self, weights: data.Weights) -> None:
        """Build the layers and copy the initial weights into them."""
        super().__init__()
        self.hidden1 = nn.Linear(*data.LAYER_SIZES["hidden1"])
        self.hidden2 = nn.Linear(*data.LAYER_SIZES["hidden2"])
        self.hidden3 = nn.Linear(*data.LAYER_SIZES["hidden3"])
        self.flow = nn.Linear(*data.LAYER_SIZES["flow"])
        # PyTorch keeps a kernel transposed, and calls it the weight.
        self.load_state_dict(
            {name.replace("kernel", "weight"): torch.from_numpy(weight.T) for name, weight in weights.items()}
        )

    def forward(self, position: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity (n, points, 2) and the pressure coefficient (n, points)."""
        conditions = conditions[:, None, :].expand(*position.shape[:2], data.CONDITIONS)
        hidden = torch.tanh(self.hidden1(torch.cat([position, conditions], dim=-1)))
        hidden = torch.tanh(self.hidden2(hidden))
        hidden = torch.tanh(self.hidden3(hidden))
        predicted = self.flow(hidden)
        return predicted[..., :2], predicted[..., 2]


def velocity_and_divergence(model: Surrogate, position: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the velocity (n, points, 2) and its divergence (n, points), from the model's own derivatives."""
    # A point's velocity depends on no other point, so one pullback per component gives all points' gradients.
    predicted, pullback, *_ = torch.func.vjp(lambda at: model(at, conditions)[0], position)
    (u_gradient,) = pullback(torch.tensor([1.0, 0.0]).expand_as(position))
    (v_gradient,) = pullback(torch.tensor([0.0, 1.0]).expand_as(position))
    return predicted, u_gradient[..., 0] + v_gradient[..., 1]


def loss_and_outputs(model: Surrogate, batch: data.Batch[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a micro-batch and its update outputs."""
    velocity, divergence = velocity_and_divergence(model, batch.volume_position, batch.conditions)
    _, pressure = model(batch.surface_position, batch.conditions)
    pressure_error = pressure - batch.surface_pressure
    velocity_error = velocity - batch.volume_velocity
    surface_pressure_loss = torch.square(pressure_error).mean()
    volume_velocity_loss = torch.square(velocity_error).mean()
    continuity_loss = torch.square(divergence).mean()
    loss = surface_pressure_loss + volume_velocity_loss + data.CONTINUITY_WEIGHT * continuity_loss
    outputs = {
        "loss": loss,
        "surface_pressure_loss": surface_pressure_loss,
        "volume_velocity_loss": volume_velocity_loss,
        "continuity_residual": torch.sqrt(continuity_loss),
        "surface_pressure_error": torch.abs(pressure_error),
        "volume_velocity_error": torch.linalg.vector_norm(velocity_error, dim=-1),
    }
    return loss, outputs


def train_step(
    model: Surrogate, optimizer: torch.optim.Optimizer, batch: data.Batch[Tensor], accumulation_step: int
) -> dict[str, Tensor]:
    """Add a micro-batch's gradients, update the weights once there are enough, and return the update outputs."""
    loss, outputs = loss_and_outputs(model, batch)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        share = gradient / data.ACCUMULATION_STEPS
        parameter.grad = share if parameter.grad is None else parameter.grad + share
    if accumulation_step == data.ACCUMULATION_STEPS - 1:
        optimizer.step()
        optimizer.zero_grad()
    return {**outputs, "gradient_norm": nn.utils.get_total_norm(gradients)}


def train(out: str | Path, *, epochs: int = data.EPOCHS, record: str | Path | None = None) -> float:
    """Train for `epochs`, write the run to `out`, and return the RMS error of the test airfoils' surface pressure."""
    training, test = data.load()
    model = twin(Surrogate(data.initial_weights()))
    optimizer = torch.optim.Adam(model.parameters(), lr=data.LEARNING_RATE)
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
        run.probe(model, optimizer)
        for step, arrays in enumerate(data.batches(training, epochs), start=1):
            accumulation_step = (step - 1) % data.ACCUMULATION_STEPS
            batch = twin_batch(data.Batch(*map(torch.from_numpy, arrays)))
            outputs = train_step(model, optimizer, batch, accumulation_step)
            run.step(update_outputs=outputs, batch=batch, losses=outputs["loss"])
            if step % report_every == 0:
                print(f"progress {step // data.ACCUMULATION_STEPS}/{updates}", flush=True)
    with torch.no_grad():
        _, pressure = model(torch.from_numpy(test.surface_position), torch.from_numpy(test.conditions))
    return float(torch.sqrt(torch.square(pressure - torch.from_numpy(test.surface_pressure)).mean()))


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train the airfoil surrogate in PyTorch.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument("--record", type=Path, help="file that gets each accumulation step's update outputs")
    parser.add_argument("--epochs", type=int, default=data.EPOCHS)
    arguments = parser.parse_args()
    error = train(arguments.out, epochs=arguments.epochs, record=arguments.record)
    print(f"test surface pressure RMS error {error:.4f}")


if __name__ == "__main__":
    main()
