"""In plain loops of both frameworks and in every bridge: one's own values, evaluations with stacked steps, and the errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from trainer_cases import counting, numbers
from transformers import TrainerCallback

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.errors import DuplicateKeyError, HookOrderError, UpdateOutputError
from noether_torch import accelerate, lightning, transformers
from tests.lightning_cases import Books, loader, make_trainer

Visit = Callable[[Any], None]
UPDATES = 6
WATCH = {
    "every_n_updates": 100,
    "source_metric_key": "probe/acc",
    "higher_is_better": True,
}  # evaluations alone are looked at
CONFIGS = [
    {"every_n_updates": 1, "keys": ["v"], "missing": "skip"},
    {"kind": "BestMetricCallback", **WATCH},
    {"kind": "MetricEarlyStopCallback", "patience": 2, **WATCH},
]


def plain(front_end: Any) -> Callable[..., None]:
    def train(path: Path, configs: Any, visit: Visit) -> None:
        with front_end.Run(path, configs) as run:
            while run.counter.update < UPDATES and not run.is_finished:
                run.step({"v": 1.0})
                visit(run)

    return train


def in_accelerate(path: Path, configs: Any, visit: Visit) -> None:
    with accelerate.Run(path, configs, accelerator=Accelerator(cpu=True)) as run:
        while run.counter.update < UPDATES and not run.is_finished:
            run.step({"v": 1.0})
            visit(run)


def in_lightning(path: Path, configs: Any, visit: Visit) -> None:
    track = lightning.TrackOutputs(configs, path)

    class Visits(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            visit(track.run)

    make_trainer(path.parent, track, Visits(), max_steps=UPDATES).fit(Books(), loader())


def in_transformers(path: Path, configs: Any, visit: Visit) -> None:
    track = transformers.TrackOutputs(configs, path)

    class Visits(TrainerCallback):
        def on_step_end(self, *_: Any, **named: Any) -> None:
            visit(track.run)

    counting(path.parent, numbers(), track, Visits(), max_steps=UPDATES).train()


WAYS = {
    "JAX": plain(noether_jax),
    "PyTorch": plain(noether_torch),
    "Accelerate": in_accelerate,
    "Lightning": in_lightning,
    "transformers": in_transformers,
}
every_way = pytest.mark.parametrize("way", WAYS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
]


@every_way
def test_values_evaluations_and_stacked_steps(way: str, tmp_path: Path) -> None:
    accuracies = [0.5, 0.7, 0.6, 0.65, 0.9, 0.9]

    def visit(run: Any) -> None:
        update = run.counter.update
        run.log({"own": update})
        stacked = {"v": run.backend.from_numpy(np.float32([1, 2, 6]) * update)}
        with run.evaluate("probe"):
            run.step(stacked, steps=3)
            run.log({"acc": accuracies[update - 1]})

    WAYS[way](tmp_path / "run", CONFIGS, visit)
    series = read_run(tmp_path / "run").series
    updates = series["own"].update.tolist()
    assert updates[:4] == [1, 2, 3, 4]  # two in a row were no better than 0.7
    assert len(updates) <= 5  # a trainer may make one more before it looks
    assert series["own"].value.tolist() == updates
    assert series["probe/v"].value.tolist() == [3.0 * update for update in updates]
    best = series["probe/acc/at_best/probe/acc"]
    assert list(zip(best.update.tolist(), best.value.tolist(), strict=True))[:2] == [(1, 0.5), (2, 0.7)]


@every_way
def test_errors_are_ours_and_cost_nothing_else(way: str, tmp_path: Path) -> None:
    def visit(run: Any) -> None:
        run.log({"own": 1})
        with pytest.raises(DuplicateKeyError, match="'own' is logged twice"):
            run.log({"own": 2})
        with pytest.raises(UpdateOutputError, match="steps=4 expects a leading axis of 4"), run.evaluate("bad"):
            run.step({"v": np.zeros(3)}, steps=4)
        with run.evaluate("probe"), pytest.raises(HookOrderError, match="within run"), run.evaluate():
            pass

    WAYS[way](tmp_path / "run", CONFIGS[:1], visit)
    read = read_run(tmp_path / "run")
    assert read.series["own"].value.tolist() == [1] * UPDATES
    assert not any(key.startswith("bad/") for key in read.series)
    with pytest.raises(ValidationError, match=r"callbacks\[0\]\nkyes\n  'kyes' is no field of.*Did you mean 'keys'"):
        WAYS[way](tmp_path / "other", [{"every_n_updates": 1, "kyes": ["v"]}], visit)
    assert torch.is_grad_enabled()
