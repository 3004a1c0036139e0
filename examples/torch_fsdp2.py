"""Track a training with FSDP2 in two processes, each with a shard of every weight and gradient. The added lines end in `# +`.

Run it from the repository's root: `python -m examples.torch_fsdp2`, which starts both; or with as many as you like, by
`torchrun --nproc-per-node=4 -m examples.torch_fsdp2`.
"""

import sys

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.nn import functional

from examples.digits import data
from examples.launch import launch
from noether_core.cli import app
from noether_torch import Run  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/torch_fsdp2"
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "correct"], "reduce": {"correct": ["mean", "count"]}},
    {"every_n_updates": 16, "patterns": ["norm"], "reduce": ["mean", "max"]},
    {"every_n_updates": 44, "patterns": ["gradient/"], "reduce": ["std", "min", "max"]},
]


def train() -> None:
    """Train a classifier of digits in this process of a group: of every batch it has a share."""
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    for part in (model[0], model[2], model):
        fully_shard(part)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Run(OUT, CALLBACKS, updates_per_epoch=44, effective_batch_size=32) as run:  # +
        for batch in data.batches(data.load()[0], epochs=4):
            images = torch.from_numpy(batch.images[rank::processes])
            labels = torch.from_numpy(batch.labels[rank::processes]).long()
            logits = model(images)
            loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()
            optimizer.step()
            gradients = {name: weight.grad for name, weight in model.named_parameters()}  # DTensors: each has its shard
            # a norm of a shard is no whole number yet; with copies of the whole it is counted once, in the first process
            norms = {name: each.norm().redistribute(placements=[Replicate()]) for name, each in gradients.items()}
            correct = logits.argmax(-1) == labels
            losses = {"loss": loss, "correct": correct}
            run.step({**losses, "norm": norm, "norms": norms, "gradient": gradients})  # +


if __name__ == "__main__":
    if launch(train):
        app(["show", OUT], standalone_mode=False)
