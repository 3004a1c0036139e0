"""Put arrays and text into JSON that is small, and that may stand in a script element whatever it holds."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from noether_core.silence import SILENT

_CODES = {"f4": "f", "f8": "d", "u1": "B", "u2": "H", "u4": "I"}
_ESCAPES = str.maketrans(
    {char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}  # what could end the element, or a line of a script
)


def packed(array: np.ndarray[Any, Any]) -> str:
    """Return a one-dimensional array as a letter for its dtype and the base64 of its little-endian bytes.

    Args:
        array: of dtype float32, float64, uint8, uint16 or uint32, of any shape; it is written in C order.

    Raises:
        KeyError: for another dtype.

    >>> packed(np.array([1, 2, 3], np.uint8))
    'BAQID'
    """
    code = _CODES[array.dtype.str[1:]]
    return code + base64.b64encode(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def smallest(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return integers that are not negative, and below 2**32, in the smallest unsigned dtype that holds them all.

    >>> smallest(np.array([3, 255])).dtype, smallest(np.array([3, 256])).dtype
    (dtype('uint8'), dtype('uint16'))
    """
    most = int(values.max(initial=0))
    return values.astype(np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.uint32)


@SILENT
def narrow(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return float64 as float32 where nobody could see the difference in a curve or in six digits, else as they are.

    >>> narrow(np.array([0.1, 0.2])).dtype, narrow(np.array([1e300, 0.0])).dtype, narrow(np.array([1.0, 1 + 1e-8])).dtype
    (dtype('float32'), dtype('float64'), dtype('float64'))
    """
    known = values[np.isfinite(values)]
    short = known.astype(np.float32).astype(np.float64)
    size = np.abs(known)
    fits = np.all((size == 0) | ((size > 1e-37) & (size < 1e38)))  # neither infinite nor subnormal
    error = np.abs(short - known).max(initial=0.0)
    span = (known.max() - known.min()) if len(known) else 0.0
    return values.astype(np.float32) if not error or (fits and error <= span / 1000) else values


def script_json(value: Any) -> str:
    r"""Return JSON for `<script type="application/json">`: no text in it can end the element.

    Text that is no valid Unicode (half a surrogate pair) is written as an escape, and infinities and NaN are refused.

    Raises:
        ValueError: for a float that is not finite.

    >>> print(script_json(["</script>", 1.5]))
    ["\u003c/script\u003e",1.5]
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)
