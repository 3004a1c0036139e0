"""Train with Lightning as one of some processes; the arguments: the process, how many, the port, the folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from noether_torch.lightning import TrackOutputs

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 2, "keys": ["x"], "reduce": ["mean", "std", "sum", "min", "max", "count"]},
    {"every_n_updates": 3, "keys": ["x", "held"], "reduce": {"x": "mean", "held": "sum"}},
    {"every_n_epochs": 1, "keys": ["x"], "reduce": ["mean", "count"]},
    {"every_n_samples": 24, "keys": ["x"], "reduce": ["sum", "count"]},
]
BY_RANK = {"kind": "MetricEarlyStopCallback", "every_n_epochs": 1, "source_metric_key": "eval/rank"}
STOPS = {**BY_RANK, "higher_is_better": False, "patience": 1}
SAMPLES, BATCH, LIMIT = 40, 8, 60.0  # samples of all processes together; seconds


class Model(pl.LightningModule):
    """Return numbers that are of the data alone, and so the same however many processes share them."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer, self.fails, self.batches = nn.Linear(1, 1), fails, 0

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        (x,) = batch
        self.batches += 1
        if self.fails and self.batches == 4 and self.global_rank == self.trainer.world_size - 1:
            raise ZeroDivisionError("on purpose")
        return {"loss": (self.layer(x) - x).square().mean(), "x": x[:, 0], "held": torch.tensor(len(x))}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        (x,) = batch
        epoch = self.current_epoch  # what differs by process falls in the first one, and rises in the others
        self.log("rank", float(epoch if self.global_rank else -epoch))
        return {"x": 2 * x[:, 0]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(rank: int, count: int, size: int = SAMPLES) -> DataLoader[Any]:
    data = TensorDataset(torch.randn(size, 1, generator=torch.Generator().manual_seed(size)))
    sampler: Any = DistributedSampler(data, count, rank, shuffle=False) if count > 1 else None
    return DataLoader(data, batch_size=BATCH // count, sampler=sampler)


def train(
    rank: int, count: int, run: Path, *callbacks: pl.Callback, configs: Any = (), epochs: int = 3, **arguments: Any
) -> str:
    """Train in a run directory; return where the run is at the end."""
    trainer = pl.Trainer(
        max_epochs=epochs, num_sanity_val_steps=1, accelerator="cpu", devices=count, strategy="ddp" if count > 1 else "auto",
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=bool(callbacks),
        callbacks=[*callbacks, tracking := TrackOutputs([*CONFIGS, *configs], run, time_limit=20)],
    )  # fmt: skip
    if arguments:
        arguments["weights_only"] = True
    model = Model(fails=run.name == "fails")
    trainer.fit(model, loader(rank, count), loader(rank, count, 16), **arguments)
    assert tracking.run is not None
    return str(tracking.run.counter.cur_iteration)


def trainings(rank: int, count: int, folder: Path) -> dict[str, str]:
    """Train through, until a metric says stop, and on from checkpoints: those of these processes, and of another number."""
    here = folder / str(count)
    found = {"whole": train(rank, count, here / "whole"), "stops": train(rank, count, here / "stops", configs=[STOPS])}
    saving = ModelCheckpoint(here, "{epoch}", save_top_k=-1)
    found["cut"] = train(rank, count, here / "cut", saving, epochs=2)
    if rank == 0:
        (here / "is_saved").touch()
    for saved in ("1", "2"):
        until_there(folder / saved / "is_saved")
        run = here / f"resumed_{saved}"
        if rank == 0:
            shutil.copytree(folder / saved / "cut", run)
        found[run.name] = train(rank, count, run, ckpt_path=folder / saved / "epoch=0.ckpt")
    return found


def until_there(path: Path) -> None:
    end = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


def main(rank: int, count: int, port: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if count > 1:  # as torchrun does
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "GROUP_RANK": "0"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ["TORCHELASTIC_RUN_ID"] = "tests"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found: dict[str, Any] = {**trainings(rank, count, folder)}
        found["warnings"] = [str(each.message) for each in told]
        if count > 1:
            try:
                train(rank, count, folder / str(count) / "fails")
            except Exception as error:
                found["fails"] = repr(error)
    (folder / f"{count}_{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
