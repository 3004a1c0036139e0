"""Take what is logged as plain Python values, or refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from noether_core.emit.jsonl import encode_line
from noether_core.emit.lines import MOST_DEPTH
from noether_core.errors import NoetherError
from noether_core.schedule import RESERVED

NUMBERS = frozenset({float, int, bool})  # the types that are taken as they are
MOST_NAME = 2**16  # characters
MOST_BYTES = 2**20  # of a text, a list or a dict in a line
MOST_DIGITS = 640  # of an int: those that every Python writes and reads, whatever its limit is
WIDE = 10**MOST_DIGITS


def plain_number(key: str, value: Any) -> float | int | bool:
    """Return a Python or NumPy number as a plain Python one; raises `NoetherError` if it is none that a line can hold."""
    if type(value) in NUMBERS:
        if type(value) is int and not -WIDE < value < WIDE:
            raise NoetherError(
                f"add_scalar got an int of {value.bit_length()} bits for key {key!r:.200}; expected one of at most"
                f" {MOST_DIGITS} digits: scale it, or make it a float"
            )
        return value  # type: ignore[no-any-return]
    if isinstance(value, np.ndarray | np.generic) and value.size == 1 and _is_plain(value):
        return plain_number(key, value.item())
    if not isinstance(value, int | float):
        raise NoetherError(
            f"add_scalar got {type(value).__name__} for key {key!r:.200}; expected a Python or NumPy number (a device array is"
            " converted by float(...); text goes to add_nonscalar)"
        )
    # by the class's own method, which a subclass cannot replace
    return plain_number(key, float.__pos__(value) if isinstance(value, float) else int.__pos__(value))


def _is_plain(value: np.ndarray[Any, Any] | np.generic) -> bool:
    is_number = value.dtype.kind in "biufO" or value.dtype.type.__module__ == "ml_dtypes"
    return is_number and not isinstance(value, np.ma.MaskedArray)


def plain_value(key: str, value: Any) -> Any:
    """Return a value of the user's own as a line can hold it: a number, also out of an array of one element, or a non-scalar.

    Raises:
        NoetherError: for what no line can hold.
    """
    if type(value) in NUMBERS:
        return plain_number(key, value)
    item = getattr(value, "item", None)
    if item is None or isinstance(value, dict):
        return plain_nonscalar(key, value)
    if isinstance(value, np.str_):
        return plain_nonscalar(key, value)
    if isinstance(value, np.ndarray | np.generic) and not _is_plain(value):
        raise NoetherError(
            f"cannot log {key!r:.200}: {type(value).__name__} of dtype {value.dtype} is masked, a date or else no plain number;"
            " convert it to what is meant, such as a float or a string"
        )
    try:
        number = item()  # of a framework's array; this waits for its device
        return plain_number(key, number if type(number) in NUMBERS else float(number))
    except (TypeError, ValueError, RuntimeError) as error:
        if shape := tuple(getattr(value, "shape", ())):
            what = f"of shape {shape} is no single number; reduce it first, or let a callback track it and save it"
        else:
            what = "has no value yet; return it from the compiled function, and log what the call gives"
        raise NoetherError(f"cannot log {key!r:.200}: {type(value).__name__} {what}") from error


def plain_nonscalar(key: str, value: Any) -> Any:
    """Return a copy of a value that a line can hold, of plain Python types; raises `NoetherError` if no line can."""
    try:
        copy = _plain_copy(value, MOST_DEPTH)
        if type(copy) not in NUMBERS and len(line := encode_line({"": copy})) > MOST_BYTES:
            raise ValueError(f"it takes {len(line)} bytes, of at most {MOST_BYTES}")
    except Exception as error:  # whatever a class of its own raises
        raise NoetherError(
            f"add_nonscalar got {type(value).__name__} for key {key!r:.200}, which JSON cannot hold ({error!s:.300});"
            " expected a string, or a list or dict of strings and plain numbers, with strings for names"
        ) from error
    return copy


def plain_key(key: Any) -> str:
    """Return a name to log under as a plain string; raises `NoetherError` for what is none, or is too long."""
    if type(key) is str and len(key) <= MOST_NAME and key not in RESERVED:
        return key
    name = str.__str__(key) if isinstance(key, str) else ""
    if not isinstance(key, str) or len(name) > MOST_NAME or name in RESERVED:
        shown = f"{name!r:.80}" if isinstance(key, str) else f"a {type(key).__name__}"
        raise NoetherError(
            f"cannot log under the key {shown}; expected a string of at most {MOST_NAME} characters other than epoch, update,"
            " sample, crc32"
        )
    return name


def _plain_copy(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool | float | int | np.generic):
        return plain_number("", value)
    if value is None:
        return None
    if not isinstance(value, Mapping | list | tuple):
        raise TypeError(f"it holds a {type(value).__name__}")
    if depth == 0:
        raise ValueError(f"lists and dicts are nested more than {MOST_DEPTH} deep")
    if not isinstance(value, Mapping):
        return [_plain_copy(item, depth - 1) for item in value]
    strange = next((name for name in value if not isinstance(name, str)), None)
    if strange is not None:
        raise TypeError(f"a name in it is a {type(strange).__name__}; write str(name)")
    return {str.__str__(name): _plain_copy(item, depth - 1) for name, item in value.items()}
