"""Take what is logged as plain Python values, or refuse it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from noether_core.emit.jsonl import encode_line
from noether_core.errors import NoetherError

NUMBERS = frozenset({float, int, bool})  # the types that are taken as they are


def plain_number(key: str, value: Any) -> float | int | bool:
    """Return a Python or NumPy number as a plain Python one; raises `NoetherError` if it is none."""
    if type(value) in NUMBERS:
        return value  # type: ignore[no-any-return]
    if isinstance(value, np.ndarray | np.generic) and value.size == 1 and _is_plain(value):
        value = value.item()
    if not isinstance(value, int | float):
        raise NoetherError(
            f"add_scalar got {type(value).__name__} for key {key!r}; expected a Python or NumPy number (a device array is"
            " converted by float(...); text goes to add_nonscalar)"
        )
    return value


def _is_plain(value: np.ndarray[Any, Any] | np.generic) -> bool:
    is_number = value.dtype.kind in "biufO" or value.dtype.type.__module__ == "ml_dtypes"
    return is_number and not isinstance(value, np.ma.MaskedArray)


def plain_value(key: str, value: Any) -> Any:
    """Return a value of the user's own as a line can hold it: a number, also out of an array of one element, or a non-scalar.

    Raises:
        NoetherError: for what no line can hold.
    """
    if type(value) in NUMBERS:
        return value
    item = getattr(value, "item", None)
    if item is None or isinstance(value, dict):
        return plain_nonscalar(key, value)
    if isinstance(value, np.str_):
        return str(value)
    if isinstance(value, np.ndarray | np.generic) and not _is_plain(value):
        raise NoetherError(
            f"cannot log {key!r}: {type(value).__name__} of dtype {value.dtype} is masked, a date or else no plain number;"
            " convert it to what is meant, such as a float or a string"
        )
    try:
        number = item()  # of a framework's array; this waits for its device
        return plain_number(key, number if type(number) in NUMBERS else float(number))
    except (TypeError, ValueError, RuntimeError) as error:
        raise NoetherError(
            f"cannot log {key!r}: {type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))} is no single number;"
            " reduce it first, or let a callback track it and save it"
        ) from error


def plain_nonscalar(key: str, value: Any) -> Any:
    """Return a copy of a value that a line can hold; raises `NoetherError` if no line can."""
    try:
        encode_line({key: value})
    except (TypeError, ValueError, RecursionError) as error:
        raise NoetherError(
            f"add_nonscalar got {type(value).__name__} for key {key!r}, which JSON cannot hold ({error}); expected a string, or"
            " a list or dict of strings and plain numbers"
        ) from error
    return copy.deepcopy(value)
