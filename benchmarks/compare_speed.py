"""Time the comparison of two trainings: a large model's arrays, and long columns of statistics.

    python -m benchmarks.compare_speed arrays       12 updates of a model of 1e8 parameters
    python -m benchmarks.compare_speed statistics   1,000 keys at 10,000 updates

Each prints seconds and the process's peak memory. The arrays are views of memory, the statistics are made when asked for, as
if read from files that are cached: reading from a disk comes on top.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from noether_core.parity.divergence import Comparison, Statistics, compare

Array = np.ndarray[Any, Any]

PARAMETERS = 100_000_000
UPDATES = 12
LAYERS, WIDTH = 16, 720  # twelve widths squared in each layer: 1e8 in all
KEYS, LONG = 1_000, 10_000
STAGES = ("param", "grad", "update", "opt/mu", "opt/nu")


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of a transformer's parameters, 1e8 in all."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        for name, outputs, inputs in (("qkv", 3, 1), ("out", 1, 1), ("up", 4, 1), ("down", 1, 4)):
            found[f"layers.{layer}.{name}.weight"] = (outputs * WIDTH, inputs * WIDTH)
            found[f"layers.{layer}.{name}.bias"] = (outputs * WIDTH,)
    rest = PARAMETERS - sum(int(np.prod(shape)) for shape in found.values())
    return {"embedding.weight": (rest // WIDTH, WIDTH), **found}


@dataclass
class LargeTraining:
    """Hold a large model's arrays as views of one block of memory, shifted by update and stage."""

    label: str
    framework: str
    block: Array
    bug_at: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shapes = shapes()
        self._keys = [f"{stage}/{name}" for stage in STAGES for name in self._shapes]
        sizes = [int(np.prod(shape)) for shape in self._shapes.values()]
        self._starts = dict(zip(self._shapes, np.cumsum([0, *sizes]).tolist(), strict=False))

    def updates(self) -> Sequence[int]:
        """Return the updates."""
        return range(1, UPDATES + 1)

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys."""
        return self._keys

    def array(self, update: int, key: str) -> Array:
        """Return a view of the block; from the bug on, a scaled copy of one key."""
        stage, _, name = key.rpartition("/")
        start = self._starts[name] + 1024 * (update * len(STAGES) + STAGES.index(stage))
        shape = self._shapes[name]
        found: Array = self.block[start : start + int(np.prod(shape))].reshape(shape)
        is_wrong = self.bug_at and update >= self.bug_at and stage == "grad" and name == "layers.3.up.weight"
        return found * np.float32(1.001) if is_wrong else found

    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return none."""
        return None


@dataclass(frozen=True)
class Columns:
    """Hold one key's statistics, a row an update."""

    count: Array
    mean: Array
    std: Array
    norm: Array
    min: Array
    max: Array
    fingerprint: Array


@dataclass
class LongTraining:
    """Hold statistics of many keys at many updates, made when asked for."""

    label: str
    framework: str
    seed: int
    bug_at: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._updates = np.arange(1, LONG + 1)
        names = [f"layers.{number}.weight" for number in range(KEYS // 4)]
        self._keys = [f"{stage}/{name}" for stage in ("param", "act", "grad", "update") for name in names]
        self._curve = np.exp(-self._updates / LONG) * (
            1 + 1e-8 * np.random.default_rng(self.seed).standard_normal(LONG)
        )
        self._prints = np.random.default_rng(self.seed).integers(1, 2**63, LONG).astype(np.uint64)

    def updates(self) -> Sequence[int]:
        """Return the updates."""
        return self._updates.tolist()

    def array_updates(self) -> Sequence[int]:
        """Return none."""
        return []

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys."""
        return self._keys

    def array(self, update: int, key: str) -> Array | None:
        """Return none."""
        return None

    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return none: there are columns."""
        return None

    def statistics_columns(self, key: str) -> tuple[Array, Columns]:
        """Return a key's statistics."""
        wrong = self.bug_at and key == self._keys[-7]
        factor = np.where(self._updates >= self.bug_at, 1.01, 1.0) if wrong else 1.0
        norm = self._curve * factor * (1 + self._keys.index(key))
        zero = np.zeros(LONG)
        return self._updates, Columns(np.full(LONG, 4096), zero, norm / 64, norm, -norm / 8, norm / 8, self._prints)


def arrays() -> tuple[Comparison, float]:
    """Compare twelve updates of a large model."""
    room = PARAMETERS + 1024 * (UPDATES + 1) * len(STAGES)
    first = np.random.default_rng(0).standard_normal(room, np.float32)
    second = first * (1 + np.float32(2**-23))  # each element is the next float, up to two
    start = time.perf_counter()
    found = compare(LargeTraining("a", "jax", first), LargeTraining("b", "torch", second, bug_at=7))
    return found, time.perf_counter() - start


def statistics() -> tuple[Comparison, float]:
    """Compare long columns of many keys."""
    start = time.perf_counter()
    found = compare(LongTraining("a", "jax", 1), LongTraining("b", "torch", 2, bug_at=7_001))
    return found, time.perf_counter() - start


def main() -> None:
    """Time what is named."""
    found, seconds = {"arrays": arrays, "statistics": statistics}[sys.argv[1]]()
    print(found.sentence)
    used = resource.getrusage(resource.RUSAGE_SELF)
    work = f"{used.ru_utime + used.ru_stime:.1f} s of one core with imports and making the data"
    print(f"{found.compared:,} pairs in {seconds:.1f} s ({work}), peak {used.ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
