"""Say whether a training ends before the other one does: what follows there was not compared."""

from __future__ import annotations

from collections.abc import Mapping

from noether_core.config.load import parse_callback
from noether_core.config.loop import ProbeCallbackConfig
from noether_core.errors import NoetherError
from noether_core.parity.divergence.training import Training


def early_end(a: Training, b: Training) -> str:
    """Return in words which of two trainings ends before the other; nothing if neither does.

    One that probes fewer updates is no shorter for that: it ends early if it lacks an update that its `ProbeCallback` would
    have probed, and the other one has.

    >>> import numpy as np
    >>> from noether_core.parity.divergence import MemoryTraining
    >>> losses = {update: {"loss/total": np.ones(())} for update in range(1, 9)}
    >>> early_end(MemoryTraining("mine", "", losses), MemoryTraining("port", "", {5: losses[5]}))
    'port ends, while mine goes on to 8'
    """
    for short, long in ((a, b), (b, a)):
        last = max(short.updates(), default=0)
        if any(update > last and _is_due(short, update) for update in long.updates()):
            return f"{short.label or 'one'} ends, while {long.label or 'the other'} goes on to {max(long.updates())}"
    return ""


def _is_due(training: Training, update: int) -> bool:
    """Tell whether a training would probe an update; one that does not say when it does would probe any."""
    callbacks = training.settings.get("callbacks")
    given = [each for each in callbacks if isinstance(each, Mapping)] if isinstance(callbacks, list | tuple) else []
    probing = [each for each in given if str(each.get("kind")).rpartition(".")[2] == "ProbeCallback"]
    try:
        configs = [parse_callback(dict(each)) for each in probing]
    except (ValueError, NoetherError):  # of another version, or damaged
        return True
    return not configs or any(_names(config, update) for config in configs if isinstance(config, ProbeCallbackConfig))


def _names(config: ProbeCallbackConfig, update: int) -> bool:
    every = config.every_n_updates or 1
    return update <= config.arrays or update in config.arrays_at or update % every == 0
