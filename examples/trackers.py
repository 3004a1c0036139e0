"""Give one run's numbers to five trackers at once, on this machine alone. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.trackers`.
"""

import sys

import torch
from torch import nn
from torch.nn import functional

from examples.digits import data
from noether_core.cli import app
from noether_torch import Run  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/trackers"
CALLBACKS = [
    {"every_n_updates": 16, "keys": ["accuracy"]},
    {"every_n_updates": 16, "patterns": ["loss"], "reduce": ["mean", "min", "max"]},
]


def main() -> None:
    """Train a network that classifies digits: four epochs of 44 batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Run(OUT, CALLBACKS, trackers=["console", "tensorboard", "wandb", "trackio", "mlflow"]) as run:  # +
        for batch in data.batches(data.load()[0], epochs=4):
            images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels).long()
            logits = model(images)
            loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            accuracy = (logits.argmax(-1) == labels).float().mean()
            run.step({"loss": loss, "accuracy": accuracy})  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
