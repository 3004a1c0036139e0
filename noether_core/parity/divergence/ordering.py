"""Give activations the order in which they were computed, where one training alone knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noether_core.parity.divergence.training import Training


class InOrder:
    """Show a training's activations in the order that another one has them in; what that has not comes last.

    What a compiled function of JAX returns in a dict is sorted by name: then a later layer may stand before an earlier one.
    """

    def __init__(self, training: Training, other: Training) -> None:
        self._training, self._other = training, other
        self.label, self.framework, self.settings = training.label, training.framework, training.settings

    def __getattr__(self, name: str) -> Any:
        """Offer what the training offers besides, such as `array_updates` and `statistics_columns`."""
        return getattr(self._training, name)

    def updates(self) -> Sequence[int]:
        """Return the updates, in order."""
        return self._training.updates()

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys, the activations in the other's order."""
        own = list(self._training.keys(update))
        acts = [key for key in own if key.startswith("act/")]
        places = {key: place for place, key in enumerate(self._other.keys(update))}
        if acts != sorted(acts) or not any(key in places for key in acts):
            return own
        ordered = iter(sorted(acts, key=lambda key: places.get(key, len(places))))
        return [next(ordered) if key.startswith("act/") else key for key in own]

    def array(self, update: int, key: str) -> Any:
        """Return an array, or None."""
        return self._training.array(update, key)

    def statistics(self, update: int, key: str) -> Any:
        """Return an array's statistics, or None."""
        return self._training.statistics(update, key)


def in_one_order(a: Training, b: Training) -> tuple[Training, Training]:
    """Return two trainings, JAX's with its activations in PyTorch's order where one is of each.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> torch = MemoryTraining("", "torch", {1: {"act/up": 1.0, "act/down": 2.0}})
    >>> jax = MemoryTraining("", "jax", {1: {"act/down": 2.0, "act/up": 1.0}})
    >>> in_one_order(jax, torch)[0].keys(1)
    ['act/up', 'act/down']
    """
    if (a.framework, b.framework) == ("jax", "torch"):
        return InOrder(a, b), b
    if (a.framework, b.framework) == ("torch", "jax"):
        return a, InOrder(b, a)
    return a, b
