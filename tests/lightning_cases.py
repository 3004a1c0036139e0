"""Train a LightningModule that keeps its own books, in the shapes that loops have.

The books know a batch by what `training_step` got and returned, and an update by the optimizers' own `step`. Where an epoch
ends, each shape says in numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

SIZE, BATCH_SIZE = 26, 4
CONFIGS = [
    {"every_n_updates": 1, "keys": ["loss"]},
    {"every_n_updates": 2, "keys": ["loss"]},
    {"every_n_epochs": 1, "keys": ["loss"], "reduce": ["mean", "count"]},
]


def samples(size: int = SIZE) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size))


class Stream(IterableDataset[Tensor]):
    """Yield `size` samples a pass, in turn from each worker."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Tensor]:
        worker = torch.utils.data.get_worker_info()
        return iter(samples(self.size)[slice(worker.id, None, worker.num_workers) if worker else slice(None)])


class SizedStream(Stream):
    """Say that there are `says` samples, whatever there are."""

    def __init__(self, size: int = SIZE, says: int = SIZE) -> None:
        super().__init__(size)
        self.says = says

    def __len__(self) -> int:
        return self.says


class Batches:
    """Yield batches of a list, say that there are `says`, and go on in their middle after a resume."""

    def __init__(self, batches: list[Any], says: int | None = None) -> None:
        self.batches, self.says = batches, len(batches) if says is None else says
        self.at = self.start = 0

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Iterator[Any]:
        self.at, self.start = self.start % len(self.batches), 0
        while self.at < len(self.batches):
            self.at += 1
            yield self.batches[self.at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["at"]


class UnsizedBatches:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def in_batches(size: int = SIZE, batch_size: int = BATCH_SIZE) -> list[Tensor]:
    return list(samples(size).split(batch_size))


def loader(size: int = SIZE, batch_size: int = BATCH_SIZE, **arguments: Any) -> DataLoader[Tensor]:
    return DataLoader(samples(size), batch_size=batch_size, **arguments)  # type: ignore[arg-type] # it is indexed


@dataclass
class Batch:
    """What the books know of a batch; `loss` is None if it was skipped."""

    epoch: int  # Lightning's
    held: int
    loss: np.float32 | None
    steps: int = 0  # of optimizers


class CountedSGD(torch.optim.SGD):
    books: list[Batch]
    used: tuple[float, ...] = ()  # the rate of each step

    def step(self, closure: Any = None) -> Any:
        self.used += (self.param_groups[0]["lr"],)
        loss = super().step(closure)
        self.books[-1].steps += 1
        return loss


def held(batch: Any) -> int:
    """Count what a batch of this module's shapes held, one by one."""
    if isinstance(batch, dict | list | tuple):
        return sum(map(held, batch.values() if isinstance(batch, dict) else batch))
    return 0 if batch is None else sum(1 for _ in batch)


def total(batch: Any) -> Tensor:
    if isinstance(batch, dict | list | tuple):
        return torch.stack([*map(total, batch.values() if isinstance(batch, dict) else batch)]).sum()
    return torch.zeros(()) if batch is None else batch.square().sum()


class Books(pl.LightningModule):
    """Fit two numbers, and write down each batch.

    Args:
        optimizers: how many; more than one are stepped by hand.
        every: by hand, at each such batch of an epoch.
        skips: the batches, of all, for which `training_step` returns None.
        does: called in `training_step` with the module, before a batch is counted.
        rest_from: the batch of each epoch from which on the rest is left out.
    """

    def __init__(
        self,
        optimizers: int = 1,
        every: int = 1,
        skips: tuple[int, ...] = (),
        does: Callable[[Books], None] | None = None,
        rest_from: int = -1,
    ) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Parameter(torch.ones(())), torch.nn.Parameter(torch.ones(()))
        self.books: list[Batch] = []
        self.every, self.skips, self.does, self.rest_from = every, skips, does, rest_from
        self.count = optimizers
        self.automatic_optimization = optimizers == 1 and every == 1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.rest_from else None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.does is not None:
            self.does(self)
        loss = (self.first * total(batch) - self.second) ** 2 / 100
        is_skipped = len(self.books) in self.skips
        self.books.append(Batch(self.current_epoch, held(batch), None if is_skipped else np.float32(loss.item())))
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in (self.optimizers(),) if self.count == 1 else self.optimizers():
                if (batch_idx + 1) % self.every == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        return None if is_skipped else {"loss": loss}

    def configure_optimizers(self) -> Any:
        of_each = {1: [[self.first, self.second]], 2: [[self.first], [self.second]]}
        parameters = of_each.get(self.count, [[self.first], [self.second], [torch.nn.Parameter(torch.ones(()))]])
        optimizers = [CountedSGD(each, lr=1e-4) for each in parameters]
        for optimizer in optimizers:
            optimizer.books = self.books
        return optimizers


# ------------------------------------------------------------------ what the books say


def mean(losses: list[np.float32 | None]) -> float | None:
    """Return the correctly rounded mean of those that there are."""
    given = [Fraction(float(loss)) for loss in losses if loss is not None]
    if not given:
        return None
    exact = sum(given, Fraction()) / len(given)
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    distance = {float(value): (abs(Fraction(float(value)) - exact), value.view(np.uint32) % 2) for value in around}
    return min(distance, key=lambda value: distance[value])


def epochs_of(books: list[Batch]) -> tuple[int, ...]:
    """Return how many batches each epoch had, the last one too."""
    return tuple(Counter(batch.epoch for batch in books).values())


def expected(books: list[Batch], epochs: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the entries that `CONFIGS` should leave.

    Args:
        books: all batches.
        epochs: how many batches each epoch had that ended.
    """
    ends = set(np.cumsum(epochs).tolist())
    page = _Page()
    for number, batch in enumerate(books, start=1):
        page.batch(batch)
        if number in ends:
            page.end_epoch()
    page.end()
    return [entry for entry in page.entries.values() if len(entry) > 3]


class _Page:
    def __init__(self) -> None:
        self.entries: dict[int, dict[str, Any]] = {}
        self.under_way: dict[str, list[np.float32 | None]] = {"U1": [], "U2": [], "E1": []}
        self.epoch = self.update = self.sample = self.waiting = 0
        self.emitted_at = dict.fromkeys(self.under_way, -1)
        self.held: list[int] = []  # by the batches of the update under way

    def batch(self, batch: Batch) -> None:
        for losses in self.under_way.values():
            losses.append(batch.loss)
        self.held.append(batch.held)
        if batch.steps:
            self.update, self.sample = self.update + 1, self.sample + sum(self.held)
            self.held.clear()
            for n in (1, 2):
                if self.update % n == 0:
                    self.emit(f"U{n}")

    def emit(self, name: str) -> None:
        losses, entry = self.under_way[name], self.entries.setdefault(self.update, {})
        entry.update(epoch=self.epoch, update=self.update, sample=self.sample)
        value = mean(losses)
        if value is not None:
            counted = {"loss/count/E1": sum(loss is not None for loss in losses)}
            entry |= {"loss/mean/E1": value, **counted} if name == "E1" else {f"loss/{name}": value}
        losses.clear()
        self.emitted_at[name] = self.update

    def end_epoch(self) -> None:
        """Emit the epoch's mean; one without an update has no entry of its own, so it goes with the next."""
        if self.emitted_at["E1"] == self.update:
            self.waiting += 1
            return
        self.epoch, self.waiting = self.epoch + 1 + self.waiting, 0
        self.emit("E1")

    def end(self) -> None:
        """Emit the intervals under way, but for steps after an interval's end that made no update any more."""
        for name, losses in self.under_way.items():
            if losses and self.emitted_at[name] != self.update:
                self.emit(name)


def make_trainer(path: Path, *callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    others = arguments.pop("callbacks", list)()
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    return pl.Trainer(default_root_dir=path, callbacks=[*callbacks, *others], **(quiet | arguments))
