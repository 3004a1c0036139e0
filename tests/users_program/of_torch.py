"""Use every public name of `noether_torch` as a user would, for a strict type checker and for Python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import nn

import noether_torch
from noether_torch import (
    BestMetricCallback,
    BestMetricCallbackConfig,
    LearningRateCallback,
    LearningRateCallbackConfig,
    LogWriter,
    MetricEarlyStopCallback,
    MetricEarlyStopCallbackConfig,
    OnlineLossCallback,
    OnlineLossCallbackConfig,
    ProbeCallback,
    ProbeCallbackConfig,
    ProgressCallback,
    ProgressCallbackConfig,
    Run,
    ThroughputCallback,
    ThroughputCallbackConfig,
    TrackAdditionalOutputsCallback,
    TrackAdditionalOutputsCallbackConfig,
    probe,
    twin,
    twin_batch,
    twin_path,
)

CALLBACKS = (
    LearningRateCallback,
    BestMetricCallback,
    MetricEarlyStopCallback,
    OnlineLossCallback,
    ProbeCallback,
    ProgressCallback,
    ThroughputCallback,
    TrackAdditionalOutputsCallback,
)


def train(path: Path) -> None:
    """Train by hooks, with every callback."""
    model = twin(nn.Linear(2, 1))
    assert_type(model, nn.Linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    configs = [
        TrackAdditionalOutputsCallbackConfig(every_n_updates=2, keys=["loss"], reduce=["mean", "max"]),
        LearningRateCallbackConfig(every_n_updates=2, source=optimizer),
        OnlineLossCallbackConfig(every_n_updates=2),
        ProbeCallbackConfig(),
        ProgressCallbackConfig(every_n_updates=4),
        ThroughputCallbackConfig(every_n_updates=4),
        BestMetricCallbackConfig(every_n_updates=2, source_metric_key="loss/mean/U2", higher_is_better=False),
        MetricEarlyStopCallbackConfig(
            every_n_updates=2, source_metric_key="loss/mean/U2", patience=9, higher_is_better=False
        ),
    ]
    with Run(twin_path(path), configs, effective_batch_size=2) as run:
        assert_type(run, Run)
        assert_type(run.log_writer, LogWriter)
        run.probe(model, optimizer)
        for _ in range(4):
            x = twin_batch(torch.ones(2, 2))
            assert_type(x, torch.Tensor)
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step({"loss": loss}, losses=loss)
        assert_type(run.is_finished, bool)
        assert_type(run.state_dict(), dict[str, Any])


def evaluate(path: Path) -> None:
    """Evaluate in between."""
    with Run(path, [{"every_n_updates": 2, "keys": ["loss"]}]) as run:
        for number in range(4):
            run.step({"loss": torch.tensor(float(number))})
            with run.evaluate():
                run.step({"loss": 2.0})


def main(path: Path) -> None:
    """Do all of it."""
    assert_type(noether_torch.__version__, str)
    assert_type(probe(losses=torch.ones(())), dict[str, Any])
    assert all(callback.__doc__ for callback in CALLBACKS)
    train(path / "hooks")
    evaluate(path / "evaluated")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
