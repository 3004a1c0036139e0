"""Say what a framework's front-end must add: look at a value, and reduce a step's values on their device.

Values that are not the framework's own (Python numbers, NumPy arrays) are the core's business: see `host.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from noether_core.reduce.eager import PendingReducer
from noether_core.reduce.exchange import Exchange


class ValueType(NamedTuple):
    """Describe a value: what decides how it is reduced and finished.

    Attributes:
        dtype: the dtype's name, `float32`, `bfloat16`, `int64`, `bool` …
        shape: its shape.
        device: what it must share with others to be reduced with them, such as its device; `host.DEVICE` for a single number
            whose `item()` waits for nothing.
        wide: whether a mean of it is rounded to float64 (float64 and Python numbers) and not to float32.
        spread: how a value is spread over processes of which each holds a part; equal for values that are spread alike, and
            it prints as words. None for a value that this process holds whole. `shape` is that of what this process holds.
        is_counted: whether this process counts its part. Of what several processes hold one counts it; in the others the step
            has no value of that key, which is there nevertheless.
        is_global: whether `Backend.local` must be asked for what this process holds.
    """

    dtype: str
    shape: tuple[int, ...]
    device: Hashable
    wide: bool
    spread: Hashable = None
    is_counted: bool = True
    is_global: bool = False


class Backend(Protocol):
    """Know a framework's arrays."""

    name: str
    reducer: PendingReducer

    def signature(self, values: Sequence[Any]) -> Hashable:
        """Return what decides the plan for these values, as cheaply as possible; it is asked for at every step.

        Values of one signature have the same `inspect`, so it has in it how they are spread over processes.
        """

    def inspect(self, key: str, value: Any) -> ValueType | None:
        """Return the type of one of the framework's arrays; None for what is not one of them.

        It is asked for once per signature, and talks to no other process. What one process refuses, all refuse.

        Raises:
            UpdateOutputError: for an array that cannot be tracked.
        """

    def local(self, values: Sequence[Any]) -> list[Any]:
        """Return what this process holds of values whose type says `is_global`, as arrays that `inspect` calls plain.

        It is asked for at every step that has such values, and only then, and exchanges nothing. An array has the dtype and
        elements that the type has; each element of a value that is spread is counted by one process alone. Of a value that is
        not counted here it is asked for only if that is a weight.
        """

    def processes(self) -> tuple[int, int]:
        """Return this process's index and the number of processes."""

    def arithmetic(self) -> dict[str, str]:
        """Return by name what decides how the framework computes: devices, the precision of matrix products, and the like.

        Two runs that differ here need not agree to the last bits; a start's record keeps it.
        """

    def exchange(self, time_limit: float) -> Exchange | None:
        """Return what talks to the other processes that the framework was told of; None if there are none.

        All of them make this call.

        Args:
            time_limit: seconds that one waits for the others.

        Raises:
            NoetherError: if they cannot be talked to.
        """

    def to_numpy(self, values: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
        """Return copies of the framework's arrays on the host."""

    def from_numpy(self, value: np.ndarray[Any, Any], like: Any = None) -> Any:
        """Return an array of the framework with the same dtype, shape and bits, that goes together with `like`.

        Without `like` it is on the default device.
        """
