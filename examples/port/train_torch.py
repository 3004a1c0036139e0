"""Train an autoencoder of handwritten digits in PyTorch: a script as it was before it was ported; added lines end in `# +`.

Run it from the repository's root: `python -m examples.port.train_torch`.
"""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from examples.digits import data
from noether_torch import Run, twin, twin_batch, twin_path  # +

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/port/torch")
WEIGHTS = OUT.with_name("weights.npz")
UPDATES = 12


class Autoencoder(nn.Module):
    """Rebuild images of 64 pixels from 8 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)
        self.bend = nn.GELU()
        self.code = nn.Linear(32, 8)
        self.rebuild = nn.Linear(8, 64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return what images are rebuilt as, of shape (n, 64)."""
        return self.rebuild(self.code(self.bend(self.norm(self.encode(images)))))


def main() -> None:
    """Train for 12 updates of 32 digits each, from weights that are saved for the port."""
    torch.manual_seed(0)
    model = Autoencoder()
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    np.savez(WEIGHTS, **{name: value.numpy() for name, value in model.state_dict().items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with Run(twin_path(OUT), [{"kind": "ProbeCallback"}]) as run:  # +
        run.probe(twin(model), optimizer)  # +
        for batch in islice(data.batches(data.load()[0], epochs=1), UPDATES):
            images = twin_batch(torch.from_numpy(batch.images))  # +
            loss = functional.mse_loss(model(images), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step({"loss": loss}, batch={"images": images}, losses=loss)  # +


if __name__ == "__main__":
    main()
