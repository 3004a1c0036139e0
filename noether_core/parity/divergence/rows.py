"""Find the order of a batch's rows: two trainings may take the same rows of one batch in another order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from noether_core.parity.divergence.training import Training, stage_of

Array = np.ndarray[Any, Any]

BY_ROW = ("data", "act")
"""The stages whose arrays have the batch's rows."""


@dataclass(frozen=True)
class RowOrder:
    """Say which row of the second training's batch is which of the first's. Rows are counted by the first axis.

    Attributes:
        order: for each row of the first, its place in the second.
    """

    order: Array

    def of_second(self, array: Array) -> Array:
        """Return an array of the second training with its rows in the first one's order.

        An array whose first axis holds each row several times in a block, as after `(batch, time, …)` is flattened to
        `(batch·time, …)`, is ordered by blocks; any other array comes back as it is.

        >>> RowOrder(np.array([1, 0])).of_second(np.array([5, 6, 7, 8]))
        array([7, 8, 5, 6])
        """
        rows = len(self.order)
        if not array.ndim or not len(array) or len(array) % rows:
            return array
        block = len(array) // rows
        ordered: Array = array[(self.order[:, None] * block + np.arange(block)).reshape(-1)]
        return ordered


def row_order(a: Training, b: Training, update: int) -> RowOrder | None:
    """Return the order that turns the rows of b's batch into a's, or None if they are in order or not the same rows.

    All arrays of the data must agree on it, so that inputs keep their labels.
    """
    pairs = []
    for key in a.keys(update):
        if stage_of(key) != "data":
            break
        first, second = a.array(update, key), b.array(update, key)
        if first is None or second is None or first.shape != second.shape:
            return None
        pairs.append((first, second))
    batched = [pair for pair in pairs if pair[0].ndim]
    if not batched or len({len(first) for first, _ in batched}) != 1 or len(batched[0][0]) < 2:
        return None
    if all(np.array_equal(first, second) for first, second in batched):
        return None
    order = _order(batched)  # of NaN, which equals nothing, it may be the order that they are in
    return None if order is None or np.array_equal(order, np.arange(len(order))) else RowOrder(order)


def _order(pairs: list[tuple[Array, Array]]) -> Array | None:
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(_rows([second for _, second in pairs])):
        places.setdefault(row, []).append(place)
    order = []
    for row in _rows([first for first, _ in pairs]):
        left = places.get(row)
        if not left:
            return None
        order.append(left.pop(0))
    return np.array(order)


def _rows(arrays: list[Array]) -> list[bytes]:
    """Return each row of all arrays as bytes; equal numbers are equal bytes, whatever the dtypes, and so is every NaN."""
    wide = np.concatenate([np.asarray(each, np.float64).reshape(len(each), -1) + 0.0 for each in arrays], axis=1)
    wide[np.isnan(wide)] = np.nan
    return [row.tobytes() for row in wide]
