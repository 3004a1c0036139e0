"""See a training under other names, or less of it, without copying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from noether_core.parity.divergence.training import Training
from noether_core.probes import Statistics


class View:
    """Show a training's keys under the names that `rename` gives them; those that it gives None are left out.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> training = MemoryTraining("mine", "", {1: {"data/x": np.ones(2), "loss/total": np.ones(())}})
    >>> View(training, lambda key: None if key.startswith("data/") else key).keys(1)
    ('loss/total',)
    """

    def __init__(self, training: Training, rename: Callable[[str], str | None]) -> None:
        self.training = training
        self.label, self.framework, self.settings = training.label, training.framework, training.settings
        self._rename = rename
        self._own: dict[str, str] = {}  # of each key that was listed, what the training calls it

    def __getattr__(self, name: str) -> Any:
        """Offer what a training on disk offers besides, to be read quickly: `array_updates` and `statistics_columns`."""
        if name == "statistics_columns":
            columns = self.training.statistics_columns  # type: ignore[attr-defined]
            return lambda key: columns(self._own.get(key, key))
        if name == "array_updates":
            return self.training.array_updates  # type: ignore[attr-defined]
        raise AttributeError(name)

    def updates(self) -> Sequence[int]:
        """Return the updates, in order."""
        return self.training.updates()

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


class Through:
    """Show a training through an update, and nothing after it.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> Through(MemoryTraining("mine", "", {1: {"loss/total": np.ones(())}, 2: {}}), 1).updates()
    [1]
    """

    def __init__(self, training: Training, last: int) -> None:
        self.training, self.last = training, last
        self.label, self.framework, self.settings = training.label, training.framework, training.settings

    def __getattr__(self, name: str) -> Any:
        """Offer what a training on disk offers besides, such as `array_updates` and `statistics_columns`."""
        if name == "training":  # of one that is being copied
            raise AttributeError(name)
        offered = getattr(self.training, name)
        return (lambda: self._until(offered())) if name == "array_updates" else offered

    def _until(self, updates: Sequence[int]) -> Sequence[int]:
        return [update for update in updates if update <= self.last]

    def updates(self) -> Sequence[int]:
        """Return the updates, in order."""
        return self._until(self.training.updates())

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys."""
        return self.training.keys(update)

    def array(self, update: int, key: str) -> np.ndarray[Any, Any] | None:
        """Return an array, or None."""
        return self.training.array(update, key)

    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return an array's statistics, or None."""
        return self.training.statistics(update, key)
