"""Find which modules of two models have the same layers in them, by the layers that are paired already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence


def containers(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the modules, below the models themselves, in which the same pairs are, the ones with the fewest first.

    Args:
        pairs: the dotted names of layers that are the same.

    >>> containers([("blocks.0.fc", "Block_0.Dense_0"), ("blocks.1.fc", "Block_1.Dense_0")])
    [('blocks.0', 'Block_0'), ('blocks.1', 'Block_1')]
    """
    inside: tuple[defaultdict[str, set[int]], defaultdict[str, set[int]]] = defaultdict(set), defaultdict(set)
    for i, names in enumerate(pairs):
        for side, name in zip(inside, names, strict=True):
            for module in _around(name):
                side[module].add(i)
    outermost = [
        {frozenset(held): module for module, held in sorted(side.items(), key=lambda item: -len(item[0]))}
        for side in inside
    ]
    shared = [held for held in outermost[0] if held in outermost[1]]
    return [
        (outermost[0][held], outermost[1][held]) for held in sorted(shared, key=lambda held: (len(held), min(held)))
    ]


def is_in(name: str, module: str) -> bool:
    """Tell whether a layer is in a module.

    >>> is_in("blocks.10.fc", "blocks.1")
    False
    """
    return name.startswith(f"{module}.")


def _around(name: str) -> Iterator[str]:
    words = name.split(".")
    return (".".join(words[:count]) for count in range(1, len(words)))
