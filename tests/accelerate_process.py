"""Train with Accelerate as one of some processes; the arguments: the process, how many, the port, the folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from noether_torch.accelerate import Run

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 2, "keys": ["x"], "reduce": ["mean", "std", "sum", "min", "max", "count"]},
    {"every_n_updates": 3, "keys": ["x", "held"], "reduce": {"x": "mean", "held": "sum"}},
    {"every_n_epochs": 1, "keys": ["x"], "reduce": ["mean", "count"]},
    {"every_n_samples": 24, "keys": ["x"], "reduce": ["sum", "count"]},
]
SAMPLES, BATCH, LIMIT = 40, 8, 60.0  # samples of all processes together; seconds


class Stream(IterableDataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Any:
        return iter(self.x)


def train(
    rank: int, count: int, run_path: Path, *, size: int = SAMPLES, is_stream: bool = False, split: bool = False,
    saves_at: int = -1, checkpoint: Path | None = None, updates: int = 15,
) -> str:  # fmt: skip
    """Train in a run directory; return where the run is at the end."""
    from accelerate import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=split))
    x = torch.randn(size, 1, generator=torch.Generator().manual_seed(size))
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data: Any = Stream(x) if is_stream else TensorDataset(x)
    loader = DataLoader(data, batch_size=BATCH if split else BATCH // count)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with Run(run_path, CONFIGS, accelerator=accelerator, time_limit=20) as run:
        if checkpoint is not None:
            accelerator.load_state(str(checkpoint))
        done = run.counter.update
        per_epoch = 5
        for epoch in range(done // per_epoch, 3):
            skipped = done % per_epoch if epoch == done // per_epoch else 0
            for batch in accelerator.skip_first_batches(loader, skipped) if skipped else loader:
                x = batch if is_stream else batch[0]
                with accelerator.accumulate(model):
                    loss = (model(x) - x).square().mean()
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                    run.step({"x": x[:, 0], "held": len(x)})
                if run.counter.update == saves_at:
                    accelerator.save_state(str(run_path.with_name("saved")))
                if run.counter.update == updates:
                    break
            if run.counter.update == updates:
                break
    return str(run.counter.cur_iteration)


def trainings(rank: int, count: int, folder: Path) -> dict[str, Any]:
    """Train through, with each kind of loader, and on from checkpoints: those of these processes, and of another number."""
    here = folder / str(count)
    found: dict[str, Any] = {"whole": train(rank, count, here / "whole")}
    found["split"] = train(rank, count, here / "split", split=True)
    found["stream"] = train(rank, count, here / "stream", is_stream=True)
    found["uneven"] = train(rank, count, here / "uneven", size=37)
    found["uneven_stream"] = train(rank, count, here / "uneven_stream", size=37, is_stream=True)
    found["cut"] = train(rank, count, here / "cut", saves_at=7, updates=9)
    if rank == 0:
        (here / "is_saved").touch()
    for saved in ("1", "2"):
        until_there(folder / saved / "is_saved")
        run = here / f"resumed_{saved}"
        if rank == 0:
            shutil.copytree(folder / saved / "cut", run)
        found[run.name] = train(rank, count, run, checkpoint=folder / saved / "saved")
    return found


def until_there(path: Path) -> None:
    end = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


def main(rank: int, count: int, port: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if count > 1:  # as torchrun does
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "1"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = trainings(rank, count, folder)
    found["warnings"] = [str(each.message) for each in told]
    (folder / f"{count}_{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
