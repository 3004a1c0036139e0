"""Track a training with DistributedDataParallel in two processes. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.torch_ddp`, which starts both; or with as many as you like, by
`torchrun --nproc-per-node=4 -m examples.torch_ddp`.
"""

import sys

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from examples.digits import data
from examples.launch import launch
from noether_core.cli import app
from noether_torch import Run  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/torch_ddp"
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "correct"], "reduce": {"correct": ["mean", "count"]}},
    {"every_n_updates": 16, "patterns": ["grad/"], "reduce": ["mean", "max"]},
]


def train() -> None:
    """Train a classifier of digits in this process of a group: of every batch it has a share."""
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Run(OUT, CALLBACKS, updates_per_epoch=44, effective_batch_size=32) as run:  # +
        for batch in data.batches(data.load()[0], epochs=4):
            images = torch.from_numpy(batch.images[rank::processes])
            labels = torch.from_numpy(batch.labels[rank::processes]).long()
            logits = model(images)
            loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            correct = logits.argmax(-1) == labels  # of each sample of this process: the mean is over all of them
            run.step({"loss": loss, "correct": correct, "grad": {"norm": norm}})  # +


if __name__ == "__main__":
    if launch(train):
        app(["show", OUT], standalone_mode=False)
