"""Recognise an array by its values in any order, so whatever its layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from noether_core.silence import SILENT

_CHUNK = 1 << 20


@SILENT
def fingerprint(array: np.ndarray[Any, Any]) -> str:
    """Return a mark of the multiset of an array's values: equal for any order, transposition or layout of the same values.

    It adds a 64-bit mix of each value's bits (the finaliser of SplitMix64: Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", 2014), modulo 2⁶⁴, so that order cannot matter. Minus zero counts as zero.

    Args:
        array: of any shape, of numbers; a complex one is two.

    >>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> fingerprint(a) == fingerprint(a.T), fingerprint(a) == fingerprint(a + 1)
    (True, False)
    """
    flat = np.asarray(array).reshape(-1)
    flat = flat.view(flat.real.dtype) if flat.dtype.kind == "c" else flat
    total = 0
    for start in range(0, flat.size, _CHUNK):
        total += int(np.add.reduce(_mixed(flat[start : start + _CHUNK]), dtype=np.uint64))
    return f"{flat.dtype}:{flat.size}:{total % 2**64:016x}"


def _mixed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    positive = np.where(values == 0, np.zeros((), values.dtype), values)
    bits = positive.view(f"u{values.dtype.itemsize}").astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))
