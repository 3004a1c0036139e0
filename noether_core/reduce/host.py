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
from noether_core.reduce.eager import Batch, EagerKernels, PendingReducer, ReducerState
from noether_core.reduce.layout import Pending, Step, Taken
from noether_core.select import Doubled

DEVICE = "host"
_PYTHON_DTYPES = {bool: "bool", int: "int64", float: "float64"}
_LIST_DTYPES = (*_PYTHON_DTYPES.values(), "uint64")  # what NumPy makes of Python numbers
_PLAIN_SUBCLASSES = frozenset({np.matrix, np.memmap, np.recarray})  # whose elements mean what an array's do
_CONVERTED = _PLAIN_SUBCLASSES | {list, tuple}
_MOST_DIMENSIONS = 64  # NumPy's own bound


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

    def room(
        self, vectors: Sequence[np.ndarray[Any, Any]], count: int
    ) -> Sequence[Sequence[np.ndarray[Any, Any]]] | None:
        return [list(np.empty((count, len(each)), each.dtype)) for each in vectors]

    def put_into(self, row: np.ndarray[Any, Any], vectors: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        return np.concatenate(vectors, out=row)

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
        return _as_plain(value)
    return np.array(value if isinstance(value, bool | int | float | np.ndarray | np.generic) else value.item())


def is_converted(value: Any) -> bool:
    """Tell whether a value is taken as another.

    A list or tuple of numbers is taken as an array, an int beyond 64 bits as a float64, and a matrix, a memory map or an array
    of another byte order as a plain array.
    """
    kind = type(value)
    if kind is np.ndarray:
        return not value.dtype.isnative
    return kind in _CONVERTED or (kind is int and not -(2**63) <= value < 2**63)


def _as_plain(value: Any) -> np.ndarray[Any, Any]:
    """Return the array, or raise TypeError, ValueError or OverflowError if it holds what is no number or is ragged."""
    if isinstance(value, np.ndarray):
        return np.array(value, value.dtype.newbyteorder("="), subok=False)
    if isinstance(value, int):
        return np.array(value, np.uint64) if 0 <= value < 2**64 else np.array(float(value))
    _require_numbers(value, 0)
    array = np.array(value)
    is_whole = array.dtype == object and all(isinstance(item, int) for item in array.flat)
    return array.astype(np.float64) if is_whole else array


def _require_numbers(value: list[Any] | tuple[Any, ...], depth: int) -> None:
    """Raise TypeError for a list that holds what is no number: NumPy would drop a mask, or ask a device to hand it over."""
    for item in value:
        if type(item) in (list, tuple) and depth < _MOST_DIMENSIONS:
            _require_numbers(item, depth + 1)
        elif type(item) not in (bool, int, float, np.ndarray) and not isinstance(item, np.generic):
            raise TypeError(f"a list of {type(item).__name__}")


class _HostKernels(EagerKernels):
    """Take the short ways: nothing is to be transferred, and nothing computed of scalars as they come."""

    def take(self, step: Step, earlier: Sequence[Pending]) -> tuple[Pending, Taken]:
        if step.arrays or step.weight is not None:
            return super().take(step, earlier)
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
        if isinstance(value, np.ndarray) and type(value) not in _PLAIN_SUBCLASSES | {np.ndarray}:
            raise _subclass_error(key, value)
        is_python = not isinstance(value, np.ndarray) and is_converted(value)
        if is_python:
            try:
                value = _as_plain(value)
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
        is_wide = value.dtype.name == "float64" or (is_python and value.dtype in _LIST_DTYPES)
        return ValueType(value.dtype.name, value.shape, DEVICE, is_wide)

    def local(self, values: Sequence[Any]) -> list[Any]:
        """Return the values themselves: none is spread over processes."""
        return list(values)

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
_FRAMEWORKS = {
    "torch": ("PyTorch", "noether_torch"),
    "jax": ("JAX", "noether_jax"),
    "jaxlib": ("JAX", "noether_jax"),
}


def _subclass_error(key: str, value: np.ndarray[Any, Any]) -> UpdateOutputError:
    advice = "take its values as they are with np.asarray, or do not track it"
    if isinstance(value, np.ma.MaskedArray):
        advice = (
            "give the elements that are not masked, .compressed(), or all of them with the config's `weight` naming an output"
            " that is 0 where it is masked"
        )
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return UpdateOutputError(
        f"update output {key!r} is {kind}, whose elements may mean something else; expected a plain NumPy array: {advice}"
    )


def signature(value: Any) -> Any:
    """Return what decides the plan for a value on the host."""
    kind = type(value)
    if isinstance(value, np.ndarray | np.generic):
        return kind, value.dtype, value.shape
    if kind not in (list, tuple, int) or not is_converted(value):
        return kind
    try:
        array = _as_plain(value)
    except (TypeError, ValueError, OverflowError):
        return list  # never planned, for it is refused
    return list, array.dtype, array.shape


def inspect(key: str, value: Any, framework: str) -> ValueType:
    """Return the type of a Python or NumPy value.

    Raises:
        UpdateOutputError: for a value of another type or dtype; the message names the key and the type.
    """
    if isinstance(value, Doubled):
        raise value.error()
    found = HOST.inspect(key, value)
    if found is not None:
        return found
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    shown = f" {value!r:.60}" if isinstance(value, str | bytes | list | tuple | complex) else ""
    owner, package = _FRAMEWORKS.get(type(value).__module__.partition(".")[0], (framework, ""))
    advice = "convert it to an array, or name only keys and patterns that fit"
    if owner != framework:
        advice = f"a {owner} array needs the callback of {package}"
    raise UpdateOutputError(
        f"update output {key!r} is {kind}{shown}; expected a {framework} array, a NumPy array or a Python number: {advice}"
    )
