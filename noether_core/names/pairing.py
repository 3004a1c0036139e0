"""Pair the layers of two models: by a mapping, by name, by their values, by shape, and by order where it means something.

Each way pairs only what it leaves no doubt about; what is left goes on to the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from noether_core.names.containers import containers, is_in
from noether_core.names.units import Unit, Variant, fitting
from noether_core.names.words import last_meaning, meanings, numbers, without_numbers, words

Key = Callable[[Unit], Hashable]


@dataclass(frozen=True)
class Pair:
    """Hold two layers that are the same one.

    Attributes:
        torch, flax: the layers.
        readings: in which of Flax's readings it fits, the likeliest first.
        how: `mapping`, `name`, `fingerprint`, `shape` or `order`.
    """

    torch: Unit
    flax: Unit
    readings: tuple[Variant, ...]
    how: str


class Pairing:
    """Hold what is paired, and what is left.

    Args:
        torch, flax: the layers, in the order of their models.
        fingerprint: a key of a layer's values in any order, None where they are not known.
        ordered: whether the order of `torch` and that of `flax` mean something, though names do not only count.
        sides: what messages call the two models.
    """

    def __init__(
        self,
        torch: Sequence[Unit],
        flax: Sequence[Unit],
        fingerprint: Key,
        ordered: tuple[bool, bool],
        sides: tuple[str, str],
    ) -> None:
        self.pairs: list[Pair] = []
        self.torch, self.flax = dict.fromkeys(torch), dict.fromkeys(flax)
        self._fingerprint, self._ordered, self.sides = fingerprint, ordered, sides

    def add(self, torch: Unit, flax: Unit, how: str, exact: bool = False) -> bool:
        """Pair two layers that are left, if they fit; return whether they do. Where `exact`, none may lack an array."""
        readings = fitting(torch, flax, exact) if torch in self.torch and flax in self.flax else []
        if not readings:
            return False
        self.pairs.append(Pair(torch, flax, tuple(readings), how))
        del self.torch[torch], self.flax[flax]
        return True

    def take_apart(self) -> None:
        """Replace each layer that is left, and is made of layers, by these."""
        self.torch = dict.fromkeys(part for unit in self.torch for part in unit.parts or (unit,))
        self.flax = dict.fromkeys(part for unit in self.flax for part in unit.parts or (unit,))

    def run(self, only: Callable[[Unit], bool] = lambda _: True) -> None:
        """Pair what can be paired, of the layers for which `only` is true, in every way but by a mapping."""
        self._by(lambda unit: words(unit.name), "name", only)
        self._by(self._fingerprint, "fingerprint", only)
        self._by(lambda unit: meanings(unit.name), "name", only, counted=True)
        self._by(lambda unit: last_meaning(unit.name), "name", only, counted=True)
        before = -1
        while before < len(self.pairs):
            before = len(self.pairs)
            self._by_order(lambda unit: last_meaning(unit.name)[-1:], only)
            self._inside(only)
            if before == len(self.pairs):  # what is in one module goes before what is anywhere
                self._by_order(lambda _: (), only)

    def _by_orders(self, only: Callable[[Unit], bool]) -> None:
        self._by_order(lambda unit: last_meaning(unit.name)[-1:], only)
        self._by_order(lambda _: (), only)

    def _inside(self, only: Callable[[Unit], bool]) -> None:
        """Pair layers in modules of which it is known, by other layers in them, that they are the same."""
        known = [(pair.torch.name, pair.flax.name) for pair in self.pairs]
        for ours, theirs in containers(known):
            here = {unit for unit in self.torch if is_in(unit.name, ours) and only(unit)}
            here |= {unit for unit in self.flax if is_in(unit.name, theirs) and only(unit)}
            if here:
                self._by_orders(here.__contains__)

    def _by(self, key: Key, how: str, only: Callable[[Unit], bool], counted: bool = False) -> None:
        """Pair layers of one key.

        Where it has numbers that are `counted`, two models may count differently. Two keys are then the same only where all
        layers of a shape have the same ones in both models.
        """
        for torch, flax in self._alike(only, exact=counted):
            left, right = _unique(torch, key), _unique(flax, key)
            if counted and (left.keys() != right.keys() or len(left) != len(torch) or len(right) != len(flax)):
                continue
            for shared in left:
                if shared in right:
                    self.add(left[shared], right[shared], how)

    def _by_order(self, key: Key, only: Callable[[Unit], bool]) -> None:
        """Pair layers of one shape that are as many on both sides: one, or several in the order of their models."""
        for torch, flax in self._alike(only, exact=True):
            left, right = _grouped(torch, key), _grouped(flax, key)
            if {each: len(units) for each, units in left.items()} != {
                each: len(units) for each, units in right.items()
            }:
                continue
            for shared, ones in left.items():
                counted = _in_order(ones, self._ordered[0]), _in_order(right[shared], self._ordered[1])
                alone = "shape" if len(torch) == 1 else "name"
                for one, other in zip(*counted, strict=all(counted)):
                    self.add(one, other, alone if len(ones) == 1 else "order", exact=True)

    def _alike(self, only: Callable[[Unit], bool], exact: bool) -> Iterator[tuple[list[Unit], list[Unit]]]:
        """Yield PyTorch's layers of one kind and shape that are left, and Flax's that fit them."""
        for torch in list(_grouped([unit for unit in self.torch if only(unit)], _signature).values()):
            left = [unit for unit in torch if unit in self.torch]
            size = left[0].size if left else -1
            flax = [unit for unit in self.flax if unit.size == size and only(unit) and fitting(left[0], unit, exact)]
            if flax:
                yield left, flax


def _in_order(units: list[Unit], ordered: bool) -> list[Unit]:
    """Return layers in the order in which a model has them; none if that is not known."""
    if len(units) == 1 or (ordered and all(unit.ordered for unit in units)):
        return units
    if len({without_numbers(unit.name) for unit in units}) > 1:
        return []
    return sorted(units, key=lambda unit: numbers(unit.name))


def _signature(unit: Unit) -> Hashable:
    one = unit.variants[0]
    return one.kind, tuple(sorted(one.shapes().items()))


def _grouped(units: Sequence[Unit], key: Key) -> dict[Hashable, list[Unit]]:
    groups: defaultdict[Hashable, list[Unit]] = defaultdict(list)
    for unit in units:
        groups[key(unit)].append(unit)
    return dict(groups)


def _unique(units: Sequence[Unit], key: Key) -> dict[Hashable, Unit]:
    groups = _grouped(units, key)
    return {each: found[0] for each, found in groups.items() if len(found) == 1 and each is not None}
