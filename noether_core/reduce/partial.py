"""Say what is known of one key, on the host: the sums of an interval or of a part of it, and what is beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import NEVER
from noether_core.algebra.sums import Statistics, merge

WHOLE_DTYPES = frozenset(["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64))])


class Tally(NamedTuple):
    """Count what is known of a key's values without looking at them.

    Attributes:
        elements: how many elements were lifted.
        wide: whether a mean is rounded to float64.
        whole: whether all were ints or bools.
    """

    elements: int = 0
    wide: bool = False
    whole: bool = True

    def __add__(self, other: Tally) -> Tally:  # type: ignore[override]
        return Tally(self.elements + other.elements, self.wide or other.wide, self.whole and other.whole)


class Partial(NamedTuple):
    """Hold what one key has of an interval, on the host.

    Attributes:
        sums: the sums of its one slot, fields of shape ().
        tally: how many elements there were, and of which kind.
        last: the newest value, in its own dtype and shape; None where it was not kept.
        last_update: the update (from 1) that had it.
        stack: every value in order, where they are stacked.
    """

    sums: Statistics
    tally: Tally = Tally()
    last: np.ndarray[Any, Any] | None = None
    last_update: int = -1
    stack: tuple[np.ndarray[Any, Any], ...] = ()


def merge_partials(a: Partial, b: Partial) -> Partial:
    """Return what a key has of two parts of an interval, `b` the later where both saw the same update."""
    newest = b if b.last_update >= a.last_update else a
    with np.errstate(over="ignore", invalid="ignore"):
        sums = merge(NUMPY, a.sums, b.sums)
    return Partial(sums, a.tally + b.tally, newest.last, newest.last_update, a.stack + b.stack)


class PartialSource(Protocol):
    """Give a callback what was reduced elsewhere, such as inside of a compiled training step."""

    def partials(self) -> Mapping[str, Partial]:
        """Return what each key has of the interval under way, in the order to log them. This may wait for the device."""

    def reset(self) -> None:
        """Start the next interval."""


def first_nonfinite(partial: Partial) -> int | None:
    """Return the position of a key's first NaN or infinity, or None."""
    position = int(partial.sums.first_nonfinite)
    return None if position == NEVER else position
