"""Use what is known of arrays' values to recognise layers, and to tell layouts of one shape apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from noether_core.names.fingerprint import fingerprint
from noether_core.names.layout import Shape, flattened
from noether_core.names.pairing import Pair
from noether_core.names.pieces import Entry, Piece, to_torch, whole
from noether_core.names.units import Unit, Variant

_MOST_CHANNELS = 4096  # of a flattened image that are tried


class Values:
    """Hold the arrays of both models, or their shapes.

    Args:
        torch, flax: arrays, or shapes, by name and by path.
    """

    def __init__(self, torch: Mapping[str, Any], flax: Mapping[str, Any]) -> None:
        self._torch, self._flax = torch, flax
        self._marks: dict[Unit, Any] = {}

    def mark(self, unit: Unit) -> Any:
        """Return a key of the values of a layer's weights, whatever their order; None if they are not known."""
        if unit not in self._marks:
            self._marks[unit] = self._mark(unit)
        return self._marks[unit]

    def _mark(self, unit: Unit) -> Any:
        marks = []
        for role, pieces in sorted(unit.variants[0].roles.items()):
            if "bias" not in role:
                array = self._together(pieces)
                if array is None:
                    return None
                marks.append((role, fingerprint(array)))
        return tuple(marks) or None

    def likeliest(self, pair: Pair) -> Variant:
        """Return the reading in which both layers' weights are equal, if there is one; else the likeliest by its shape."""
        first = pair.readings[0]
        main = pair.torch.main_role
        wanted = self._together(pair.torch.variants[0].roles[main])
        found = None if wanted is None else self._together(first.roles[main])
        if found is None or np.array_equal(wanted, found) or fingerprint(wanted) != fingerprint(found):
            return first
        others = (*pair.readings[1:], *_flattenings(first, main))
        return next((each for each in others if np.array_equal(wanted, self._together(each.roles[main]))), first)

    def _together(self, pieces: Sequence[Piece]) -> Any:
        """Return an array put together of its blocks, or None if not all are known."""
        arrays = {}
        for piece in pieces:
            array = _known(self._torch.get(piece.path, self._flax.get(piece.path)))
            if array is None:
                return None
            arrays[piece.path] = array
        return to_torch([Entry("", tuple(pieces), "")], arrays, gradients=False)[""]


def _known(array: Any) -> np.ndarray[Any, Any] | None:
    """Return an array's values; None for a shape, or for what a compiled function will compute."""
    if not hasattr(array, "__array__"):
        return None
    try:
        return np.asarray(array)
    except TypeError:  # JAX's for a traced value
        return None


def _flattenings(reading: Variant, main: str) -> Iterator[Variant]:
    """Yield a linear layer's readings as one after a flattened image, of any number of channels."""
    pieces = reading.roles[main]
    stored: Shape = pieces[0].layout.stored
    if reading.kind != "linear" or len(pieces) != 1 or len(stored) != 2:
        return
    for channels in range(2, min(stored[0], _MOST_CHANNELS)):
        if stored[0] % channels == 0:
            yield Variant(reading.kind, {**reading.roles, main: whole(pieces[0].path, flattened(stored, channels))})
