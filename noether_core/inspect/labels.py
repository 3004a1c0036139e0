"""Name runs by their paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def path_labels(paths: Sequence[Path]) -> list[str]:
    """Return the end of each path that tells it from the others; of one that is given twice, with its place.

    >>> path_labels([Path("/runs/a/jax"), Path("/runs/b/jax")])
    ['a/jax', 'b/jax']
    """
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{each[-1]} ({place})" for place, each in enumerate(parts, 1)]
