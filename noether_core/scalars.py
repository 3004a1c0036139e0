"""Tell single numbers from arrays, by type, shape and dtype alone: nothing is computed, and no device is waited for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod
from operator import attrgetter
from typing import Any

_NUMBERS = frozenset({bool, int, float})
_TRACKABLE = re.compile(r"bool|u?int\d+|b?float16|float(32|64)|float[468]_\w+")
_shape_of = attrgetter("shape")


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a number, an array or a list of numbers, of bools, ints or floats; None for what is none.

    >>> import numpy as np
    >>> shape_of(0.5), shape_of(np.zeros((2, 3))), shape_of([1, 2]), shape_of("a"), shape_of(np.array(1j))
    ((), (2, 3), (2,), None, None)
    """
    try:
        return _shape(value)
    except Exception:  # whatever a class of its own raises
        return None


def _shape(value: Any) -> tuple[int, ...] | None:
    if type(value) in _NUMBERS:
        return ()
    if type(value) in (list, tuple):
        inner = {_shape(each) for each in value}
        if len(inner) > 1 or None in inner:
            return None
        return len(value), *(inner.pop() or () if inner else ())
    return tuple(value.shape) if _is_trackable(value.dtype) else None


@lru_cache(maxsize=256)
def _is_trackable(dtype: Any) -> bool:
    name = getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
    return _TRACKABLE.fullmatch(name) is not None


def is_scalar(value: Any) -> bool:
    """Tell whether a value is a single number: of no dimensions, or of one element.

    >>> import numpy as np
    >>> [is_scalar(value) for value in (0.5, np.float32(1), np.ones((1, 1)), np.ones(2), None, "0.5", 1j)]
    [True, True, True, False, False, False, False]
    """
    shape = shape_of(value)
    return shape is not None and prod(shape) == 1


def scalars_of(outputs: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of those values that are single numbers."""
    return frozenset(name for name, value in outputs.items() if is_scalar(value))


def forms_of(values: Iterable[Any]) -> list[Any]:
    """Return what decides which of some values are single numbers, as cheaply as possible; it is asked for at every step.

    That the dtype of a number changes to one that cannot be tracked is not seen: it is refused where it is tracked.
    """
    try:
        return list(map(_shape_of, values))
    except Exception:  # a Python number has none, and a class of its own may raise anything
        return list(map(_form_of, values))


def _form_of(value: Any) -> Any:
    if type(value) in (list, tuple):
        return is_scalar(value)
    try:
        return getattr(value, "shape", type(value))
    except Exception:
        return None


def are_alike(forms: list[Any], others: list[Any]) -> bool:
    """Tell whether forms are equal, whatever a class of its own has for a shape."""
    try:
        return forms == others
    except Exception:
        return False
