"""See a training under other names, or less of it, without copying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from noether_core.parity.divergence.training import Training
from noether_core.parity.divergence.view import TrainingView
from noether_core.probes import Statistics


class Renamed(TrainingView):
    """Show a training's keys under the names that `rename` gives them; those that it gives None are left out.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> training = MemoryTraining("mine", "", {1: {"data/x": np.ones(2), "loss/total": np.ones(())}})
    >>> Renamed(training, lambda key: None if key.startswith("data/") else key).keys(1)
    ('loss/total',)
    """

    def __init__(self, training: Training, rename: Callable[[str], str | None]) -> None:
        super().__init__(training)
        self._rename = rename
        self._own: dict[str, str] = {}  # of each key that was listed, what the training calls it

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys under their new names."""
        new = [(self._rename(key), key) for key in self.training.keys(update)]
        self._own.update((name, key) for name, key in new if name is not None)
        return tuple(name for name, _ in new if name is not None)

    def array(self, update: int, key: str) -> np.ndarray[Any, Any] | None:
        """Return an array, or None."""
        own = self._own_key(update, key)
        return None if own is None else self.training.array(update, own)

    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return an array's statistics, or None."""
        own = self._own_key(update, key)
        return None if own is None else self.training.statistics(update, own)

    def _own_key(self, update: int, key: str) -> str | None:
        if key not in self._own:
            self.keys(update)
        return self._own.get(key)

    def _key_of_statistics(self, key: str) -> str:
        return self._own.get(key, key)


class Through(TrainingView):
    """Show a training through an update, and nothing after it.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> Through(MemoryTraining("mine", "", {1: {"loss/total": np.ones(())}, 2: {}}), 1).updates()
    [1]
    """

    def __init__(self, training: Training, last: int) -> None:
        super().__init__(training)
        self.last = last

    def _shown(self, updates: Sequence[int]) -> Sequence[int]:
        return [update for update in updates if update <= self.last]
