"""Track a plain PyTorch loop. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.torch_plain`.
"""

import sys

import torch
from torch import nn
from torch.nn import functional

from examples.digits import data
from noether_core.cli import app
from noether_torch import Run  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/torch_plain"
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "accuracy"]},
    {"every_n_updates": 16, "patterns": ["_loss", "grad/"], "reduce": ["mean", "max"]},
]


def main() -> None:
    """Train a network that classifies digits and reconstructs them: four epochs of 44 batches."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(64, 32), "classify": nn.Linear(32, 10), "rebuild": nn.Linear(32, 64)})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Run(OUT, CALLBACKS, updates_per_epoch=44, effective_batch_size=32) as run:  # +
        for batch in data.batches(data.load()[0], epochs=4):
            images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels).long()
            hidden = functional.relu(model["body"](images))
            logits = model["classify"](hidden)
            class_loss = functional.cross_entropy(logits, labels)
            image_loss = functional.mse_loss(model["rebuild"](hidden), images)
            loss = class_loss + 0.1 * image_loss
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            accuracy = (logits.argmax(-1) == labels).float().mean()
            losses = {"loss": loss, "class_loss": class_loss, "image_loss": image_loss}
            run.step({**losses, "accuracy": accuracy, "grad": {"norm": norm}})  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
