"""Train with a transformers Trainer as one of some processes; the arguments: the process, how many, the port, the folder."""

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
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from noether_torch.transformers import TrackOutputs, record

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 2, "keys": ["x"], "reduce": ["mean", "std", "sum", "min", "max", "count"]},
    {"every_n_updates": 3, "keys": ["x", "held"], "reduce": {"x": "mean", "held": "sum"}},
    {"every_n_epochs": 1, "keys": ["x"], "reduce": ["mean", "count"]},
    {"every_n_samples": 24, "keys": ["x"], "reduce": ["sum", "count"]},
]
STOPS = {
    "kind": "MetricEarlyStopCallback",
    "every_n_epochs": 1,
    "source_metric_key": "eval/x/max",
    "higher_is_better": False,
}
SAMPLES, BATCH, LIMIT = 40, 8, 60.0  # samples of all processes together; seconds


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class OwnTrainer(Trainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        x = inputs["x"]
        out = model(x)
        record(self, {"x": x[:, 0], "held": torch.tensor(len(x))})
        loss = (out - x).square().mean()
        return (loss, {"out": out}) if return_outputs else loss

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class SavesLate(TrainerCallback):
    """Ask for a checkpoint after all callbacks before it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step == 7


def data(size: int) -> list[dict[str, Tensor]]:
    return [{"x": x} for x in torch.randn(size, 1, generator=torch.Generator().manual_seed(size))]


def train(
    count: int, run: Path, *callbacks: Any, checkpoint: Path | None = None, configs: Any = (), **named: Any
) -> tuple[str, int]:
    named = {"num_train_epochs": 3, "save_strategy": "no", **named}
    arguments = TrainingArguments(
        str(run.with_name(f"{run.name}_trainer")), use_cpu=True, ddp_backend="gloo" if count > 1 else None, report_to=[],
        per_device_train_batch_size=BATCH // count, per_device_eval_batch_size=BATCH // count, eval_strategy="epoch",
        disable_tqdm=True, logging_strategy="no", label_names=["x"], **named,
    )  # fmt: skip
    tracking = TrackOutputs([*CONFIGS, *configs], run, time_limit=20)
    torch.manual_seed(0)
    trainer = OwnTrainer(
        Model(),
        arguments,
        train_dataset=data(SAMPLES),
        eval_dataset=data(16),
        callbacks=[tracking, *callbacks],  # type: ignore[arg-type]
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    assert tracking.run is not None
    return str(tracking.run.counter.cur_iteration), len(trainer.state.log_history)


def trainings(rank: int, count: int, folder: Path) -> dict[str, Any]:
    """Train through, until a metric says stop, and on from checkpoints: those of these processes, and of another number."""
    here = folder / str(count)
    found: dict[str, Any] = {"whole": train(count, here / "whole")}
    stop = {**STOPS, "patience": 1}
    found["stops"] = train(count, here / "stops", configs=[stop])
    found["late"] = train(count, here / "late", SavesLate())
    found["cut"] = train(count, here / "cut", num_train_epochs=2, save_strategy="steps", save_steps=7)
    if rank == 0:
        (here / "is_saved").touch()
    for saved in ("1", "2"):
        until_there(folder / saved / "is_saved")
        run = here / f"resumed_{saved}"
        if rank == 0:
            shutil.copytree(folder / saved / "cut", run)
        checkpoint = folder / saved / "cut_trainer" / "checkpoint-7"
        found[run.name] = train(count, run, checkpoint=checkpoint)
    return found


def until_there(path: Path) -> None:
    end = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


def main(rank: int, count: int, port: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if count > 1:  # as torchrun does
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = trainings(rank, count, folder)
    found["warnings"] = [str(each.message) for each in told]
    (folder / f"{count}_{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
