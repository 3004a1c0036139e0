"""Hold what the newest steps had of a key, on the host: numbers, the elements of small arrays, what was read of large ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.expansion import Expansion
from noether_core.algebra.sums import Statistics
from noether_core.silence import SILENT

MOST_SHOWN = 16  # elements of an array that is given whole

_Array = np.ndarray[Any, Any]


class Cells(NamedTuple):
    """Hold what steps had of one key, a row a step.

    Attributes:
        values: [steps] or [steps, elements]; None where there are statistics only.
        statistics: of large arrays [steps], or None.
        elements: of a value.
        is_weighted: whether a weight weighs the statistics.
    """

    values: _Array | None
    statistics: Statistics | None
    elements: int
    is_weighted: bool

    @SILENT
    def odd(self) -> _Array:
        """Tell of each step whether its value was NaN or infinite, or had elements that were."""
        if self.values is None:
            assert self.statistics is not None
            counts: _Array = self.statistics.nan + self.statistics.positive + self.statistics.negative
            return counts > 0
        odd: _Array = np.logical_not(np.isfinite(self.values))
        return odd if odd.ndim == 1 else np.logical_or.reduce(odd, axis=1)

    def value(self, row: int) -> Any:
        """Return the value of a step: a number, a list of few, or a dict that says what is known of many."""
        if self.values is None:
            return self._of_statistics(row)
        found = self.values[row]
        return found.tolist() if found.size <= MOST_SHOWN else _summary(found)

    def _of_statistics(self, row: int) -> dict[str, Any]:
        assert self.statistics is not None
        odd = {
            name: int(count[row])
            for name, count in zip(("nan", "inf", "-inf"), self.statistics[-4:-1], strict=True)
            if count[row]
        }
        found: dict[str, Any] = {"elements": self.elements}
        finite = self.elements - sum(odd.values())
        if finite > 0:
            ends = {"min": self.statistics.minimum, "max": self.statistics.maximum}
            found |= {name: _number(parts, row) for name, parts in ends.items() if parts}
            if not self.is_weighted:
                found["mean"] = _number(self.statistics.total, row) / finite
        return {**found, **odd}


def _number(parts: Expansion, row: int) -> float:
    return float(sum(part[row] for part in parts))


@SILENT
def _summary(values: _Array) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    found: dict[str, Any] = {"elements": values.size}
    if finite.size:
        found |= {
            "min": finite.min().item(),
            "max": finite.max().item(),
            "mean": finite.mean(dtype=np.float64).item(),
        }
    odd = {"nan": np.isnan(values), "inf": values == math.inf, "-inf": values == -math.inf}
    return {**found, **{name: count for name, where in odd.items() if (count := int(where.sum()))}}


class Latest(NamedTuple):
    """Hold the newest values of a key, in one part or several, such as of different dtypes.

    Attributes:
        key: the key.
        positions: int64, of the steps that had them (`noether_core.algebra.position`), part by part; each step once.
        cells: the values, part by part.
    """

    key: str
    positions: tuple[_Array, ...]
    cells: tuple[Cells, ...]

    @property
    def is_odd(self) -> bool:
        """Tell whether one of them is NaN or infinite, or has such an element."""
        return any(cells.odd().any() for cells in self.cells)

    @property
    def elements(self) -> int:
        """Return how many elements a value has at most."""
        return max(cells.elements for cells in self.cells)

    def newest(self, most: int) -> Iterator[tuple[int, Any]]:
        """Yield the positions and the values of so many steps, the newest last."""
        rows = sorted(
            (position, part, row)
            for part, positions in enumerate(self.positions)
            for row, position in list(enumerate(positions.tolist()))[-most:]
        )
        for position, part, row in rows[-most:]:
            yield position, self.cells[part].value(row)


def joined(found: Iterable[tuple[str, _Array, Cells]]) -> list[Latest]:
    """Return what is there of each key, in the order that they came, from its parts."""
    parts: dict[str, list[tuple[_Array, Cells]]] = {}
    for key, positions, cells in found:
        parts.setdefault(key, []).append((positions, cells))
    return [Latest(key, *zip(*of_key, strict=True)) for key, of_key in parts.items()]
