"""Track a loop of Accelerate. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.accelerate_digits`.
"""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from examples.digits import data
from noether_core.cli import app
from noether_torch.accelerate import Run  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/accelerate_digits"
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "accuracy"]},
    {"every_n_updates": 5, "patterns": ["_loss"], "reduce": ["mean", "std"]},
]


class Network(nn.ModuleDict):
    """Classify a digit and reconstruct its image."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits and the reconstruction."""
        hidden = functional.relu(self["body"](images))
        return self["classify"](hidden), self["rebuild"](hidden)


def main() -> None:
    """Train a network that classifies digits and reconstructs them; 44 batches an epoch, three to an update."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    model = Network({"body": nn.Linear(64, 32), "classify": nn.Linear(32, 10), "rebuild": nn.Linear(32, 64)})
    loader = DataLoader(TensorDataset(*map(torch.from_numpy, data.load()[0])), batch_size=32, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with Run(OUT, CALLBACKS, accelerator=accelerator) as run:  # +
        for _ in range(4):
            for images, labels in loader:
                with accelerator.accumulate(model):
                    logits, rebuilt = model(images)
                    class_loss = functional.cross_entropy(logits, labels.long())
                    image_loss = functional.mse_loss(rebuilt, images)
                    accuracy = (logits.argmax(-1) == labels).float().mean()
                    loss = class_loss + 0.1 * image_loss
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                    losses = {"loss": loss, "class_loss": class_loss, "image_loss": image_loss}
                    run.step({**losses, "accuracy": accuracy})  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
