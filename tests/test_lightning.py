from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from noether_core import HookOrderError, MissingKeyError, read_run
from noether_core.emit.capsule import read_capsule
from noether_torch import Run
from noether_torch.lightning import TrackOutputs

CONFIGS = [
    {"every_n_updates": 3, "keys": ["loss"], "patterns": ["part/"]},
    {"every_n_epochs": 1, "keys": ["loss"], "reduce": ["mean", "last", "count"]},
    {"every_n_samples": 10, "patterns": ["part/"], "reduce": "std"},
    {"every_n_epochs": 1, "id": "field", "keys": ["field"], "reduce": "last", "log_output": False, "save_output": True},
]
BATCHES, BATCH_SIZE = 7, 4

pytestmark = [
    # one process on two cores: Lightning advises more workers, a GPU, or a longer log interval
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # a resumed run's does
    # Lightning asks PyTorch for the LeafSpec check under its old name
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:DeprecationWarning"),
]


class Batches:
    """Yield an epoch's batches, and go on in its middle after a resume."""

    batch_size = BATCH_SIZE

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self._data = torch.randn(BATCHES, BATCH_SIZE, 3, generator=generator)
        self._at = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Tensor]:
        self._at %= BATCHES  # Lightning does not exhaust what has a length
        while self._at < BATCHES:
            self._at += 1
            yield self._data[self._at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self._at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._at = state["at"]


class Regression(pl.LightningModule):
    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.seen: list[tuple[int, dict[str, Any]]] = []
        self.fails_at = fails_at

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        if len(self.seen) == self.fails_at:
            raise ZeroDivisionError("on purpose")
        error = self.layer(batch) - batch.sum(1, keepdim=True)
        outputs = {"loss": error.square().mean(), "part": {"bias": error.mean(), "half": error.detach().bfloat16()}}
        outputs["field"] = error.detach()
        self.seen.append(
            (
                batch_idx,
                {
                    name: torch.utils._pytree.tree_map(lambda v: v.detach().clone(), value)
                    for name, value in outputs.items()
                },
            )
        )
        return outputs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def trainer(path: Path, *callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    return pl.Trainer(default_root_dir=path, callbacks=list(callbacks), **(quiet | arguments))


def contents(path: Path) -> tuple[Any, Any]:
    run = read_run(path)
    assert run.problems == []
    arrays = {
        (file.interval, str(file.iteration)): {name: values.tobytes() for name, values in file.load().items()}
        for file in run.arrays
    }
    return run.entries, arrays


def plain(
    path: Path, seen: list[tuple[int, dict[str, Any]]], accumulate: int, configs: Any = CONFIGS
) -> tuple[Any, Any]:
    """Return what a loop of one's own tracks of the same outputs."""
    run = Run(
        path,
        configs,
        updates_per_epoch=-(-BATCHES // accumulate),
        effective_batch_size=BATCH_SIZE * accumulate,
        accumulation_steps=accumulate,
    )
    with run:
        for batch, outputs in seen:
            run.step(outputs, samples=BATCH_SIZE, ends_update=(batch + 1) % accumulate == 0 or batch + 1 == BATCHES)
    return contents(path)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 7, 8])
def test_a_training_gives_the_numbers_of_a_plain_loop(accumulate: int, tmp_path: Path) -> None:
    model = Regression()
    callback = TrackOutputs(CONFIGS, tmp_path / "run")
    trainer(tmp_path, callback, max_epochs=3, accumulate_grad_batches=accumulate).fit(model, Batches())
    assert len(model.seen) == 3 * BATCHES
    assert contents(tmp_path / "run") == plain(tmp_path / "plain", model.seen, accumulate)
    assert "training_step" not in vars(model)
    assert callback.run is not None
    assert callback.run.counter.epoch == 3
    assert str(callback.run.counter.end_iteration) == f"U{callback.run.counter.update}"  # for Progress


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [1, 3, 4, 6, 7])
def test_a_run_resumed_in_mid_interval_gives_the_uninterrupted_numbers(
    accumulate: int, at: int, tmp_path: Path
) -> None:
    arguments = {"accumulate_grad_batches": accumulate, "max_epochs": 3}
    whole = Regression()
    trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "whole"), **arguments).fit(whole, Batches())

    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=at, save_top_k=-1, filename="{step}")
    first = Regression(fails_at=at * accumulate + 3)
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "cut"), checkpoints, **arguments).fit(first, Batches())
    checkpoint = tmp_path / "checkpoints" / f"step={at}.ckpt"
    second = Regression()
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=at)
    resumed = trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "cut"), checkpoints, **arguments)
    resumed.fit(second, Batches(), ckpt_path=checkpoint, weights_only=True)

    assert len(second.seen) < len(whole.seen)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


class Fails(pl.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            raise ZeroDivisionError("on purpose")


# Lightning would take the checkpoint of the fit before if none were given, which is not so at the first
@pytest.mark.filterwarnings("ignore:.*was called without a model")
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available")
def test_a_checkpoint_made_on_an_exception_holds_the_interval_under_way(tmp_path: Path) -> None:
    whole = Regression()
    trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "whole"), max_epochs=2).fit(whole, Batches())
    rescue = OnExceptionCheckpoint(tmp_path, "rescue")
    with pytest.raises(ZeroDivisionError):
        trainer(
            tmp_path, TrackOutputs(CONFIGS, tmp_path / "cut"), Fails(), rescue, enable_checkpointing=True, max_epochs=2
        ).fit(Regression(), Batches())
    trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "cut"), max_epochs=2).fit(
        Regression(), Batches(), ckpt_path=tmp_path / "rescue.ckpt", weights_only=True
    )  # what the exception's end gave out of the interval is superseded
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("steps", [None, 2, 0])
def test_an_exception_leaves_a_capsule(steps: int | None, tmp_path: Path) -> None:
    callback = TrackOutputs(CONFIGS, tmp_path, flight_recorder=steps)
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callback, max_epochs=2).fit(Regression(fails_at=5), Batches())
    files = list(tmp_path.glob("capsules/*"))
    assert len(files) == (steps != 0)
    for file in files:
        capsule = read_capsule(file)
        assert capsule.about["reason"]["message"] == "on purpose"
        assert {each.key for each in capsule.values} == {"loss", "part/bias", "part/half", "field"}
        assert {len(each.values) for each in capsule.values} == {steps or 5}


def test_a_second_fit_goes_on_with_the_interval(tmp_path: Path) -> None:
    configs = [{"every_n_updates": 4, "keys": ["loss"]}]
    model = Regression()
    twice = trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=1)
    twice.fit(model, Batches())
    twice.fit_loop.max_epochs = 2
    twice.fit(model, Batches())
    entries, _ = plain(tmp_path / "plain", model.seen, 1, configs)
    merged = {entry["update"]: entry for entry in read_run(tmp_path / "run").entries}
    assert [merged[entry["update"]] for entry in entries] == entries
    assert [entry["update"] for entry in entries] == [4, 8, 12, 14]


def test_max_steps_ends_within_an_epoch(tmp_path: Path) -> None:
    model = Regression()
    trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), max_steps=5, accumulate_grad_batches=2).fit(
        model, Batches()
    )
    assert contents(tmp_path / "run") == plain(tmp_path / "plain", model.seen, 2)
    last = read_run(tmp_path / "run").entries[-1]
    assert (last["epoch"], last["update"], last["sample"]) == (1, 5, 36)


def test_a_schedule_of_accumulation_ends_updates_where_lightning_does(tmp_path: Path) -> None:
    model = Regression()
    schedule = GradientAccumulationScheduler({0: 2, 1: 3})
    training = trainer(
        tmp_path,
        TrackOutputs([{"every_n_updates": 1, "keys": ["loss"], "reduce": "count"}], tmp_path / "run"),
        schedule,
        max_epochs=2,
    )
    training.fit(model, Batches())
    counts = [point.value for point in read_run(tmp_path / "run").series["loss/count/U1"]]
    assert counts == [2, 2, 2, 1, 3, 3, 1]
    assert len(counts) == training.global_step


class TwoOptimizers(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        self.manual_backward(outputs["loss"])
        if batch_idx % 2:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
        return outputs

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.parameters()]


def test_with_manual_optimization_an_update_is_a_batch_that_steps(tmp_path: Path) -> None:
    config = {"every_n_updates": 1, "keys": ["loss"], "reduce": "count"}
    trainer(tmp_path, TrackOutputs([config], tmp_path / "run"), max_epochs=2).fit(TwoOptimizers(), Batches())
    counts = read_run(tmp_path / "run").series["loss/count/U1"]
    # an epoch has 7 batches and the odd ones step: each epoch's last batch belongs to no update of that epoch
    assert [(point.value, point.epoch) for point in counts] == [(2, 0), (2, 0), (2, 1), (3, 1), (2, 1), (2, 2)]


class BareLoss(Regression):
    def training_step(self, batch: Tensor) -> Any:  # without batch_idx: Lightning must not see another signature
        return super().training_step(batch, 0)["loss"]


def test_a_bare_loss_is_tracked_undivided(tmp_path: Path) -> None:
    model = BareLoss()
    config = {"every_n_updates": 1, "keys": ["loss"]}
    trainer(tmp_path, TrackOutputs([config], tmp_path / "run"), max_steps=1, accumulate_grad_batches=3).fit(
        model, Batches()
    )
    mean = torch.stack([outputs["loss"] for _, outputs in model.seen]).double().mean().float().item()
    assert [point.value for point in read_run(tmp_path / "run").series["loss/U1"]] == [mean]


class Skips(Regression):
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else outputs


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # that is the point here
def test_a_skipped_batch_counts_and_tracks_nothing(tmp_path: Path) -> None:
    config = {"every_n_updates": 3, "keys": ["loss"], "reduce": "count"}
    trainer(tmp_path, TrackOutputs([config], tmp_path / "run"), max_steps=3).fit(Skips(), Batches())
    assert [point.value for point in read_run(tmp_path / "run").series["loss/count/U3"]] == [2]


def test_the_trainers_loggers_get_the_numbers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "csv")
    configs = [{"every_n_updates": 3, "keys": ["loss"]}]
    trainer(tmp_path, TrackOutputs(configs), logger=logger, max_epochs=1).fit(Regression(), Batches())
    assert logger.log_dir is not None
    series = read_run(Path(logger.log_dir) / "noether").series["loss/U3"]  # where path=None puts the run
    rows = [row.split(",") for row in (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()]
    column, step = rows[0].index("loss/U3"), rows[0].index("step")
    assert [(int(row[step]), float(row[column])) for row in rows[1:]] == [
        (point.update, point.value) for point in series
    ]


class Failing(CSVLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        raise OSError("disk full")


def test_a_logger_that_fails_keeps_nothing_from_the_others(tmp_path: Path) -> None:
    loggers = [Failing(tmp_path / "failing"), CSVLogger(tmp_path / "csv")]
    callback = TrackOutputs([{"every_n_updates": 3, "keys": ["loss"]}], tmp_path / "run")
    options = {"logger": loggers, "max_epochs": 1, "log_every_n_steps": 100}
    with pytest.warns(RuntimeWarning, match="gets no more entries: OSError"):
        trainer(tmp_path, callback, **options).fit(Regression(), Batches())
    assert "loss/U3" in (Path(loggers[1].log_dir) / "metrics.csv").read_text()


def test_the_callback_starts_at_the_step_of_a_checkpoint_without_its_state(tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="early")
    trainer(tmp_path, checkpoints, max_steps=4).fit(Regression(), Batches())
    config = {"every_n_updates": 2, "keys": ["loss"]}
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=4)
    resumed = trainer(tmp_path, TrackOutputs([config], tmp_path / "run"), checkpoints, max_steps=9)
    resumed.fit(Regression(), Batches(), ckpt_path=tmp_path / "early.ckpt", weights_only=True)
    assert [entry["update"] for entry in read_run(tmp_path / "run").entries] == [6, 8, 9]


def test_what_cannot_work_says_so(tmp_path: Path) -> None:
    typo = TrackOutputs([{"every_n_updates": 1, "keys": ["los"]}], tmp_path / "typo")
    with pytest.raises(MissingKeyError, match="Did you mean 'loss'"):
        trainer(tmp_path, typo, max_steps=1).fit(Regression(), Batches())


def test_a_missing_lightning_is_explained() -> None:
    script = "import sys; sys.modules['lightning'] = None; import noether_torch; import noether_torch.lightning"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr
    assert "pip install '.[lightning]'" in done.stderr


def test_the_end_of_a_run_refuses_more_steps(tmp_path: Path) -> None:
    callback = TrackOutputs(CONFIGS, tmp_path / "run")
    trainer(tmp_path, callback, max_steps=2).fit(Regression(), Batches())
    assert callback.run is not None
    with pytest.raises(HookOrderError, match="finished"):
        callback.run.step({})
