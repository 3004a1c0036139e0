"""Train a transformers `Trainer` on numbers, and keep books of what it does, apart from all that it says.

The books know batches by what `compute_loss` got, updates by the optimizer's steps, and a pass's end by the samples seen in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from noether_torch.transformers import record

CONFIGS = [
    {"every_n_updates": 1, "keys": ["v"]},
    {"every_n_updates": 2, "keys": ["v"]},
    {"every_n_epochs": 1, "keys": ["v"], "reduce": ["mean", "count"]},
]
SIZE, BATCH_SIZE = 26, 4


def numbers(size: int = SIZE) -> list[dict[str, Tensor]]:
    return [{"v": torch.tensor(float(at))} for at in range(size)]


class Stream(IterableDataset):
    """Yield `size` samples a pass, whatever the length says."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        mine = slice(0, None) if worker is None else slice(worker.id, None, worker.num_workers)
        return iter(numbers(self.size)[mine])


class SizedStream(Stream):
    def __init__(self, size: int, says: int | None = None) -> None:
        super().__init__(size)
        self.says = size if says is None else says

    def __len__(self) -> int:
        return self.says


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, v: Tensor) -> Any:
        return {"loss": (self.weight * v * 1e-4).mean()}


@dataclass
class Books:
    """What happened, in order: ("batch", values), and "update" for an optimizer's step."""

    pass_size: int
    happened: list[Any] = field(default_factory=list)

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries that this gives."""
        found: dict[int, dict[str, Any]] = {}
        update = epoch = sample = seen = ended = 0
        of_update: list[float] = []
        of_two: list[float] = []
        of_epoch: list[float] = []

        def note(**values: Any) -> None:
            found.setdefault(update, {}).update(
                {"epoch": epoch, "update": update, "sample": sample},
                **{k.replace("_", "/"): v for k, v in values.items()},
            )

        pending = 0  # samples since the last update
        events = [*self.happened, None]
        for event, after in zip(events, [*events[1:], None], strict=True):
            if isinstance(event, list):
                pending += len(event)
                seen += len(event)
                for values in (of_update, of_two, of_epoch):
                    values.append(sum(event))
            elif event == "update":
                update, sample, pending = update + 1, sample + pending, 0
                note(v_U1=mean(of_update))
                of_update.clear()
                if update % 2 == 0:
                    note(v_U2=mean(of_two))
                    of_two.clear()
            is_pass = seen == self.pass_size and after != "update"
            seen = 0 if is_pass else seen
            is_pass = is_pass and update > ended  # one without an update is none
            if is_pass or (event is None and of_epoch and "v/count/E1" not in found[update]):
                epoch, ended = epoch + is_pass, update
                note(v_mean_E1=mean(of_epoch), v_count_E1=len(of_epoch))
                of_epoch.clear()
        if update % 2:
            note(v_U2=mean(of_two))
        return list(found.values())


def mean(values: list[float]) -> float:
    return float(np.float32(float(Fraction(sum(map(Fraction, values))) / len(values))))


class Counting(Trainer):
    """Record the sum of each batch, and say in the books what came."""

    books: Books
    fails_at: dict[int, BaseException]
    says_samples = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if model.training:
            batches = sum(isinstance(event, list) for event in self.books.happened)
            if batches in self.fails_at:
                raise self.fails_at.pop(batches)
            self.books.happened.append(inputs["v"].tolist())
        record(self, {"v": inputs["v"].sum()}, samples=len(inputs["v"]) if self.says_samples else None)
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


def counting(
    path: Path, data: Any, *callbacks: Any, books: Books | None = None, kind: type[Counting] = Counting, **given: Any
) -> Counting:
    """Return a trainer; its arguments beyond these are `TrainingArguments`'."""
    loader = {name: given.pop(name) for name in ("data_collator", "compute_metrics", "eval_dataset") if name in given}
    arguments = TrainingArguments(
        str(path / "output"),
        **{
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            "per_device_train_batch_size": BATCH_SIZE,
            "num_train_epochs": 3,
            "dataloader_pin_memory": False,
            **given,
        },
    )
    model = Model()
    made = kind(
        model,
        arguments,
        train_dataset=data,
        callbacks=list(callbacks),
        optimizers=(torch.optim.SGD(model.parameters(), 0.1), None),
        **loader,
    )
    made.books, made.fails_at = books or Books(SIZE), {}
    made.optimizer.register_step_post_hook(lambda *_: made.books.happened.append("update"))
    return made


def row(name: str, entries: list[dict[str, Any]]) -> str:
    """Return what a page says of a loop that logged these entries."""
    befores = [{"epoch": 0}, *entries]
    ends = [entry for before, entry in zip(befores, entries, strict=False) if entry["epoch"] > before["epoch"]]
    means = ", ".join(str(entry["v/count/E1"]) for entry in entries if "v/count/E1" in entry)
    at = ", ".join(str(entry["update"]) for entry in ends)
    samples = ", ".join(str(entry["sample"]) for entry in ends)
    last = entries[-1]
    return f"| {name} | {last['epoch']}: {at} | {last['update']} | {last['sample']}: {samples} | {means} |"
