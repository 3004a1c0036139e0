"""Keep the newest steps of a compiled function on its device: a ring of what each step had of each key.

What is kept of a step is the row of statistics that it adds to an interval: of a number its value, of an array how many of its
elements were not finite, the sum of the others, and their extremes if they are reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import encode_position
from noether_core.algebra.sums import Fields, Statistics, each, fold_tree
from noether_core.reduce.latest import Cells, Latest
from noether_core.reduce.partial import WHOLE_DTYPES, Vector
from noether_core.silence import SILENT
from noether_jax import packing
from noether_jax.fetched_state import PositionOf
from noether_jax.ops import JaxOps
from noether_jax.rows import in_slots
from noether_jax.slots import Slot


class Recent(NamedTuple):
    """Hold the newest steps, each at the place of its number.

    Attributes:
        steps: int32 [kept], the numbers of the steps; -1 where there was none.
        words: uint32 [kept, fields, slots, 2], see `noether_jax.packing`: what each had, and whether it had it.
    """

    steps: Array
    words: Array


def _fields(fields: Fields) -> Fields:
    """Return what of the statistics is kept."""
    return Fields(extremes=fields.extremes)


def row_of(ops: JaxOps, rows: Statistics, source: Vector | None, is_here: Vector, fields: Fields) -> jax.Array:
    """Return the words of a step: its rows, [1, values], and which of the slots it has a value for."""
    kept = in_slots(ops, rows._replace(squares=(), weighted=(), weights=()), source, _fields(fields))
    return packing.pack(ops, each(lambda field: field[0], kept), jnp.asarray(is_here, jnp.int64))


def blank_row(ops: JaxOps, slots: int, fields: Fields) -> Vector:
    """Return the words of a step that has nothing; of one slot at least, for Orbax saves no array without elements."""
    return packing.initial(ops, _fields(fields), max(1, slots), 0)


def no_steps(ops: JaxOps, slots: int, fields: Fields, kept: int) -> Recent:
    """Return the ring of no steps, in NumPy arrays."""
    row = blank_row(ops, slots, fields)
    return Recent(np.full(kept, -1, np.int32), np.broadcast_to(row, (kept, *row.shape)))


def with_step(recent: Recent, row: jax.Array, step: jax.Array) -> Recent:
    """Return a ring with one more step, in the place of the oldest."""
    at = jax.lax.rem(step, jnp.int32(recent.steps.shape[0]))
    put = jax.lax.dynamic_update_index_in_dim
    return Recent(put(recent.steps, step, at, 0), put(recent.words, row, at, 0))


@SILENT
def latest_of(
    ops: JaxOps, fields: Fields, slots: Sequence[Slot], recent: Recent, position_of: PositionOf
) -> list[Latest]:
    """Return the newest values of each key, in the order of logging.

    Args:
        ops: those that the ring was made with.
        fields: of the tracker.
        slots: of the ring.
        recent: its arrays are on the host, and each has a leading axis of members (at least one), which are joined.
        position_of: returns the update (from 1) and the accumulation step (from 0) of a step.
    """
    members, steps = recent.steps.shape[0], recent.steps[0]
    order = np.argsort(steps, kind="stable")[int((steps < 0).sum()) :]
    if not order.size:
        return []
    found, (is_here,) = packing.from_host(ops, _fields(fields), np.moveaxis(recent.words[:, order], 2, 0))
    statistics = fold_tree(NUMPY, found)
    positions = np.array([encode_position(*position_of(int(step))) for step in steps[order]], np.int64)
    latest = []
    for at, slot in sorted(enumerate(slots), key=lambda each: each[1].order):
        came = np.flatnonzero(is_here[..., at].any(0))
        if came.size:
            own = each(lambda field, at=at, came=came: field[came, at], statistics)
            elements = members * prod(slot.shape)
            cells = Cells(_numbers(own, slot) if elements == 1 else None, own, elements, False)
            latest.append(Latest(slot.key, (positions[came],), (cells,)))
    return latest


def _numbers(statistics: Statistics, slot: Slot) -> Vector:
    """Return the values of a slot that has one element."""
    total = sum(part.astype(np.int64) if slot.dtype in WHOLE_DTYPES else part for part in statistics.total)
    if slot.dtype in WHOLE_DTYPES:
        return np.asarray(total)
    odd = [(statistics.nan, np.nan), (statistics.positive, np.inf), (statistics.negative, -np.inf)]
    return np.select([count > 0 for count, _ in odd], [value for _, value in odd], total)
