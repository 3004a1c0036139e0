"""Hold what is matched between a PyTorch and a Flax model, and convert arrays with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from noether_core.errors import NoetherError, listing
from noether_core.names.layout import Shape
from noether_core.names.pieces import Entry, WeightsError, to_flax, to_torch
from noether_core.names.read_torch import IGNORED
from noether_core.names.units import FRAMEWORKS
from noether_core.text import inert

_MOST_LISTED = 200  # lines of a mapping file to complete


class UnmatchedNamesError(NoetherError, ValueError):
    """Report arrays of either model that nothing was matched with, and what a mapping file should say of them."""


@dataclass(frozen=True)
class Matching:
    """Hold the names of two models that are the same arrays.

    Attributes:
        entries: what is matched, in PyTorch's order.
        modules: PyTorch's name for each Flax module that has arrays, dotted.
        unmatched_torch: PyTorch's arrays that nothing in Flax was found for, with their shapes.
        unmatched_flax: Flax's arrays that nothing in PyTorch was found for, with their shapes.
        sides: what messages call the two models, which may be two runs.
    """

    entries: tuple[Entry, ...]
    modules: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    unmatched_torch: Mapping[str, Shape] = field(default_factory=lambda: MappingProxyType({}))
    unmatched_flax: Mapping[str, Shape] = field(default_factory=lambda: MappingProxyType({}))
    sides: tuple[str, str] = FRAMEWORKS

    def to_canonical(self, flax: Mapping[str, Any], gradients: bool = False) -> dict[str, Any]:
        """Return Flax's arrays under PyTorch's names and in PyTorch's layout; also inside of a compiled function.

        What PyTorch has as two arrays and Flax as their sum, an RNN's two biases, becomes that sum and zero; of gradients, both
        get that of the sum, as PyTorch's do.

        Args:
            flax: arrays by path: weights, updates, moments, or a part of them. Names that lack an array are left out.
            gradients: whether these are gradients.

        Raises:
            WeightsError: for a path that was not matched, or an array whose shape has changed since.
        """
        known = {path for entry in self.entries for path in entry.paths}.union(self.unmatched_flax)
        if strangers := [path for path in flax if path not in known]:
            raise WeightsError(
                f"{listing(strangers)}: no such {self.sides[1]} arrays were there when names were matched; match again with"
                " these"
            )
        return to_torch(self.entries, flax, gradients)

    def named(self, arrays: Mapping[str, Any], gradients: bool = False) -> dict[str, Any]:
        """Return Flax's arrays by dotted path, `layers.0.kernel`, as `to_canonical` does: for `probe(names=matching.named)`."""
        paths = {path.replace("/", "."): path for entry in self.entries for path in entry.paths}
        return self.to_canonical({paths.get(name, name): array for name, array in arrays.items()}, gradients)

    def to_flax(self, canonical: Mapping[str, Any]) -> dict[str, Any]:
        """Return arrays with PyTorch's names and layout as Flax's, by path: what `to_canonical` undoes.

        An RNN's two biases are added. Paths that lack an array are left out.

        Raises:
            WeightsError: for a name that was not matched, an array whose shape has changed since, or a bias that the Flax layer
                has no place for.
        """
        known = {entry.name for entry in self.entries}.union(self.unmatched_torch)
        if strangers := [name for name in canonical if name not in known and not name.endswith(IGNORED)]:
            raise WeightsError(
                f"{listing(strangers)}: no such arrays were there when names were matched; match again with these"
            )
        return to_flax(self.entries, canonical)

    def check(self) -> Matching:
        """Return this matching, if it is complete.

        Raises:
            UnmatchedNamesError: for arrays of either model that nothing was matched with.
        """
        if self.unmatched_torch or self.unmatched_flax:
            ours, theirs = self.sides
            raise UnmatchedNamesError(
                f"{len(self.unmatched_torch)} {ours} arrays and {len(self.unmatched_flax)} {theirs} arrays have no partner."
                f" Give a mapping file that says which they are:\n{self.mapping_to_complete()}"
            )
        return self

    def mapping_to_complete(self) -> str:
        """Return a mapping file for what is left, its paths to be filled in; empty if nothing is."""
        left = list(self.unmatched_flax.items())[:_MOST_LISTED]
        lines = [f"# {inert(path)} {shape} is left in {self.sides[1]}" for path, shape in left]
        for name, shape in list(self.unmatched_torch.items())[:_MOST_LISTED]:
            size = _size(shape)
            close = [path for path, other in left if _size(other) == size]
            lines.append(f"{inert(name)}: ''  # {shape}; of that size: {', '.join(map(inert, close[:3])) or 'none'}")
        return "\n".join(lines)

    def explain(self) -> str:
        """Return a line for each name: what it is in Flax, and how that was found."""
        lines = [
            f"{inert(entry.name)} {entry.shape} ← {', '.join(map(inert, entry.paths))} (by {entry.how})"
            for entry in self.entries
        ]
        lines += [f"{inert(name)} {shape} ← nothing" for name, shape in self.unmatched_torch.items()]
        return "\n".join(lines + [f"nothing ← {inert(path)} {shape}" for path, shape in self.unmatched_flax.items()])

    def counts(self) -> dict[str, int]:
        """Return how many names were matched in each way, and how many arrays were not."""
        ways = dict(Counter(entry.how for entry in self.entries))
        return ways | {"unmatched": len(self.unmatched_torch) + len(self.unmatched_flax)}


def _size(shape: Shape) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
