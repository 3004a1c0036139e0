"""Take what an optimizer saw and did at the same elements of both trainings: gradients, parameters, updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from noether_core.parity.divergence.training import Training

Array = np.ndarray[Any, Any]

_MOST_ELEMENTS = 2_400  # of all keys together
_LEAST_ELEMENTS = 16  # of one key
_MOST_KEYS = 150
_MOST_UPDATES = 14
_ROUNDING = 1e-5  # of the other gradients' size: what is smaller can be zero but for rounding
FEWEST = 4  # elements of a key for rate and decay to be told apart


@dataclass(frozen=True)
class Samples:
    """Hold what one training's optimizer saw and did, at `n` elements of `k` keys over `t` updates from the first on.

    Attributes:
        names: the keys' names, without a stage.
        starts: where each key's elements start, `k` integers.
        gradients, parameters, updates: `t × n` in binary64; the gradient is the clipped one where it was kept.
        weights: `t × n`, one over the rounding error that an update may have.
        counted: `k` booleans: keys that have elements enough to tell rate and decay apart, and gradients beyond rounding.
    """

    names: tuple[str, ...]
    starts: Array
    gradients: Array
    parameters: Array
    updates: Array
    weights: Array
    counted: Array

    @property
    def owners(self) -> Array:
        """The index of each element's key."""
        ends = np.append(self.starts[1:], self.gradients.shape[1])
        return np.repeat(np.arange(len(self.names)), ends - self.starts)

    def sums(self, values: Array) -> Array:
        """Sum over each key's elements: `… × n` to `… × k`."""
        return np.add.reduceat(values, self.starts, axis=-1)

    def between(self, first: int, end: int | None = None) -> Samples:
        """Return a part of the updates, the first of them counted from 0, as if the optimizer began there."""
        parts = (self.gradients, self.parameters, self.updates, self.weights)
        gradients, parameters, updates, weights = (part[first:end] for part in parts)
        return replace(self, gradients=gradients, parameters=parameters, updates=updates, weights=weights)

    def chosen(self, keep: Array) -> Samples:
        """Return the keys alone for which `keep`, `k` booleans, is true."""
        elements = keep[self.owners]
        counts = self.sums(np.ones(self.gradients.shape[1]))[keep].astype(int)
        starts = np.cumsum(np.append(0, counts[:-1]))
        names = tuple(name for name, kept in zip(self.names, keep, strict=True) if kept)
        parts = (self.gradients, self.parameters, self.updates, self.weights)
        gradients, parameters, updates, weights = (part[:, elements] for part in parts)
        return Samples(names, starts, gradients, parameters, updates, weights, self.counted[keep])


def gather(a: Training, b: Training) -> tuple[Samples, Samples] | None:
    """Return both trainings' samples at the same elements, or None where a training has no such arrays from update 1 on."""
    updates = _first_updates(a, b)
    if not updates:
        return None
    shared = set(_names(b))
    names = [name for name in _names(a) if name in shared]
    names = names[:: max(1, -(-len(names) // _MOST_KEYS))]
    most = max(_LEAST_ELEMENTS, _MOST_ELEMENTS // max(1, len(names)))
    rows = {}
    for name in names:
        places = _places(a, b, name, most)
        found = None if places is None else [_rows(side, name, updates, places) for side in (a, b)]
        if found is not None and all(each is not None for each in found):
            rows[name] = found
    if not rows:
        return None
    one, other = (_joined({name: both[side] for name, both in rows.items()}) for side in (0, 1))
    return one, other


def _first_updates(a: Training, b: Training) -> list[int]:
    shared = sorted(set(a.updates()) & set(b.updates()))
    updates = [update for index, update in enumerate(shared, start=1) if update == index]
    kept = [update for update in updates if any(_gradient_key(a, update, name) for name in _names(a))]
    return kept[:_MOST_UPDATES]


def _names(training: Training) -> list[str]:
    updates = training.updates()
    return [key.partition("/")[2] for key in training.keys(updates[0]) if key.startswith("grad/")] if updates else []


def _gradient_key(training: Training, update: int, name: str) -> str | None:
    keys = set(training.keys(update))
    return next((key for key in (f"clip/{name}", f"grad/{name}") if key in keys), None)


def _places(a: Training, b: Training, name: str, most: int) -> Array | None:
    """Choose elements with gradients of every size, those that are always zero last; None where the shapes differ."""
    one, other = a.array(1, f"grad/{name}"), b.array(1, f"grad/{name}")
    if one is None or other is None or one.shape != other.shape or not one.size:
        return None
    stride = max(1, one.size // (8 * most))
    places = np.arange(0, one.size, stride)
    sizes = np.abs(one.reshape(-1)[places].astype(np.float64))
    live = places[sizes > 0]
    order = live[np.argsort(-sizes[sizes > 0], kind="stable")] if live.size else places
    order = order[: max(most, int(0.8 * order.size))]
    return np.sort(order[np.linspace(0, order.size - 1, min(most, order.size)).astype(int)])


def _rows(training: Training, name: str, updates: Sequence[int], places: Array) -> tuple[Array, Array, Array] | None:
    """Return gradients, parameters and updates, each `t × len(places)`; None where one is missing or not finite."""
    parts: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
    for update in updates:
        gradient = _gradient_key(training, update, name)
        for part, key in zip(parts, (gradient, f"param/{name}", f"update/{name}"), strict=True):
            value = None if key is None else training.array(update, key)
            if value is None or value.size <= places[-1]:
                return None
            part.append(value.reshape(-1)[places].astype(np.float64))
    gradients, parameters, changes = (np.stack(part) for part in parts)
    finite = all(np.isfinite(part).all() for part in (gradients, parameters, changes))
    return (gradients, parameters, changes) if finite else None


def _joined(rows: dict[str, Any]) -> Samples:
    gradients, parameters, updates = (
        np.concatenate([each[part] for each in rows.values()], axis=1) for part in range(3)
    )
    counts = np.array([each[0].shape[1] for each in rows.values()])
    starts = np.cumsum([0, *counts[:-1]])
    sizes = np.sqrt(np.add.reduceat((gradients**2).mean(axis=0), starts) / counts)
    counted = (counts >= FEWEST) & (sizes > _ROUNDING * np.median(sizes))
    counted = counted if counted.any() else counts > 0
    return Samples(tuple(rows), starts, gradients, parameters, updates, _weights(parameters, updates), counted)


def _weights(parameters: Array, updates: Array) -> Array:
    """Return one over the error of updates: half a unit of the parameter's last place, and a few of the update's own.

    Source: a parameter and its update add up in binary32; the direction is some eight operations old.
    """
    error = np.hypot(0.3 * np.spacing(np.abs(parameters).astype(np.float32)).astype(np.float64), 2e-7 * np.abs(updates))
    return 1 / np.maximum(error, 1e-30)
