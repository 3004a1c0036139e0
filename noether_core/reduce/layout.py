"""Say where the values of a step go in a state, and hand them over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.algebra.sums import Fields


@dataclass(frozen=True, eq=False)
class Layout:
    """Say where the values of a step go; made once per plan and compared by identity.

    Attributes:
        slots: int64, the state's slot of each value: group by group, then array by array.
        dtypes: the dtype of each group of scalars.
        keep: for each array, whether a copy of it is wanted.
        small: the sizes of the first arrays, which are merged element by element and may be stacked until then: a group
            for each dtype, and in it the sizes that are the same side by side.
        fields: what the sums carry; of all layouts of one state the same.
        keys: of the values, in the order of the slots.
        elements: how many each value has.
    """

    slots: np.ndarray[Any, np.dtype[np.int64]]
    dtypes: tuple[str, ...]
    keep: tuple[bool, ...]
    small: tuple[tuple[int, ...], ...]
    fields: Fields
    keys: tuple[str, ...]
    elements: tuple[int, ...]

    @cached_property
    def stacked(self) -> int:
        """Return how many values a step adds where small arrays are stacked; a large array counts as one, for its sums."""
        return len(self.slots) + sum(size - 1 for sizes in self.small for size in sizes)

    @cached_property
    def has_large(self) -> bool:
        """Tell whether some of the arrays are none of `small`."""
        return len(self.keep) > sum(map(len, self.small))

    def fills(self, num_slots: int) -> bool:
        """Tell whether the values are those of all the state's slots, in order."""
        return self.in_order and len(self.slots) == num_slots

    @cached_property
    def in_order(self) -> bool:
        """Tell whether the slots count up from 0."""
        return bool((self.slots == np.arange(len(self.slots))).all())


class Step(NamedTuple):
    """Hold the values of one accumulation step that live on one device.

    Attributes:
        layout: where they go.
        scalars: groups of one-element values, each group of one dtype.
        arrays: the values of any other size.
        num_slots: how many slots the state must have.
        position: the position of this step (`noether_core.algebra.position`).
        weight: what weighs the values: one element, or as many as each array has; None where nothing does.
    """

    layout: Layout
    scalars: tuple[tuple[Array, ...], ...]
    arrays: tuple[Array, ...]
    num_slots: int
    position: int
    weight: Any = None


class Taken(NamedTuple):
    """Hold copies of a step's values: a vector per group of scalars, and the arrays that were wanted (else None)."""

    rows: tuple[Array, ...]
    arrays: tuple[Array | None, ...]


Room = tuple[Sequence[Sequence[Array]], int]


class Pending(NamedTuple):
    """Hold a step that is only stacked: a vector per group, its weight, and what was read of its other arrays.

    `room` has the places of small arrays, and how many are used: those of the next steps go to the next ones.
    """

    rows: tuple[Array, ...]
    weight: Array | None
    arrays: Any
    position: int
    room: Room | None = None
