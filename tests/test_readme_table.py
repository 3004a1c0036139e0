"""Try what the README says of other tools, with those that the tests have here."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
import wandb.util
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from noether_core import read_run
from noether_torch import Run


class Asked(TorchDispatchMode):
    """Count how often the host asks for a value: where that is on a device, it waits."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def asked(step: Callable[[torch.Tensor], object]) -> int:
    with Asked() as counted:
        for number in range(10):
            step(torch.tensor(float(number)))
    return counted.count


def test_who_asks_for_a_value_in_each_step() -> None:
    """Of ours, `test_synchronisation.py` counts on a device; values on the host are no wait, and are read at once."""
    assert asked(torchmetrics.MeanMetric().update) >= 10
    assert asked(torchmetrics.MeanMetric(nan_strategy="disable").update) == 0
    assert asked(wandb.util.json_friendly) == 10  # what wandb.log does to a tensor


def test_a_mean_in_float32_depends_on_how_it_is_split(tmp_path: Path) -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(4096, np.float32) + 1)
    means = set()
    for split in (1, 16, 4096):
        metric = torchmetrics.MeanMetric()
        assert metric.mean_value.dtype == torch.float32
        for part in values.split(split):
            metric.update(part)
        means.add(metric.compute().item())
        with Run(tmp_path / "run", [{"every_n_updates": 1, "keys": ["loss"]}], accumulation_steps=4096 // split) as run:
            for part in values.split(split):
                run.step({"loss": part})
        (ours,) = read_run(tmp_path / "run").series["loss/U1"].value
        assert ours == np.float32(values.double().mean().item())
    assert len(means) > 1


def test_means_in_float32_differ_between_frameworks() -> None:
    drawn = np.random.default_rng(0).standard_normal((50, 10_000), np.float32)
    assert any(float(torch.from_numpy(values).mean()) != float(jnp.mean(values)) for values in drawn)


class Counting(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        self.log("number", torch.tensor(float(number)), on_step=True, on_epoch=True)
        return self.weight * batch.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def logged(path: Path, column: str) -> Iterator[float]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from (float(row[column]) for row in csv.DictReader(file) if row[column])


@pytest.mark.filterwarnings("default")  # Lightning's own, of few workers
def test_lightning_logs_a_steps_value_and_means_by_epoch(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=1, log_every_n_steps=5, logger=logger, accelerator="cpu", **quiet)
    trainer.fit(Counting(), DataLoader(torch.ones(20, 1), batch_size=2))
    assert list(logged(tmp_path / "metrics.csv", "number_step")) == [4.0, 9.0]
    assert list(logged(tmp_path / "metrics.csv", "number_epoch")) == [4.5]
