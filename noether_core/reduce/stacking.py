"""Stack the values that a key had in an interval, whatever dtypes they are of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from noether_core.errors import UpdateOutputError, listing

_Array = np.ndarray[Any, Any]
_WHOLE = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def stacked(key: str, values: Sequence[_Array]) -> _Array:
    """Return arrays of one shape along a new leading axis, in the narrowest dtype that holds all their values.

    Raises:
        UpdateOutputError: if none does, such as of 2^53 + 1 beside 0.5.
    """
    dtypes = list(dict.fromkeys(value.dtype for value in values))
    if len(dtypes) == 1:
        return np.stack(values)
    are_whole = all(dtype.kind in "biu" for dtype in dtypes)
    for name in _WHOLE if are_whole else ("float32", "float64"):
        taken = [value.astype(name) for value in values]
        if all(map(_are_equal, taken, values)):
            return np.stack(taken)
    raise UpdateOutputError(
        f"update output {key!r} had the dtypes {listing(map(str, dtypes))} in one interval, and no dtype holds all its values"
        " as they are; `stack` needs one that does: convert it in the training step, or reduce it with another reduction"
    )


def _are_equal(taken: _Array, value: _Array) -> bool:
    pairs: Iterable[tuple[Any, Any]] = zip(taken.reshape(-1).tolist(), value.reshape(-1).tolist(), strict=True)
    return all(a == b or (a != a and b != b) for a, b in pairs)
