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
    """Return a copy of a value on the host: a number, a list of numbers, or another library's single number."""
    if is_converted(value):
        return _from_python(value)
    return np.array(value if isinstance(value, bool | int | float | np.ndarray | np.generic) else value.item())


def is_converted(value: Any) -> bool:
    """Tell whether a value is taken as another: a list or tuple of numbers as an array, an int beyond 64 bits as a float64."""
    return type(value) in (list, tuple) or (type(value) is int and not -(2**63) <= value < 2**63)


def _from_python(value: Any) -> np.ndarray[Any, Any]:
    """Return the array, or raise TypeError, ValueError or OverflowError if it holds what is no number or is ragged."""
    if isinstance(value, int):
        return np.array(float(value))
    array = np.array(value)
    is_whole = array.dtype == object and all(isinstance(item, int) for item in array.flat)
    return array.astype(np.float64) if is_whole else array


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
        return [(state.sums, self.batch(state)) for state in states], self._ops.to_host(copies)


def is_trackable(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype holds bools, ints or floats, ml_dtypes' bfloat16 and float8 among them.

    >>> is_trackable(np.dtype("float16")), is_trackable(np.dtype("complex64"))
    (True, False)
    """
    if dtype.kind in "biufc":
        return dtype.kind != "c" and dtype.itemsize <= 8
    return dtype.kind == "V" and dtype.type.__module__ == ml_dtypes.__name__


class HostBackend:
    """Know what is on the host, whatever the framework: Python numbers and lists of them, NumPy scalars and arrays."""

    name = "NumPy"
    # infinities that meet are counted, not warned about
    reducer = PendingReducer(_HostKernels(_HostOps(), partial(np.errstate, over="ignore", invalid="ignore")))

    def signature(self, values: Sequence[Any]) -> Any:
        """Return what decides the plan for these values."""
        return tuple(map(signature, values))

    def inspect(self, key: str, value: Any) -> ValueType | None:
        """Return the type of a value on the host; None for what is none.

        Raises:
            UpdateOutputError: for an array of another dtype, or an int that no float64 is near.
        """
        is_python = is_converted(value)
        if is_python:
            try:
                value = _from_python(value)
            except (TypeError, ValueError):
                return None
            except OverflowError as error:
                what = f"is an int of {value.bit_length()} bits" if isinstance(value, int) else "holds an int"
                raise UpdateOutputError(f"update output {key!r} {what} that float64 cannot hold; scale it") from error
            if value.dtype == object or value.dtype.kind in "SU":
                return None
        if type(value) in _PYTHON_DTYPES:
            return ValueType(_PYTHON_DTYPES[type(value)], (), DEVICE, wide=True)
        if not isinstance(value, np.ndarray | np.generic):
            return None
        if not is_trackable(value.dtype):
            raise UpdateOutputError(
                f"update output {key!r} has dtype {value.dtype}; expected bools, ints or floats: convert it, or do not track it"
            )
        is_wide = value.dtype == np.float64 or (is_python and value.dtype in _PYTHON_DTYPES.values())
        return ValueType(value.dtype.name, value.shape, DEVICE, is_wide)

    def processes(self) -> tuple[int, int]:
        """Return that there is one process."""
        return 0, 1

    def to_numpy(self, values: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
        """Return copies of values."""
        return list(map(as_numpy, values))

    def from_numpy(self, value: np.ndarray[Any, Any], like: Any = None) -> np.ndarray[Any, Any]:
        """Return a copy of an array."""
        return value.copy()


HOST = HostBackend()


def signature(value: Any) -> Any:
    """Return what decides the plan for a value on the host."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype, value.shape
    if type(value) in (list, tuple):
        try:
            array = _from_python(value)
        except (TypeError, ValueError, OverflowError):
            return list  # never planned, for it is refused
        return list, array.dtype, array.shape
    return "an int beyond 64 bits" if is_converted(value) else type(value)


def inspect(key: str, value: Any, framework: str) -> ValueType:
    """Return the type of a Python or NumPy value.

    Raises:
        UpdateOutputError: for a value of another type or dtype; the message names the key and the type.
    """
    found = HOST.inspect(key, value)
    if found is not None:
        return found
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
