"""Track values that are on the host already: Python numbers, NumPy scalars and arrays, whatever the framework."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import ml_dtypes
import numpy as np

from noether_core.algebra.numpy_ops import NumpyOps
from noether_core.algebra.sums import Statistics
from noether_core.errors import UpdateOutputError
from noether_core.reduce.backend import ValueType
from noether_core.reduce.eager import Batch, EagerKernels, Pending, PendingReducer, ReducerState
from noether_core.reduce.layout import Step, Taken

DEVICE = "host"
_PYTHON_DTYPES = {bool: "bool", int: "int64", float: "float64"}


class _HostOps(NumpyOps):
    def stack(self, values: Sequence[Any], dtype: str) -> np.ndarray[Any, Any]:
        try:  # NumPy's scalars and other libraries' have it; where all are of one type, this is the fastest
            numbers = list(map(type(values[0]).item, values))
        except (AttributeError, TypeError):
            numbers = [value if type(value) in _PYTHON_DTYPES else value.item() for value in values]
        return np.array(numbers, _dtype(dtype))

    def weight(self, value: Any, like: Any) -> np.ndarray[Any, Any]:
        return as_numpy(value).reshape(-1)

    def stack_rows(self, rows: Sequence[Any]) -> np.ndarray[Any, Any]:
        return np.stack(rows)

    def copy(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array(value, order="C")

    def positions(self, positions: Sequence[int], like: Any) -> np.ndarray[Any, Any]:
        return np.array(positions, np.int64)[:, None]

    def to_host(self, values: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return [value.copy() for value in values]


@cache
def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def as_numpy(value: Any) -> np.ndarray[Any, Any]:
    """Return a copy of a Python number, a NumPy value, or another library's single number that is on the host."""
    return np.array(value if isinstance(value, bool | int | float | np.ndarray | np.generic) else value.item())


class _HostKernels(EagerKernels):
    """Take the short ways: nothing is to be transferred, and nothing computed of scalars as they come."""

    def take(self, step: Step) -> tuple[Pending, Taken]:
        if step.arrays or step.weight is not None:
            return super().take(step)
        rows = tuple(map(self._ops.stack, step.scalars, step.layout.dtypes))
        return Pending(rows, None, (), step.position), Taken(rows, ())

    def to_host(
        self, states: Sequence[ReducerState], copies: Sequence[np.ndarray[Any, Any]]
    ) -> tuple[list[tuple[Statistics | None, Batch]], list[np.ndarray[Any, Any]]]:
        return [(state.sums, self.batch(state)) for state in states], [copy.copy() for copy in copies]


# infinities that meet are counted, not warned about
REDUCER = PendingReducer(_HostKernels(_HostOps(), partial(np.errstate, over="ignore", invalid="ignore")))


def is_trackable(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype holds bools, ints or floats, ml_dtypes' bfloat16 and float8 among them.

    >>> is_trackable(np.dtype("float16")), is_trackable(np.dtype("complex64"))
    (True, False)
    """
    if dtype.kind in "biufc":
        return dtype.kind != "c" and dtype.itemsize <= 8
    return dtype.kind == "V" and dtype.type.__module__ == ml_dtypes.__name__


def signature(value: Any) -> Any:
    """Return what decides the plan for a value on the host."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype, value.shape
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return value  # its own plan, so that inspect sees it
    return type(value)


def inspect(key: str, value: Any, framework: str) -> ValueType:
    """Return the type of a Python or NumPy value.

    Raises:
        UpdateOutputError: for a value of another type or dtype; the message names the key and the type.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UpdateOutputError(f"update output {key!r} is the int {value}, beyond 64 bits; give it as a float")
    if type(value) in _PYTHON_DTYPES:
        return ValueType(_PYTHON_DTYPES[type(value)], (), DEVICE, wide=True)
    if isinstance(value, np.ndarray | np.generic):
        if not is_trackable(value.dtype):
            raise UpdateOutputError(
                f"update output {key!r} has dtype {value.dtype}; expected bools, ints or floats: convert it, or do not track it"
            )
        return ValueType(value.dtype.name, value.shape, DEVICE, wide=value.dtype == np.float64)
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    shown = f" {value!r:.60}" if isinstance(value, str | bytes | list | tuple | complex) else ""
    advice = {
        "torch": "a PyTorch tensor needs the callback of noether_torch",
        "jax": "a JAX array needs the callback of noether_jax",
        "jaxlib": "a JAX array needs the callback of noether_jax",
    }.get(type(value).__module__.partition(".")[0], "convert it to an array, or name only keys and patterns that fit")
    raise UpdateOutputError(
        f"update output {key!r} is {kind}{shown}; expected a {framework} array, a NumPy array or a Python number: {advice}"
    )
