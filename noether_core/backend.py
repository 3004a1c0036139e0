"""Say what a framework's front-end must add: look at a value, and reduce a step's values on their device.

Reducing is what `pending.PendingReducer` does. Values that are not the framework's own (Python
numbers, NumPy arrays) are the core's business: see `host.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from noether_core.expansion import Array
from noether_core.reduce import Columns, Sums


class ValueType(NamedTuple):
    """Describe a value: what decides how it is reduced and finished.

    Attributes:
        dtype: the dtype's name, `float32`, `bfloat16`, `int64`, `bool` …
        shape: its shape.
        place: what it must share with others to be reduced with them, such as its device; `host.PLACE` for a single number
            whose `item()` waits for nothing.
        wide: whether a mean of it is rounded to float64 (float64 and Python numbers) and not to float32.
    """

    dtype: str
    shape: tuple[int, ...]
    place: Hashable
    wide: bool


@dataclass(frozen=True, eq=False)
class Layout:
    """Say where the values of a step go; made once per plan and compared by identity.

    Attributes:
        slots: int64, the state's slot of each value: group by group, then array by array.
        dtypes: the dtype of each group of scalars.
        keep: for each array, whether a copy of it is wanted.
        small: the sizes of the first arrays, which are merged element by element and may be stacked until then: a group
            for each dtype, and in it the sizes that are the same side by side.
        columns: what the sums carry; of all layouts of one state the same.
    """

    slots: np.ndarray[Any, np.dtype[np.int64]]
    dtypes: tuple[str, ...]
    keep: tuple[bool, ...]
    small: tuple[tuple[int, ...], ...]
    columns: Columns

    @cached_property
    def stacked(self) -> int:
        """Return how many values a step adds where small arrays are stacked; a large array counts as one, for its sums."""
        return len(self.slots) + sum(size - 1 for sizes in self.small for size in sizes)

    def fills(self, num_slots: int) -> bool:
        """Tell whether the values are those of all the state's slots, in order."""
        return self.in_order and len(self.slots) == num_slots

    @cached_property
    def in_order(self) -> bool:
        """Tell whether the slots count up from 0."""
        return bool((self.slots == np.arange(len(self.slots))).all())


class Step(NamedTuple):
    """Hold the values of one accumulation step that live in one place.

    Attributes:
        layout: where they go.
        scalars: groups of one-element values, each group of one dtype.
        arrays: the values of any other size.
        num_slots: how many slots the state must have.
        code: the place code of this step.
        weight: what weighs the values: one element, or as many as each array has; None where nothing does.
    """

    layout: Layout
    scalars: tuple[tuple[Array, ...], ...]
    arrays: tuple[Array, ...]
    num_slots: int
    code: int
    weight: Any = None


class Taken(NamedTuple):
    """Hold copies of a step's values: a vector per group of scalars, and the arrays that were wanted (else None)."""

    rows: tuple[Array, ...]
    arrays: tuple[Array | None, ...]


class Reducer(Protocol):
    """Accumulate steps into a state that is opaque to the core. States are never changed in place."""

    def absorb(self, state: Any, step: Step) -> tuple[Any, Taken]:
        """Return the state (None: nothing yet) with a step merged in, and copies of the step's values."""

    def to_host(self, states: Sequence[Any], copies: Sequence[Array]) -> tuple[list[Sums], list[np.ndarray[Any, Any]]]:
        """Return the sums of each state and some copies as NumPy arrays; of each device all in one transfer.

        This is the one place that waits for the device.
        """


class Backend(Protocol):
    """Know a framework's arrays."""

    name: str
    reducer: Reducer

    def signature(self, values: Sequence[Any]) -> Hashable:
        """Return what decides the plan for these values, as cheaply as possible; it is asked for at every step."""

    def inspect(self, key: str, value: Any) -> ValueType | None:
        """Return the type of one of the framework's arrays; None for what is not one of them.

        Raises:
            UpdateOutputError: for an array that cannot be tracked.
        """

    def processes(self) -> tuple[int, int]:
        """Return this process's index and the number of processes."""

    def to_numpy(self, values: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
        """Return copies of the framework's arrays on the host."""

    def from_numpy(self, value: np.ndarray[Any, Any], like: Any = None) -> Any:
        """Return an array of the framework with the same dtype, shape and bits, that goes together with `like`.

        Without `like` it is on the default device.
        """
