"""Measure how far the parameters of two trainings as a whole are apart, which all that is computed from them follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noether_core.parity.divergence.table import Column, Table

Array = np.ndarray[Any, Any]

QUANTILE = 0.75  # of the parameters' drifts, weighted by size: that of a few keys does not count


def upstream(table: Table) -> tuple[Array, Array]:
    """Return the updates, and how far the parameters as a whole are apart at each.

    The three-quarter quantile over parameters, weighted by their sizes: a key whose gradient is rounding alone wanders by
    itself, and nothing follows from it.
    """
    columns = list(table.of_stage("param").values())
    if not columns:
        return np.empty(0, np.int64), np.empty(0)
    updates = np.unique(np.concatenate([column.updates for column in columns]))
    parts = [_quantile(columns, updates[start : start + 256]) for start in range(0, len(updates), 256)]
    return updates, np.concatenate(parts)


def _quantile(columns: Sequence[Column], updates: Array) -> Array:
    distances = np.full((len(columns), len(updates)), np.nan)
    for row, column in enumerate(columns):
        begin, end = np.searchsorted(column.updates, [updates[0], updates[-1] + 1])
        distances[row, np.searchsorted(updates, column.updates[begin:end])] = np.minimum(
            column.distance[begin:end], 2.0
        )
    weights = np.array([column.size for column in columns], np.float64)
    order = np.argsort(distances, axis=0)  # NaN last
    sizes = np.where(np.isnan(distances), 0.0, weights[:, None])
    shares = np.cumsum(np.take_along_axis(sizes, order, 0), axis=0)
    places = np.argmax(shares >= QUANTILE * shares[-1], axis=0)
    picked = np.take_along_axis(distances, np.take_along_axis(order, places[None], 0), 0)[0]
    return np.asarray(np.nan_to_num(picked))
