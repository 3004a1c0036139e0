"""See a training otherwise than it is, without copying it: what all views share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noether_core.parity.divergence.training import Training
from noether_core.probes.statistics import Statistics


class TrainingView:
    """Show a training as it is; each view shows one thing of it otherwise.

    Attributes:
        training: what is seen.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> seen = TrainingView(MemoryTraining("mine", "torch", {1: {"loss/total": np.ones(())}}))
    >>> seen.label, seen.keys(1)
    ('mine', ['loss/total'])
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.label, self.framework, self.settings = training.label, training.framework, training.settings

    def __getattr__(self, name: str) -> Any:
        """Offer what a training on disk offers besides, to be read quickly; nothing of it where the training has not."""
        if name == "array_updates":
            updates = self.training.array_updates  # type: ignore[attr-defined]
            return lambda: self._shown(updates())
        if name == "statistics_columns":
            columns = self.training.statistics_columns  # type: ignore[attr-defined]
            return lambda key: columns(self._key_of_statistics(key))
        raise AttributeError(name)

    def _shown(self, updates: Sequence[int]) -> Sequence[int]:
        """Return those of the training's updates that are seen."""
        return updates

    def _key_of_statistics(self, key: str) -> str:
        """Return the training's own key of what has a key's statistics."""
        return key

    def updates(self) -> Sequence[int]:
        """Return the updates, in order."""
        return self._shown(self.training.updates())

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys."""
        return self.training.keys(update)

    def array(self, update: int, key: str) -> np.ndarray[Any, Any] | None:
        """Return an array, or None."""
        return self.training.array(update, key)

    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return an array's statistics, or None."""
        return self.training.statistics(update, key)


def unseen(training: Training) -> Training:
    """Return the training that is seen, through however many views."""
    while isinstance(training, TrainingView):
        training = training.training
    return training
