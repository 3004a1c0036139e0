"""Every kind of callback works in a Lightning training, and so do validations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from noether_core import NoetherError, read_run
from noether_torch import (
    BestMetricCallbackConfig,
    LearningRateCallbackConfig,
    MetricEarlyStopCallbackConfig,
    OnlineLossCallbackConfig,
    ProgressCallbackConfig,
    ThroughputCallbackConfig,
    TrackAdditionalOutputsCallbackConfig,
)
from noether_torch.lightning import TrackOutputs
from tests.lightning_cases import Batches, Books, in_batches, loader, make_trainer, mean

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


def series(path: Path, key: str) -> list[tuple[int, Any]]:
    return [(point.update, point.value) for point in read_run(path).series[key]]


class Validated(Books):
    """Validate: the loss of a batch is told by hand, by validation and batch."""

    def __init__(self, told: list[list[float]], logs: bool = False, returns: bool = True, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.told, self.logs, self.returns, self.number = told, logs, returns, -1

    def on_validation_epoch_start(self) -> None:
        self.number += not self.trainer.sanity_checking

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss = torch.tensor(1e6 if self.trainer.sanity_checking else self.told[self.number][batch_idx])
        if self.logs:
            self.log("val_loss", loss, batch_size=1)
            self.log("score", -loss, batch_size=1)
        return {"loss": loss, "score": torch.tensor(7.0)} if self.returns else None


WATCH = {"source_metric_key": "eval/loss", "higher_is_better": False}
EARLY_STOP = {"kind": "MetricEarlyStopCallback", "patience": 2, **WATCH}
BEST = {"kind": "BestMetricCallback", "target_metric_keys": ["loss/E1"], **WATCH}
LOSS = {"every_n_epochs": 1, "keys": ["loss"]}
TOLD = [[4.0, 2.0], [1.0, 2.0], [3.0, 1.0], [2.5, 2.5], [0.0, 0.0]]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_best_metric_and_early_stop_watch_a_validation(order: int, tmp_path: Path) -> None:
    configs = [LOSS, BEST | {"every_n_epochs": 1}, EARLY_STOP | {"every_n_epochs": 1}]
    configs = configs[order:] + configs[:order]
    module = Validated(TOLD)
    training = make_trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=9)
    training.fit(module, loader(), loader(8))
    assert series(tmp_path / "run", "eval/loss") == [(7, 3.0), (14, 1.5), (21, 2.0), (28, 2.5)]
    losses = dict(series(tmp_path / "run", "loss/E1"))
    best = series(tmp_path / "run", "loss/E1/at_best/eval/loss")
    assert best == [(7, losses[7]), (14, losses[14])]
    assert (training.current_epoch, len(module.books)) == (4, 28)
    assert training.should_stop


@pytest.mark.parametrize("watched", ["loss/U2", "loss/E1", "mine"])
def test_early_stop_stops_the_trainer_wherever_the_metric_comes_from(watched: str, tmp_path: Path) -> None:
    unit = {"every_n_epochs": 1} if watched == "loss/E1" else {"every_n_updates": 2}
    stop = {**EARLY_STOP, **unit, "source_metric_key": watched, "min_delta": 1e6}
    track = TrackOutputs([stop, {**unit, "keys": ["loss"]}], tmp_path / "run")

    class Logs(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            assert track.run is not None
            if watched == "mine":
                track.run.log({"mine": 1.0})

    module = Books()
    make_trainer(tmp_path, track, Logs(), max_epochs=9).fit(module, loader())
    # the first is the best; two more are no better; what is logged after the hook is seen by the next one
    assert len(module.books) == {"loss/U2": 6, "loss/E1": 21, "mine": 7}[watched]


def test_a_training_that_was_stopped_stays_so_when_resumed(tmp_path: Path) -> None:
    stop = {**EARLY_STOP, "every_n_updates": 1, "source_metric_key": "loss/U1", "min_delta": 1e6}
    configs = [stop, {"every_n_updates": 1, "keys": ["loss"]}]
    first = make_trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=2)
    first.fit(Books(), loader())
    first.save_checkpoint(tmp_path / "end.ckpt")
    module = Books()
    again = make_trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=2)
    again.fit(module, loader(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    assert module.books == []
    assert [entry["update"] for entry in read_run(tmp_path / "run").entries] == [1, 2, 3]


class Losses(pl.LightningModule):
    def __init__(self, by_hand: bool, total: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.automatic_optimization, self.total = not by_hand, total
        self.seen: list[dict[str, Any]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        d_loss, g_loss = (self.weight * batch).square().mean(), (self.weight - batch).abs().mean()
        outputs = {
            "loss": d_loss + g_loss,
            "d_loss": d_loss,
            "g_loss": g_loss.detach(),
            "loss_map": batch,
            "accuracy": 0.5,
        }
        if not self.automatic_optimization:
            self.manual_backward(outputs["loss"])
            self.optimizers().step()
        self.seen.append({name: value.detach().clone() for name, value in outputs.items() if name.endswith("loss")})
        return outputs if self.total else {name: value for name, value in outputs.items() if name != "loss"}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.weight], lr=0.01)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("by_hand", "total"), [(False, True), (True, True), (True, False)])
def test_online_loss_gets_what_training_step_returned(
    by_hand: bool, total: bool, accumulate: int, tmp_path: Path
) -> None:
    if by_hand and accumulate > 1:
        pytest.skip("Lightning accumulates nothing by hand")
    module = Losses(by_hand, total)
    config = {"kind": "OnlineLossCallback", "every_n_epochs": 1}
    training = make_trainer(
        tmp_path, TrackOutputs([config], tmp_path / "run"), max_epochs=1, accumulate_grad_batches=accumulate
    )
    training.fit(module, loader())
    run = read_run(tmp_path / "run")
    names = {"d_loss": "d_loss", "g_loss": "g_loss"} | ({"loss": "total"} if total else {})
    assert {key: [point.value for point in run.series[key]] for key in run.series} == {
        f"loss/online/{log}/E1": [mean([each[name].numpy() for each in module.seen])] for name, log in names.items()
    }


class Scheduled(Books):
    """Set the rate of each optimizer, by a scheduler after the step or by hand before it."""

    def configure_optimizers(self) -> Any:
        optimizers = super().configure_optimizers()
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in optimizers]
        if len(optimizers) == 2:
            return optimizers, schedulers
        return {"optimizer": optimizers[0], "lr_scheduler": {"scheduler": schedulers[0], "interval": "step"}}

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.automatic_optimization:
            for scheduler in self.lr_schedulers():
                scheduler.step()


@pytest.mark.parametrize("optimizers", [1, 2])
def test_the_learning_rate_is_the_one_that_the_step_used(optimizers: int, tmp_path: Path) -> None:
    module = Scheduled(optimizers)
    config = {"kind": "LearningRateCallback", "every_n_updates": 2}
    make_trainer(tmp_path, TrackOutputs([config], tmp_path / "run"), max_steps=5 * optimizers).fit(module, loader())
    for at in range(optimizers):
        key = "optim/lr/U2" if optimizers == 1 else f"optim/lr/{at}/U2"
        used = module.trainer.optimizers[at].used
        assert used == tuple(1e-4 * 0.5**n for n in range(5))
        assert series(tmp_path / "run", key) == [(2, used[1]), (4, used[3]), (5, used[4])]


def test_throughput_and_progress(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    configs = [{"kind": "ThroughputCallback", "every_n_updates": 3}, {"kind": "ProgressCallback", "every_n_updates": 7}]
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=2).fit(Books(), loader())
    rates = read_run(tmp_path / "run").series
    ratio = rates["profiling/samples_per_second/U3"].value / rates["profiling/updates_per_second/U3"].value
    assert ratio.round(6).tolist() == [4, 4, round(10 / 3, 6), 4, 3]  # the seventh batch has two
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ProgressCallback")]
    assert [line.split(", ")[0] for line in said] == ["E1_U7_S26 of U14: 50.0 %", "E2_U14_S52 of U14: 100.0 %"]


def test_an_end_that_was_estimated_stops_nothing(tmp_path: Path) -> None:
    """`len` says 5, and Lightning makes 5 of the 7; then the length is found to be longer."""
    configs = [{"kind": "ProgressCallback", "every_n_updates": 1}, {"every_n_updates": 1, "keys": ["loss"]}]

    class Grows(Batches):
        def __len__(self) -> int:
            return 5 if self.at == 0 else 7

    module = Books()
    training = make_trainer(
        tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=2, reload_dataloaders_every_n_epochs=1
    )
    data = Grows(in_batches())
    training.fit(module, data)
    assert len(module.books) == 12
    assert read_run(tmp_path / "run").entries[-1]["update"] == 12


KINDS = [
    OnlineLossCallbackConfig(every_n_updates=1),
    LearningRateCallbackConfig(every_n_updates=1),
    ThroughputCallbackConfig(every_n_updates=1),
    ProgressCallbackConfig(every_n_updates=1),
    BestMetricCallbackConfig(every_n_updates=1, source_metric_key="loss/U1", higher_is_better=False),
    MetricEarlyStopCallbackConfig(every_n_updates=1, source_metric_key="loss/U1", higher_is_better=False, patience=99),
    TrackAdditionalOutputsCallbackConfig(every_n_updates=1, keys=["loss"], save_output=True),
]


@pytest.mark.parametrize("optimizers", [1, 2])
@pytest.mark.parametrize("unit", ["every_n_updates", "every_n_epochs", "every_n_samples"])
def test_every_kind_works_at_every_interval(unit: str, optimizers: int, tmp_path: Path) -> None:
    fields = [(type(each), each.model_dump(exclude_unset=True, exclude={"every_n_updates"})) for each in KINDS]
    configs = [kind.model_validate({**given, unit: 1}) for kind, given in fields]
    make_trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=2).fit(Books(optimizers), loader())
    run = read_run(tmp_path / "run")
    end = {"every_n_updates": "U1", "every_n_epochs": "E1", "every_n_samples": "S1"}[unit]
    assert len(run.series[f"loss/{end}"]) == len(run.arrays) == (2 if unit == "every_n_epochs" else 14)
    rate = "optim/lr" if optimizers == 1 else "optim/lr/1"
    assert {f"{rate}/{end}", f"loss/online/total/{end}"} < set(run.series)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "LearningRateCallback", "every_n_updates": 1, "key": "lr", "source": abs}, "both key and source"),
        ({"kind": "NoSuchCallback", "every_n_updates": 1}, "NoSuchCallback"),
        ({"every_n_updates": 1}, "keys"),
        ("absent.yaml", "absent.yaml"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_construction(config: Any, message: str) -> None:
    with pytest.raises((NoetherError, ValueError), match=message):
        TrackOutputs(config if isinstance(config, str) else [config])


# ------------------------------------------------------------------ validation


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("logs", [False, True])
def test_what_a_validation_returns_and_logs_comes_through(logs: bool, returns: bool, tmp_path: Path) -> None:
    module = Validated(TOLD, logs, returns)
    configs = [{"every_n_updates": 7, "keys": ["loss"]}, {"every_n_updates": 7, "keys": ["score"], "missing": "skip"}]
    track = TrackOutputs(configs, tmp_path / "run")
    make_trainer(tmp_path, track, max_epochs=2).fit(module, loader(), loader(8))
    found = {key: series(tmp_path / "run", key) for key in read_run(tmp_path / "run").series if key.startswith("eval/")}
    expected: dict[str, Any] = {}
    if returns:  # what is tracked goes before what is logged
        expected |= {"eval/loss": [(7, 3.0), (14, 1.5)], "eval/score": [(7, 7.0), (14, 7.0)]}
    if logs:
        expected = {"eval/val_loss": [(7, 3.0), (14, 1.5)], "eval/score": [(7, -3.0), (14, -1.5)]} | expected
    assert found == expected
    losses = [batch.loss for batch in module.books]
    assert series(tmp_path / "run", "loss/U7") == [(7, mean(losses[:7])), (14, mean(losses[7:]))]


@pytest.mark.parametrize(("arguments", "updates"), [
    ({"val_check_interval": 2}, [2, 4, 6, 9, 11, 13]),
    ({"val_check_interval": 2, "accumulate_grad_batches": 4}, [0, 1, 2, 3]),  # one to an update, however many come
    ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6, 9, 12]),
    ({"check_val_every_n_epoch": 2}, [14]),
])  # fmt: skip
def test_validations_come_where_lightning_has_them(arguments: Any, updates: list[int], tmp_path: Path) -> None:
    module = Validated([[1.0, 2.0]] * 9)
    make_trainer(tmp_path, TrackOutputs([LOSS], tmp_path / "run"), max_epochs=2, **arguments).fit(
        module, loader(), loader(8)
    )
    assert series(tmp_path / "run", "eval/loss") == [(update, 1.5) for update in updates]


def test_a_validation_that_fails_leaves_what_was_logged(tmp_path: Path) -> None:
    module = Validated([[1.0, 2.0], [3.0]])
    with pytest.raises(IndexError):
        make_trainer(tmp_path, TrackOutputs([LOSS], tmp_path / "run"), max_epochs=2).fit(module, loader(), loader(8))
    run = read_run(tmp_path / "run")
    assert [(entry["epoch"], entry["update"]) for entry in run.entries] == [(1, 7), (2, 14)]
    assert series(tmp_path / "run", "eval/loss") == [(7, 1.5)]


def test_a_validation_outside_of_training_is_none_of_the_run(tmp_path: Path) -> None:
    module = Validated(TOLD)
    track = TrackOutputs([LOSS], tmp_path / "run")
    training = make_trainer(tmp_path, track, max_epochs=1)
    training.validate(module, loader(8))
    training.fit(module, loader(), loader(8))
    training.validate(module, loader(8))
    assert series(tmp_path / "run", "eval/loss") == [(7, 1.5)]  # the second of three


def test_the_config_of_the_docs_watches_a_validation(tmp_path: Path) -> None:
    page = Path("docs/lightning.md").read_text(encoding="utf-8")
    (tmp_path / "callbacks.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    module = Validated([[4.0, 2.0], *[[5.0, 5.0]] * 9])
    track = TrackOutputs(tmp_path / "callbacks.yaml", tmp_path / "run")
    make_trainer(tmp_path, track, max_epochs=9).fit(module, loader(), loader(8))
    assert len(module.books) == 28  # the first is the best; three more are no better
    run = read_run(tmp_path / "run")
    assert {"loss/E1/at_best/eval/loss", "optim/lr/E1", "loss/online/total/E1", "eval/loss"} < set(run.series)
