"""Use every public name of `noether_jax` as a user would, for a strict type checker and for Python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np

import noether_jax
from noether_jax import (
    BestMetricCallback,
    BestMetricCallbackConfig,
    LearningRateCallback,
    LearningRateCallbackConfig,
    LogWriter,
    MetricEarlyStopCallback,
    MetricEarlyStopCallbackConfig,
    OnlineLossCallback,
    OnlineLossCallbackConfig,
    OutputTracker,
    OutputTrackerState,
    ProbeCallback,
    ProbeCallbackConfig,
    ProgressCallback,
    ProgressCallbackConfig,
    Run,
    ThroughputCallback,
    ThroughputCallbackConfig,
    TrackAdditionalOutputsCallback,
    TrackAdditionalOutputsCallbackConfig,
    Tracked,
    probe,
    track_outputs,
    twin,
    twin_batch,
    twin_path,
)

LOSS = TrackAdditionalOutputsCallbackConfig(every_n_updates=2, keys=["loss"])
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

    @jax.jit
    def train_step(w: jax.Array, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, gradient = jax.value_and_grad(lambda w: jnp.sum((w - x) ** 2))(w)
        return w - 0.25 * gradient, {"loss": loss, "lr": jnp.asarray(0.25)}

    configs = [
        LOSS,
        LearningRateCallbackConfig(every_n_updates=2, key="lr"),
        OnlineLossCallbackConfig(every_n_updates=2),
        ProbeCallbackConfig(),
        ProgressCallbackConfig(every_n_updates=4),
        ThroughputCallbackConfig(every_n_updates=4),
        BestMetricCallbackConfig(every_n_updates=2, source_metric_key="loss/U2", higher_is_better=False),
        MetricEarlyStopCallbackConfig(
            every_n_updates=2, source_metric_key="loss/U2", patience=9, higher_is_better=False
        ),
    ]
    w = twin(jnp.zeros(2))
    assert_type(w, jax.Array)
    with Run(twin_path(path), configs, effective_batch_size=2) as run:
        assert_type(run, Run)
        assert_type(run.log_writer, LogWriter)
        for _ in range(4):
            x = twin_batch(jnp.ones(2))
            w, outputs = train_step(w, x)
            probed: dict[str, Any] = probe(run.probes_due, params={"w": w}, losses=outputs["loss"])
            run.step({**outputs, **probed}, losses=outputs["loss"])
            run.log({"eval/loss": 0.5})
        assert_type(run.is_finished, bool)
        assert_type(run.state_dict(), dict[str, Any])


def track(path: Path) -> None:
    """Reduce inside of a compiled step."""
    with Run(path, [LOSS]) as run:
        tracked = run.init({"loss": jnp.zeros(())})
        assert_type(tracked, Tracked)
        train_step = jax.jit(lambda tracked, x: run.track(tracked, {"loss": x}))
        for number in range(4):
            stepped: Tracked = train_step(tracked, jnp.float32(number))
            tracked = run.step(stepped)
            assert_type(tracked, Tracked)
    tracker = track_outputs(LOSS)
    assert_type(tracker, OutputTracker)
    state = tracker.init({"loss": jnp.zeros(())})
    assert_type(state, OutputTrackerState)
    state = tracker.update(state, {"loss": jnp.ones(())})
    assert_type(tracker.compute(state), dict[str, np.ndarray[Any, Any]])


def main(path: Path) -> None:
    """Do all of it."""
    assert_type(noether_jax.__version__, str)
    assert all(callback.__doc__ for callback in CALLBACKS)
    train(path / "hooks")
    track(path / "fused")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
