"""Use every public name of `noether_core` as a user would, for a strict type checker and for Python."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, assert_type

import noether_core
from noether_core import (
    BestMetricCallback,
    BestMetricCallbackConfig,
    CallbackBase,
    CallbackBaseConfig,
    Capsule,
    ConfigFileError,
    DuplicateKeyError,
    HookOrderError,
    Interval,
    LearningRateCallbackConfig,
    LogWriter,
    MetricEarlyStopCallback,
    MetricEarlyStopCallbackConfig,
    MissingDependencyError,
    MissingKeyError,
    NoetherError,
    NonFiniteError,
    OnlineLossCallbackConfig,
    PeriodicCallback,
    PeriodicCallbackConfig,
    ProbeCallbackConfig,
    ProgressCallback,
    ProgressCallbackConfig,
    RunDirectoryError,
    RunFormatError,
    RunLockedError,
    RunReader,
    ScheduleError,
    ThroughputCallback,
    ThroughputCallbackConfig,
    TrackAdditionalOutputsCallbackConfig,
    Tracker,
    TrainingIteration,
    UpdateCounter,
    UpdateOutputError,
    export_run,
    load_callbacks,
    read_capsule,
    read_run,
)

ERRORS: tuple[type[NoetherError], ...] = (
    ConfigFileError,
    DuplicateKeyError,
    HookOrderError,
    MissingDependencyError,
    MissingKeyError,
    NonFiniteError,
    RunDirectoryError,
    RunFormatError,
    RunLockedError,
    ScheduleError,
    UpdateOutputError,
)
CONFIGS: tuple[CallbackBaseConfig, ...] = (
    LearningRateCallbackConfig(every_n_updates=1, key="lr"),
    OnlineLossCallbackConfig(every_n_epochs=1),
    ProbeCallbackConfig(),
    ProgressCallbackConfig(every_n_updates=1),
    ThroughputCallbackConfig(every_n_updates=1),
    TrackAdditionalOutputsCallbackConfig(every_n_updates=2, keys=["loss"], reduce="mean"),
)


class Printing:
    """Print entries: a tracker needs no base class."""

    def log(self, entry: Mapping[str, Any]) -> None:
        """Take one entry."""
        print(sorted(entry))

    def close(self) -> None:
        """Hold nothing."""


class Saying(PeriodicCallback):
    """Log one number at every interval's end."""

    def periodic_callback(self, *, update_counter: Any, **_: Any) -> None:
        """Log it."""
        self.log_writer.add_scalar("said", 1.0)


def log(path: Path) -> None:
    """Drive callbacks by hand for four updates."""
    counter = UpdateCounter(None, TrainingIteration(update=4), updates_per_epoch=2, effective_batch_size=8)
    tracker: Tracker = Printing()
    with closing(LogWriter(path, update_counter=counter, trackers=[tracker])) as writer:
        best = BestMetricCallbackConfig(every_n_updates=1, source_metric_key="loss", higher_is_better=False)
        stop = MetricEarlyStopCallbackConfig(
            every_n_updates=1, source_metric_key="loss", higher_is_better=False, patience=3
        )
        callbacks: list[CallbackBase] = [
            Saying(PeriodicCallbackConfig(every_n_updates=2), log_writer=writer),
            BestMetricCallback(best, log_writer=writer),
            MetricEarlyStopCallback(stop, log_writer=writer),
            ProgressCallback(ProgressCallbackConfig(every_n_updates=4), log_writer=writer),
            ThroughputCallback(ThroughputCallbackConfig(every_n_updates=4), log_writer=writer),
        ]
        for callback in callbacks:
            callback.before_training(update_counter=counter)
        while not counter.is_finished:
            counter.next_update()
            writer.add_scalar("loss", 1.0 / counter.update)
            for callback in callbacks:
                callback.after_update(update_counter=counter)
            assert_type(counter.cur_iteration, TrainingIteration)
            writer.flush()


def read(path: Path) -> None:
    """Read it back, and export it."""
    run = read_run(path)
    assert_type(run, RunReader)
    assert_type(run.problems, list[str])
    assert [float(value) for value in run.series["loss"].value] == [1.0, 0.5, 1 / 3, 0.25]
    assert_type(run.series["said"].key, str)
    exported = export_run(path, "csv")
    assert_type(exported.path, Path)
    assert exported.entries == len(run.entries)
    try:
        capsule = read_capsule(path / "none.capsule")
        assert_type(capsule, Capsule)
    except FileNotFoundError as error:
        print(error)


def main(path: Path) -> None:
    """Do all of it."""
    assert_type(noether_core.__version__, str)
    log(path)
    read(path)
    (path / "callbacks.yaml").write_text("[{every_n_updates: 5, keys: [loss]}]", encoding="utf-8")
    for config in load_callbacks(path / "callbacks.yaml"):
        assert isinstance(config, PeriodicCallbackConfig)
        assert_type(config.interval, Interval)
    assert {config.kind for config in CONFIGS}
    assert all(issubclass(error, Exception) for error in ERRORS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
