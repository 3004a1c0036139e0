"""Make a run's callbacks of what it was given: a YAML file, configs, or callback objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noether_core.callbacks.base import CallbackBase
from noether_core.callbacks.derived import DerivedOutputsCallback
from noether_core.callbacks.metrics import BestMetricCallback, MetricEarlyStopCallback
from noether_core.callbacks.periodic import PeriodicCallback
from noether_core.callbacks.progress import ProgressCallback
from noether_core.callbacks.throughput import ThroughputCallback
from noether_core.callbacks.track_outputs import TrackAdditionalOutputsCallback
from noether_core.config.load import CallbackConfig, check_together, load_callbacks, parse_callback
from noether_core.config.loop import (
    BestMetricCallbackConfig,
    MetricEarlyStopCallbackConfig,
    ProgressCallbackConfig,
    ThroughputCallbackConfig,
)
from noether_core.emit.log_writer import LogWriter
from noether_core.errors import NoetherError, ScheduleError, listing

Callbacks = str | Path | Sequence[CallbackConfig | Mapping[str, Any] | CallbackBase]
CallbackClasses = Mapping[type[CallbackConfig], type[CallbackBase]]
CORE_CLASSES: CallbackClasses = {  # those that need no front-end
    BestMetricCallbackConfig: BestMetricCallback,
    MetricEarlyStopCallbackConfig: MetricEarlyStopCallback,
    ProgressCallbackConfig: ProgressCallback,
    ThroughputCallbackConfig: ThroughputCallback,
}


def read_callbacks(callbacks: Callbacks) -> list[CallbackConfig | CallbackBase]:
    """Return the configs and callback objects that a run was given.

    Raises:
        NoetherError, pydantic.ValidationError: for what is none, or cannot work together.
    """
    if isinstance(callbacks, str | Path):
        callbacks = load_callbacks(callbacks)
    if not isinstance(callbacks, Sequence):
        raise NoetherError(
            f"Run got callbacks={callbacks!r:.80}; expected a YAML file, or a list of configs or callback objects"
        )
    given = [
        each if isinstance(each, CallbackBase) else parse_callback(each, f"callbacks[{at}]")
        for at, each in enumerate(callbacks)
    ]
    check_together([each for each in given if isinstance(each, CallbackConfig)])
    return given


def build_callback(
    given: CallbackConfig | CallbackBase, classes: CallbackClasses, log_writer: LogWriter, path: Path
) -> CallbackBase:
    """Return the callback of a config, of the class that `classes` has for it or for a base class of it.

    Raises:
        NoetherError: if `classes` has none, or the config cannot work.
    """
    if isinstance(given, CallbackBase):
        return given
    chosen = next((classes[kind] for kind in type(given).__mro__ if kind in classes), None)
    if chosen is None:
        raise NoetherError(
            f"Run got a {type(given).__name__}, for which it knows no callback; give the callback object itself, or one of"
            f" {listing(sorted(kind.__name__ for kind in classes))}"
        )
    return chosen(given, log_writer=log_writer, output_path=path)


def tracking_callbacks(callbacks: Sequence[CallbackBase]) -> list[TrackAdditionalOutputsCallback]:
    """Return those that track update outputs, those that others hold among them."""
    held = [callback.tracking if isinstance(callback, DerivedOutputsCallback) else callback for callback in callbacks]
    return [callback for callback in held if isinstance(callback, TrackAdditionalOutputsCallback)]


def counts_samples(callback: CallbackBase) -> bool:
    """Tell whether a callback's numbers depend on how many samples an update has."""
    unit = callback.interval.unit if isinstance(callback, PeriodicCallback) else None
    return unit == "sample" or isinstance(callback, ThroughputCallback)


def refuse_units(callbacks: Sequence[CallbackBase], *, epochs: bool, samples: bool) -> None:
    """Raise `ScheduleError` if one of the callbacks counts epochs or samples, for a run that knows none."""
    for callback in callbacks:
        unit = callback.interval.unit if isinstance(callback, PeriodicCallback) else None
        if unit == "epoch" and not epochs:
            raise ScheduleError(
                f"{callback} counts epochs, but this run has none; give updates_per_epoch, or count updates or samples"
            )
        if not samples and counts_samples(callback):
            raise ScheduleError(
                f"{callback} counts samples, but this run does not know how many an update has; give effective_batch_size,"
                " the samples of an update over all its accumulation steps and processes"
            )
