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
from noether_core.config.log_names import LogNames
from noether_core.config.loop import (
    BestMetricCallbackConfig,
    LoopConfig,
    MetricEarlyStopCallbackConfig,
    ProgressCallbackConfig,
    ThroughputCallbackConfig,
)
from noether_core.emit.log_writer import LogWriter
from noether_core.errors import NoetherError, ScheduleError, listing
from noether_core.schedule import require_positive

Callbacks = str | Path | Sequence[CallbackConfig | Mapping[str, Any] | CallbackBase]
Keys = str | Path | Sequence[str | CallbackConfig | Mapping[str, Any] | CallbackBase]
EVERY = 50  # updates
CallbackClasses = Mapping[type[CallbackConfig], type[CallbackBase]]
CORE_CLASSES: CallbackClasses = {  # those that need no front-end
    BestMetricCallbackConfig: BestMetricCallback,
    MetricEarlyStopCallbackConfig: MetricEarlyStopCallback,
    ProgressCallbackConfig: ProgressCallback,
    ThroughputCallbackConfig: ThroughputCallback,
}


def read_callbacks(
    keys: Keys | None = None,
    callbacks: Callbacks | None = None,
    *,
    every: int | None = None,
    log_as: str | None = None,
) -> list[CallbackConfig | CallbackBase]:
    """Return the configs and callback objects that a run was given; for the arguments see `noether_core.run.Run`.

    Raises:
        NoetherError, pydantic.ValidationError: for what is none, or cannot work together.

    >>> read_callbacks("loss", every=10)[0].keys, read_callbacks()[0].scalars
    (['loss'], True)
    """
    names, listed = _names_and_others(keys)
    others = [*listed, *_listed(callbacks)]
    given: list[CallbackConfig | CallbackBase] = []
    if names or (keys is None and callbacks is None):
        require_positive("Run", **({} if every is None else {"every": every}))
        wanted: dict[str, Any] = {"keys": names} if names else {"scalars": True}
        wanted |= {} if log_as is None else {"log_as": log_as}
        given.append(parse_callback({"every_n_updates": every or EVERY, **wanted}, "Run"))
    elif every is not None or log_as is not None:
        what, value = ("every", every) if every is not None else ("log_as", log_as)
        raise NoetherError(
            f"Run got {what}={value!r:.80}, which says how its keys are tracked, and no keys beside its callbacks; give keys,"
            f" or say it in the callbacks' configs: {'every_n_updates' if what == 'every' else what}: {value!r:.80}"
        )
    given += [
        each if isinstance(each, CallbackBase) else parse_callback(each, f"callbacks[{at}]")
        for at, each in enumerate(others)
    ]
    configs = [each.callback_config if isinstance(each, CallbackBase) else each for each in given]
    check_together([each for each in configs if isinstance(each, CallbackConfig)])
    return given


def _names_and_others(keys: Any) -> tuple[list[str], Sequence[Any]]:
    """Return the names of update outputs, and the configs and callback objects."""
    if isinstance(keys, Path) or (isinstance(keys, str) and keys.endswith((".yaml", ".yml"))):
        return [], load_callbacks(keys)
    if isinstance(keys, str):
        return [keys], ()
    if keys is not None and not isinstance(keys, Sequence):
        raise NoetherError(
            f"Run got {keys!r:.80} as its keys; expected the name of an update output, a list of names, a list of configs or"
            " callback objects, or a YAML file"
        )
    each = keys or ()
    return [key for key in each if isinstance(key, str)], [other for other in each if not isinstance(other, str)]


def _listed(callbacks: Any) -> Sequence[Any]:
    if isinstance(callbacks, str | Path):
        return load_callbacks(callbacks)
    if callbacks is not None and not isinstance(callbacks, Sequence):
        raise NoetherError(
            f"Run got callbacks={callbacks!r:.80}; expected a YAML file, or a list of configs or callback objects"
        )
    return callbacks or ()


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


def build_callbacks(
    given: Sequence[CallbackConfig | CallbackBase], classes: CallbackClasses, log_writer: LogWriter, path: Path
) -> list[CallbackBase]:
    """Return a run's callbacks, each of which knows the names that the others log under; raises as `build_callback` does."""
    callbacks, names = [build_callback(each, classes, log_writer, path) for each in given], LogNames()
    for callback in callbacks:
        config = callback.callback_config
        # what it has another one track, that one says when it comes
        is_held = isinstance(callback, DerivedOutputsCallback) and getattr(config, "source", None) is None
        if isinstance(config, LoopConfig) and not is_held:
            names.claim(callback, config)
    for tracking in tracking_callbacks(callbacks):
        tracking.join(names)
    return callbacks


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
