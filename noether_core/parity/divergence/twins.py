"""Tell a twin that rounding moves from one that draws random numbers of its own, which tells nothing of rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from noether_core.parity.divergence.distance import distances_of_rows
from noether_core.parity.divergence.drifts import upstream
from noether_core.parity.divergence.shape import share_of_coarse
from noether_core.parity.divergence.table import Column, Table, pair_of
from noether_core.parity.divergence.training import Training

Array = np.ndarray[Any, Any]

FAR = {"act": 1e-2, "loss": 1e-3}  # a distance that rounding in binary32 does not make of parameters that agree
FAR_IF_COARSE = 0.05  # the same where values are rounded to bfloat16 on the way
GROWTH = 1000.0  # how many times as far as the parameters what is computed from them may be
MANY_ROWS = 0.1  # the share of rows that are apart: a rounding error that turns a choice, such as a route, moves few
COARSE = 0.9  # the share of bfloat16's values that an array of them has


@dataclass(frozen=True)
class Parting:
    """Say where a twin parts from its base by more than rounding can.

    Attributes:
        label: the base's.
        update: counted from 1.
        key: the first that does.
        distance: its relative distance.
    """

    label: str
    update: int
    key: str
    distance: float


def parting(base: Training, twin: Training, table: Table) -> Parting | None:
    """Return where a twin is apart from its base by more than rounding can, with the same data and parameters; None if nowhere.

    So does a twin with its rows in another order where each row draws random numbers of its own, as in dropout, or where
    something is carried from one batch's rows to the next one's.

    Args:
        base: a training.
        twin: one of its twins.
        table: what was measured of them.
    """
    updates, drifts = upstream(table)
    columns = [(key, column) for stage in FAR for key, column in table.of_stage(stage).items()]
    suspects = []
    for place, (key, column) in enumerate(columns):
        least = FAR[key.partition("/")[0]]
        drift = drifts[np.minimum(np.searchsorted(updates, column.updates), len(updates) - 1)] if len(updates) else 0.0
        far = column.distance / column.nearby > np.maximum(least, GROWTH * drift)
        suspects += [(int(column.updates[row]), place) for row in np.flatnonzero(far)]
    for update, place in sorted(suspects):
        key, column = columns[place]
        if _is_by_chance(base, twin, table, update, key, column):
            return Parting(base.label or "a training", update, key, float(column.distance[column.at(update)]))
    return None


def before(table: Table, update: int) -> Table:
    """Return what was measured before an update."""
    columns = {key: _before(column, update) for key, column in table.columns.items()}
    return replace(
        table,
        columns={key: column for key, column in columns.items() if len(column.updates)},
        updates=[each for each in table.updates if each < update],
        drifts={each: drift for each, drift in table.drifts.items() if each < update},
    )


def _before(column: Column, update: int) -> Column:
    end = int(np.searchsorted(column.updates, update))
    return replace(
        column,
        updates=column.updates[:end],
        distance=column.distance[:end],
        norm_a=column.norm_a[:end],
        norm_b=column.norm_b[:end],
        whole=column.whole[:end],
    )


def _is_by_chance(base: Training, twin: Training, table: Table, update: int, key: str, column: Column) -> bool:
    """Say whether many rows are apart, and no coarser rounding explains it."""
    pair = pair_of(base, twin, table, update, key)
    distance = float(column.distance[column.at(update)])
    if distance <= FAR_IF_COARSE and _is_coarse(base, update):
        return False
    if pair is None or not pair[0].ndim or len(pair[0]) < 2:
        return True
    rows = distances_of_rows(*pair)
    return bool(np.mean(rows > 0.1 * distance) >= MANY_ROWS)


def _is_coarse(training: Training, update: int) -> bool:
    arrays = (training.array(update, key) for key in training.keys(update) if key.startswith(("act/", "param/")))
    return any(share_of_coarse(array) > COARSE for array in arrays if array is not None)
