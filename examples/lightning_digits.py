"""Track a Lightning training. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.lightning_digits`.
"""

import sys

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from examples.digits import data
from noether_core.cli import app
from noether_torch.lightning import TrackOutputs  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/lightning_digits"
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "accuracy"]},
    {"every_n_updates": 5, "patterns": ["_loss"], "reduce": ["mean", "std"]},
]


class Digits(pl.LightningModule):
    """Classify a digit and reconstruct its image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classify, self.rebuild = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(32, 64)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the loss and the update outputs."""
        images, labels = batch[0], batch[1].long()
        hidden = functional.relu(self.body(images))
        logits = self.classify(hidden)
        class_loss = functional.cross_entropy(logits, labels)
        image_loss = functional.mse_loss(self.rebuild(hidden), images)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        loss = class_loss + 0.1 * image_loss
        return {"loss": loss, "class_loss": class_loss, "image_loss": image_loss, "accuracy": accuracy}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    """Train for four epochs of 44 batches, three to an update; an epoch's last update has two."""
    pl.seed_everything(0)
    loader = DataLoader(TensorDataset(*map(torch.from_numpy, data.load()[0])), batch_size=32, shuffle=True)
    options = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    options |= {"max_epochs": 4, "accumulate_grad_batches": 3, "accelerator": "cpu"}
    trainer = pl.Trainer(**options, callbacks=[TrackOutputs(CALLBACKS, OUT)])  # +
    trainer.fit(Digits(), loader)


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
