"""Hold what was probed of one accumulation step, on the device, and say what is to be probed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from noether_core.probes.fingerprint import whole_fingerprints
from noether_core.probes.stages import in_order

KEY = "probes"  # of what was probed, among update outputs


@dataclass(frozen=True)
class Due:
    """Say what is probed of an update; false if nothing is. A static argument of compiled functions: it is hashable.

    Attributes:
        statistics: whether the statistics are.
        array_limit: how many bytes an array may have to be kept whole, of larger ones a sample is kept; 0: no arrays are kept.

    >>> bool(Due()), bool(Due(statistics=True)), Due(array_limit=2**20).arrays
    (False, True, True)
    """

    statistics: bool = False
    array_limit: int = 0

    @property
    def arrays(self) -> bool:
        """Tell whether arrays are kept."""
        return self.array_limit > 0

    def __bool__(self) -> bool:
        return self.statistics or self.arrays

    def __or__(self, other: Due) -> Due:
        return Due(self.statistics or other.statistics, max(self.array_limit, other.array_limit))


class Probed:
    """Hold what was probed of one accumulation step: what `probe` returns for `run.step`. In JAX it is a pytree.

    It is no record of update outputs, so that no callback's pattern finds what is in it.

    Attributes:
        keys: `stage/name` of each array, in the order of computation.
        shapes: of each whole array, in the canonical layout.
        reals: the statistics that are real numbers, float64 [keys, 5] as in `REALS`, or uint32 [keys, 5, 2]: the words of
            these, the low one first.
        sums: 32-bit ints, [keys, 2], what the fingerprints are made of.
        arrays: those that are kept, by key: whole, or their sample.
        limit: the `array_limit` by which they were sampled.
    """

    __slots__ = ("arrays", "keys", "limit", "reals", "shapes", "sums")

    def __init__(
        self,
        keys: tuple[str, ...],
        shapes: tuple[tuple[int, ...], ...],
        reals: Any,
        sums: Any,
        arrays: Mapping[str, Any],
        limit: int = 0,
    ) -> None:
        self.keys, self.shapes, self.reals, self.sums = keys, shapes, reals, sums
        self.arrays, self.limit = arrays, limit

    def __repr__(self) -> str:
        return f"Probed({len(self.keys)} keys, {len(self.arrays)} arrays)"

    def without_arrays(self) -> Probed:
        """Return the statistics alone."""
        return Probed(self.keys, self.shapes, self.reals, self.sums, {})

    def leaves(self) -> list[Any]:
        """Return the arrays that it holds, for a transfer to the host."""
        return [self.reals, self.sums, *self.arrays.values()]

    def on_host(self, leaves: Sequence[np.ndarray[Any, Any]]) -> HostProbed:
        """Return the same in NumPy arrays, which are given in the order of `leaves`."""
        reals, sums, *arrays = leaves
        if reals.dtype != np.float64:
            reals = np.ascontiguousarray(reals).view(np.uint32).view("<f8")[..., 0]
        counts = np.array([prod(shape) for shape in self.shapes], np.int64)
        prints = whole_fingerprints(np.ascontiguousarray(sums).view(np.uint32), counts)
        shapes = dict(zip(self.keys, self.shapes, strict=True))
        kept = dict(zip(self.arrays, arrays, strict=True))
        return HostProbed(self.keys, shapes, counts, reals, prints, kept, self.limit)


@dataclass(frozen=True)
class HostProbed:
    """Hold what was probed, on the host.

    Attributes:
        keys, arrays, limit: as in `Probed`.
        shapes: by key.
        counts: int64 [keys].
        reals: float64 [keys, 5].
        fingerprints: uint64 [keys].
    """

    keys: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    counts: np.ndarray[Any, Any]
    reals: np.ndarray[Any, Any]
    fingerprints: np.ndarray[Any, Any]
    arrays: Mapping[str, np.ndarray[Any, Any]]
    limit: int


def joined(steps: Sequence[Sequence[HostProbed]]) -> HostProbed:
    """Return what the accumulation steps of an update had as one, each of several parts.

    A key that an earlier step had gets `@` and the step's number, so the batches of an update are `data/x`, `data/x@1`,
    `data/x@2`. Of what two parts of a step have, the first part's stands.
    """
    names: dict[str, tuple[HostProbed, str, int]] = {}
    for number, step in enumerate(steps):
        own = {key: (part, key, at) for part in reversed(step) for at, key in enumerate(part.keys)}
        for key in dict.fromkeys(key for part in step for key in part.keys):
            name = key
            while name in names:
                name = f"{name}@{number}"
            names[name] = own[key]
    found = [names[name] for name in in_order(names)]
    return HostProbed(
        tuple(in_order(names)),
        {name: part.shapes[key] for name, (part, key, _) in names.items()},
        np.array([part.counts[at] for part, _, at in found], np.int64),
        np.array([part.reals[at] for part, _, at in found], np.float64).reshape(len(found), -1),
        np.array([part.fingerprints[at] for part, _, at in found], np.uint64),
        {name: part.arrays[key] for name, (part, key, _) in names.items() if key in part.arrays},
        max(part.limit for step in steps for part in step),
    )
