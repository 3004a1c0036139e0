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
    """

    dtype: str
    shape: tuple[int, ...]
    device: Hashable
    wide: bool


class Backend(Protocol):
    """Know a framework's arrays."""

    name: str
    reducer: PendingReducer

    def signature(self, values: Sequence[Any]) -> Hashable:
        """Return what decides the plan for these values, as cheaply as possible; it is asked for at every step."""

    def inspect(self, key: str, value: Any) -> ValueType | None:
        """Return the type of one of the framework's arrays; None for what is not one of them.

        Raises:
            UpdateOutputError: for an array that cannot be tracked.
        """

    def processes(self) -> tuple[int, int]:
        """Return this process's index and the number of processes."""

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
