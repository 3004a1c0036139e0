"""Give activations the order in which they were computed, as far as it is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from noether_core.parity.divergence.training import Training
from noether_core.parity.divergence.view import TrainingView, unseen

Place = Callable[[str], Any]


class InOrder(TrainingView):
    """Show a training with its activations in an order of one's own.

    Args:
        training: the training.
        place: gives an activation's key the place to sort it by.
    """

    def __init__(self, training: Training, place: Place) -> None:
        super().__init__(training)
        self._place = place

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys, the activations in their order."""
        own = list(self.training.keys(update))
        ordered = iter(sorted((key for key in own if key.startswith("act/")), key=self._place))
        return [next(ordered) if key.startswith("act/") else key for key in own]


def in_one_order(a: Training, b: Training) -> tuple[Training, Training]:
    """Return two trainings, JAX's with its activations in PyTorch's order where one is of each; else as names tell it.

    What a compiled function of JAX returns in a dict is sorted by name: a later layer may stand before an earlier one.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> torch = MemoryTraining("", "torch", {1: {"act/up": 1.0, "act/down": 2.0}})
    >>> jax = MemoryTraining("", "jax", {1: {"act/down": 2.0, "act/up": 1.0}})
    >>> in_one_order(jax, torch)[0].keys(1)
    ['act/up', 'act/down']
    """
    if (a.framework, b.framework) == ("jax", "torch"):
        return _as_in(a, b), b
    if (a.framework, b.framework) == ("torch", "jax"):
        return a, _as_in(b, a)
    if is_by_name(a) and is_by_name(b):
        return InOrder(a, by_name), InOrder(b, by_name)
    return a, b


def is_by_name(training: Training) -> bool:
    """Tell whether a training's activations are in no order but their names', as out of a compiled function of JAX.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> [is_by_name(MemoryTraining("", name, {1: {"act/down": 2.0, "act/up": 1.0}})) for name in ("jax", "torch")]
    [True, False]
    """
    if isinstance(training, InOrder):
        return False
    keys = _activations(unseen(training))  # under its own names
    return training.framework == "jax" and len(keys) > 1 and keys == sorted(keys)


def by_name(key: str) -> tuple[tuple[int, int, str], ...]:
    """Return where a key stands as far as names tell it: numbers in their order, what a module holds before what it returns.

    >>> sorted(["act/layers.10", "act/layers.2", "act/layers.2.norm"], key=by_name)
    ['act/layers.2.norm', 'act/layers.2', 'act/layers.10']
    """
    parts = [part for part in re.split(r"(\d+)|[./]", key) if part]
    return (*((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts), (2, 0, ""))


def _as_in(training: Training, other: Training) -> Training:
    """Return a training with its activations in the other's order, those that the other lacks last; as it is if it has one."""
    places = {key: place for place, key in enumerate(_activations(other))}
    known = any(key in places for key in _activations(training))
    return InOrder(training, lambda key: places.get(key, len(places))) if known and is_by_name(training) else training


def _activations(training: Training) -> list[str]:
    """Return the keys of the activations of the first update that has any."""
    for update in training.updates():
        if keys := [key for key in training.keys(update) if key.startswith("act/")]:
            return keys
    return []
