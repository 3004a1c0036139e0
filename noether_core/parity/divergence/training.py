"""Hold what a training computed: arrays by update and key, read one at a time, and their statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from noether_core.errors import NoetherError
from noether_core.probes.fingerprint import as_reals
from noether_core.probes.stages import STAGES
from noether_core.probes.statistics import Statistics
from noether_core.silence import SILENT
from noether_core.text import inert


class ProbedKeyError(NoetherError, ValueError):
    """Report a key that belongs to no stage of an update."""


def stage_of(key: str) -> str:
    """Return a key's stage.

    >>> stage_of("grad/encoder.0.weight")
    'grad'
    """
    stage, slash, name = key.partition("/")
    if stage not in STAGES or not slash or not name:
        raise ProbedKeyError(
            f"{key!r} belongs to no stage: a probed key is `stage/name`, with one of {', '.join(STAGES)}"
        )
    return stage


class Training(Protocol):
    """What one training computed. Updates count from 1; keys are canonical, in the order of computation within a stage.

    Attributes:
        label: what a message calls it, such as its directory's name.
        framework: `jax`, `torch` or empty.
        settings: what it was run with: seeds, config, versions; shown side by side, never computed with.
    """

    label: str
    framework: str
    settings: Mapping[str, Any]

    def updates(self) -> Sequence[int]:
        """Return the updates that have arrays or statistics, in order."""

    def keys(self, update: int) -> Sequence[str]:
        """Return the keys of an update, stage by stage, each in the order of computation."""

    def array(self, update: int, key: str) -> np.ndarray[Any, Any] | None:
        """Return an array in PyTorch's layout, or its sample, the same places in every training; None if not kept."""

    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return an array's statistics, or None if they were not taken."""


def labels_of(a: Training, b: Training) -> tuple[str, str]:
    """Return what messages call two trainings: A and B where their labels do not tell them apart."""
    labels = inert(a.label or "A"), inert(b.label or "B")
    return labels if labels[0] != labels[1] else ("A", "B")


@dataclass
class MemoryTraining:
    """Hold a training in memory.

    Attributes:
        arrays: for each update, for each key, its array.

    >>> training = MemoryTraining("mine", "torch", {1: {"loss/total": np.float32(0.5), "data/x": np.zeros((2, 3))}})
    >>> training.keys(1)
    ['data/x', 'loss/total']
    """

    label: str
    framework: str
    arrays: dict[int, dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def updates(self) -> Sequence[int]:
        """Return the updates, in order."""
        return sorted(self.arrays)

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys, stage by stage."""
        return sorted(self.arrays.get(update, ()), key=lambda key: STAGES.index(stage_of(key)))  # sorted is stable

    def array(self, update: int, key: str) -> np.ndarray[Any, Any] | None:
        """Return an array, or None; a complex one as probes keep it, see `as_reals`."""
        value = self.arrays.get(update, {}).get(key)
        return None if value is None else as_reals(np.asarray(value))

    @SILENT
    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return an array's statistics, computed in binary64, without a fingerprint."""
        value = self.array(update, key)
        if value is None or not value.size:
            return None
        wide = value.astype(np.float64)
        extremes = float(wide.min()), float(wide.max())
        return Statistics(wide.size, float(wide.mean()), float(wide.std()), float(np.linalg.norm(wide)), *extremes)

    def save(self, path: Path) -> None:
        """Write the arrays to an `.npz` file, without pickling."""
        members = {f"{update}/{key}": value for update, keys in self.arrays.items() for key, value in keys.items()}
        np.savez(path, allow_pickle=False, **{name: np.asarray(value) for name, value in members.items()})

    @classmethod
    def load(cls, path: Path, label: str = "", framework: str = "") -> MemoryTraining:
        """Read what `save` wrote."""
        arrays: dict[int, dict[str, Any]] = {}
        with np.load(path, allow_pickle=False) as members:
            for name in members.files:
                update, _, key = name.partition("/")
                arrays.setdefault(int(update), {})[key] = members[name]
        return cls(label or path.stem, framework, arrays)
