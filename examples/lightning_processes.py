"""Track a Lightning training in two processes. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.lightning_processes`; Lightning starts the second process.
"""

import sys

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from examples.digits import data
from examples.lightning_digits import Digits
from noether_core.cli import app
from noether_torch.lightning import TrackOutputs  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/lightning_processes"
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "accuracy"], "reduce": ["mean", "count"]},
    {"every_n_updates": 16, "patterns": ["_loss"], "reduce": ["mean", "std"]},
]


def main() -> bool:
    """Train for four epochs, each process with half of each batch; return whether this process is the first."""
    pl.seed_everything(0)
    loader = DataLoader(TensorDataset(*map(torch.from_numpy, data.load()[0])), batch_size=16, shuffle=True)
    options = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    options |= {"max_epochs": 4, "accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    trainer = pl.Trainer(**options, callbacks=[TrackOutputs(CALLBACKS, OUT)])  # +
    trainer.fit(Digits(), loader)
    return trainer.is_global_zero


if __name__ == "__main__":
    if main():
        app(["show", OUT], standalone_mode=False)
