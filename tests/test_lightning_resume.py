from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from noether_core import read_run
from noether_torch.lightning import TrackOutputs
from tests.lightning_cases import CONFIGS, Batches, Books, epochs_of, expected, in_batches, loader, make_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


class Unsized:
    """Be `Batches` without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self.sized = Batches(batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.sized)

    def state_dict(self) -> dict[str, int]:
        return self.sized.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sized.load_state_dict(state)


class Validated(Books):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class Saves(pl.Callback):
    """Save a checkpoint at the n-th call of a hook."""

    def __init__(self, path: Path, hook: str, n: int) -> None:
        self.path, self.n, self.after = path, n, -1
        setattr(self, hook, self.save)

    def save(self, trainer: pl.Trainer, pl_module: Books, *_: Any) -> None:
        self.n -= not trainer.sanity_checking
        if self.n == 0 and self.after < 0:
            self.after = len(pl_module.books)
            trainer.save_checkpoint(self.path)


def fails_at(n: int) -> Any:
    def fail(model: Books) -> None:
        if len(model.books) == n:
            raise ZeroDivisionError

    return fail


SHAPES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "sized": (Batches, {"max_epochs": 3}, {}),
    "sized, 2 to an update": (Batches, {"max_epochs": 3, "accumulate_grad_batches": 2}, {}),
    "sized, 3 to an update": (Batches, {"max_epochs": 3, "accumulate_grad_batches": 3}, {}),
    "unsized": (Unsized, {"max_epochs": 3}, {}),
    "unsized, 2 to an update": (Unsized, {"max_epochs": 3, "accumulate_grad_batches": 2}, {}),
    "max_steps": (Batches, {"max_steps": 18}, {}),
    "max_steps, unsized": (Unsized, {"max_steps": 18}, {}),
    "limited": (Batches, {"max_epochs": 6, "limit_train_batches": 5}, {}),
    "two optimizers": (Batches, {"max_epochs": 3}, {"optimizers": 2}),
    "two optimizers, every second batch": (Batches, {"max_epochs": 3}, {"optimizers": 2, "every": 2}),
    "schedule": (Batches, {"max_epochs": 3, "callbacks": lambda: [GradientAccumulationScheduler({0: 2, 1: 3})]}, {}),
}


def entries(path: Path) -> list[dict[str, Any]]:
    run = read_run(path)
    assert run.problems == []
    return list(run.entries)


def resume(tmp_path: Path, shape: str, saves: Saves, stop: dict[str, Any], fails: int = -1) -> tuple[Any, Any]:
    """Train until `stop`, or the batch that fails, then go on from where a checkpoint was saved; return entries and books'."""
    data, arguments, module = SHAPES[shape]
    cut = make_trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), saves, **(arguments | stop))
    first = Validated(**module, does=fails_at(fails))
    with pytest.raises(ZeroDivisionError) if fails > 0 else nullcontext():
        cut.fit(first, data(in_batches()), loader(8))
    second = Validated(**module)
    resumed = make_trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), **arguments)
    resumed.fit(second, data(in_batches()), loader(8), ckpt_path=tmp_path / "saved.ckpt", weights_only=True)
    books = first.books[: saves.after] + second.books
    epochs = epochs_of(books)
    is_cut = resumed.max_steps > 0  # 18: in an epoch's middle, whatever batch was lost
    return entries(tmp_path / "run"), expected(books, epochs[: len(epochs) - is_cut])


@pytest.mark.parametrize("at", [3, 6, 7, 8, 13])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_resumed_run_has_what_the_books_of_both_trainings_have(shape: str, at: int, tmp_path: Path) -> None:
    """Lightning itself loses a gradient under way, and the batch that it has fetched ahead: so the books are those of both."""
    saves = Saves(tmp_path / "saved.ckpt", "on_train_batch_end", at)
    got, wanted = resume(tmp_path, shape, saves, {}, fails=at + 4)
    assert got == wanted


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_end", "on_train_end"])
@pytest.mark.parametrize("shape", SHAPES)
def test_so_has_one_that_goes_on_from_an_epochs_end(shape: str, hook: str, tmp_path: Path) -> None:
    saves = Saves(tmp_path / "saved.ckpt", hook, 1)
    at_end = hook == "on_train_end"
    stop = {"limit_val_batches": 2} | ({"max_epochs": 1, "max_steps": -1} if at_end else {})
    got, wanted = resume(tmp_path, shape, saves, stop, fails=-1 if at_end else 12)
    assert (without_provisional(got, wanted) if at_end else got) == wanted


@pytest.mark.parametrize("shape", ["sized", "unsized", "max_steps", "max_steps, unsized", "two optimizers"])
def test_an_epoch_that_was_cut_short_ends_where_lightning_begins_another(shape: str, tmp_path: Path) -> None:
    got, wanted = resume(tmp_path, shape, Saves(tmp_path / "saved.ckpt", "on_train_end", 1), {"max_steps": 10})
    assert without_provisional(got, wanted) == wanted
    assert (2, 3) in [(entry["epoch"], entry.get("loss/count/E1")) for entry in got] or shape == "two optimizers"


def without_provisional(got: list[Any], wanted: list[Any]) -> list[Any]:
    """Leave out what the first training logged at its end, of intervals under way, which the second goes on with."""
    return [{name: entry[name] for name in other if name in entry} for entry, other in zip(got, wanted, strict=True)]
