"""Train the digit network in PyTorch and track its update outputs.

Run it from the repository's root: `python -m examples.digits.train_torch --out runs/digits/torch`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.digits import data
from noether_torch import Run, twin, twin_batch, twin_path

CALLBACKS = Path(__file__).with_name("callbacks.yaml")


class DigitNetwork(nn.Module):
    """Classify a digit and, as an auxiliary task, reconstruct its image."""

    def __init__(self, weights: data.Weights) -> None:
        """Build the layers and copy the initial weights into them."""
        super().__init__()
        self.hidden1 = nn.Linear(*data.LAYER_SIZES["hidden1"])
        self.hidden2 = nn.Linear(*data.LAYER_SIZES["hidden2"])
        self.classifier = nn.Linear(*data.LAYER_SIZES["classifier"])
        self.decoder = nn.Linear(*data.LAYER_SIZES["decoder"])
        # PyTorch keeps a kernel transposed, and calls it the weight.
        self.load_state_dict(
            {name.replace("kernel", "weight"): torch.from_numpy(weight.T) for name, weight in weights.items()}
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the logits, the reconstructed images and each hidden layer's activations."""
        hidden1 = functional.relu(self.hidden1(images))
        hidden2 = functional.relu(self.hidden2(hidden1))
        return self.classifier(hidden2), self.decoder(hidden2), {"hidden1": hidden1, "hidden2": hidden2}


def activation_statistics(activations: Tensor) -> dict[str, Tensor]:
    """Return the mean, the standard deviation and the share of zeros of a layer's activations."""
    zeros = (activations == 0).float()
    return {"mean": activations.mean(), "std": activations.std(correction=0), "zero_fraction": zeros.mean()}


def confusion_counts(labels: Tensor, predicted: Tensor) -> Tensor:
    """Count, in int32 of shape (true class, predicted class), how a micro-batch was classified."""
    true = functional.one_hot(labels, data.CLASSES)
    guessed = functional.one_hot(predicted, data.CLASSES)
    return (true[:, :, None] * guessed[:, None, :]).sum(dim=0, dtype=torch.int32)


def loss_and_outputs(model: DigitNetwork, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return the loss of a micro-batch and its update outputs."""
    logits, reconstruction, activations = model(images)
    cross_entropy = functional.cross_entropy(logits, labels)
    auxiliary = functional.mse_loss(reconstruction, images)
    loss = cross_entropy + data.AUXILIARY_WEIGHT * auxiliary
    predicted = logits.argmax(dim=-1)
    outputs = {
        "loss": loss,
        "cross_entropy_loss": cross_entropy,
        "auxiliary_loss": auxiliary,
        "accuracy": (predicted == labels).float().mean(),
        "activations": {layer: activation_statistics(values) for layer, values in activations.items()},
        "confusion": confusion_counts(labels, predicted),
    }
    return loss, outputs


def train_step(
    model: DigitNetwork, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, accumulation_step: int
) -> dict[str, Any]:
    """Add a micro-batch's gradients, update the weights once there are enough, and return the update outputs."""
    loss, outputs = loss_and_outputs(model, images, labels)
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
    """Train for `epochs`, write the run to `out`, and return the accuracy on the test digits."""
    training, test = data.load()
    model = twin(DigitNetwork(data.initial_weights()))
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
        for step, (images, labels) in enumerate(data.batches(training, epochs), start=1):
            accumulation_step = (step - 1) % data.ACCUMULATION_STEPS
            batch = twin_batch({"images": torch.from_numpy(images), "labels": torch.from_numpy(labels).long()})
            outputs = train_step(model, optimizer, **batch, accumulation_step=accumulation_step)
            run.step(update_outputs=outputs, batch=batch, losses=outputs["loss"])
            if step % report_every == 0:
                print(f"progress {step // data.ACCUMULATION_STEPS}/{updates}", flush=True)
    with torch.no_grad():
        logits, _, _ = model(torch.from_numpy(test.images))
    return float((logits.argmax(dim=-1) == torch.from_numpy(test.labels)).float().mean())


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train the digit network in PyTorch.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument("--record", type=Path, help="file that gets each accumulation step's update outputs")
    parser.add_argument("--epochs", type=int, default=data.EPOCHS)
    arguments = parser.parse_args()
    accuracy = train(arguments.out, epochs=arguments.epochs, record=arguments.record)
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
