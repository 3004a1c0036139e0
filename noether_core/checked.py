"""Read what a saved state holds. What is something else raises `ValueError`, which says what arrived and what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST = 2**62  # of what is counted
MOST_UPDATES = 2**42  # so that the position of an update's step is an int64


def described(value: Any) -> str:
    """Return a value in few words, whatever it is.

    >>> described({"a": 1, 2: 3}), described(0.5)
    ("a dict with 'a', 2", '0.5')
    """
    if isinstance(value, Mapping):
        names = [f"{name!r:.40}" for name in value if isinstance(name, str | int)]
        return f"a {type(value).__name__} with {', '.join(names[:10]) or 'no names'}{' ...' * (len(names) > 10)}"
    if isinstance(value, str | bytes | float | type(None)):
        return f"{value!r:.60}"
    if isinstance(value, int):
        return str(value) if value.bit_length() < 100 else f"an int of {value.bit_length()} bits"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return f"{type(value).__name__}" + ("" if shape is None else f" of {dtype} and shape {tuple(shape)}")


def whole(value: Any, what: str, least: int = 0, most: int = MOST) -> int:
    """Return a whole number, also out of an array of no dimensions."""
    found = value
    if not isinstance(value, int) and hasattr(value, "shape") and np.shape(value) == ():
        found = np.asarray(value).item()
    if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
        raise ValueError(f"{what} is {described(value)}; expected an int from {least} to {most}")
    return found


def whole_or_never(value: Any, what: str) -> int:
    """Return a whole number, or the -1 that stands for none."""
    return whole(value, what, -1)


def real(value: Any, what: str, *, least: float = -math.inf) -> float:
    """Return a number as binary64, also out of an array of no dimensions; NaN too."""
    found = value
    if not isinstance(value, int | float) and hasattr(value, "shape") and np.shape(value) == ():
        found = np.asarray(value).item()
    if isinstance(found, bool) or not isinstance(found, int | float) or found < least or abs(found) > MOST**16:
        raise ValueError(f"{what} is {described(value)}; expected a number")
    return float(found)


def text(value: Any, what: str) -> str:
    """Return a string, also out of an array of no dimensions."""
    found = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if not isinstance(found, str):
        raise ValueError(f"{what} is {described(value)}; expected text")
    return str(found)


def mapping(value: Any, what: str, *names: str) -> Mapping[str, Any]:
    """Return a dict that has these names at least."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {described(value)}; expected a dict")
    if absent := [name for name in names if name not in value]:
        raise ValueError(f"{what} is {described(value)}; expected it to have {', '.join(map(repr, absent))} too")
    return value


def listed(value: Any, what: str = "a list") -> list[Any]:
    """Return a list; some libraries restore one as a dict of its places, `{"0": ..., "1": ...}`, or as an array."""
    if isinstance(value, Mapping) and set(value) == {str(place) for place in range(len(value))}:
        return [value[str(place)] for place in range(len(value))]
    if isinstance(value, str | bytes) or not (isinstance(value, Sequence) or np.ndim(value) == 1):
        raise ValueError(f"{what} is {described(value)}; expected a list")
    return list(value)


def vector(value: Any, what: str, shape: tuple[int, ...], kind: str) -> np.ndarray[Any, Any]:
    """Return a copy of an array of a shape.

    Args:
        value: the array.
        what: its name in a message.
        shape: its shape.
        kind: `count` for ints of at least 0, `int`, `flag` for bools, or `binary64`.
    """
    found = value if isinstance(value, np.ndarray) else np.asarray(value)
    kinds = {"count": "iu", "int": "iu", "flag": "b", "binary64": "f"}[kind]
    if found.shape == (0,) == shape:
        found = found.astype({"flag": bool, "binary64": np.float64}.get(kind, np.int64))  # an empty list has no dtype
    is_right = found.shape == shape and found.dtype.kind in kinds and (kind != "binary64" or found.itemsize == 8)
    if not is_right or (kind == "count" and found.size and (found.min() < 0 or found.max() > MOST)):
        raise ValueError(f"{what} is {described(found)}; expected {kind}s of shape {shape}")
    return found.astype({"flag": bool, "binary64": np.float64}.get(kind, np.int64))
