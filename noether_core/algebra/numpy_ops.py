"""Give the algebra NumPy: for Python and NumPy values, and for whatever is done on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from noether_core.algebra.expansion import Expansion, add, normalise
from noether_core.algebra.position import NEVER
from noether_core.algebra.sums import Statistics, fold_tree


class NumpyOps:
    """Give the algebra NumPy: for Python and NumPy values, and for whatever is done on the host."""

    parts, deep = 2, 4
    never = NEVER
    xp: Any = np
    where = staticmethod(np.where)

    def are_finite(self, values: np.ndarray) -> bool:
        return bool(np.isfinite(values).all())

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        high = ((np.asarray(values).view(np.int64) + np.int64(2**26)) & -np.int64(2**27)).view(np.float64)
        return high, values - high

    def widen(self, values: np.ndarray) -> tuple[Expansion, bool]:
        if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
            low = (values & np.array(0xFFFFFFFF, values.dtype)).astype(np.float64)
            return normalise(((values >> np.array(32, values.dtype)).astype(np.float64) * 2.0**32, low)), False
        return (values.astype(np.float64),), values.dtype.itemsize <= 2 or values.dtype == np.float32

    def full(self, shape: tuple[int, ...], value: float | int, like: Any) -> np.ndarray:
        return np.full(shape, value, np.int64 if isinstance(value, int) else np.float64)

    def put(self, target: np.ndarray, slots: Any, values: np.ndarray) -> np.ndarray:
        target = target.copy()
        target[slots] = values
        return target

    def fold(self, sums: Statistics) -> Statistics:
        return fold_tree(self, sums)

    def sum_binary64(self, values: np.ndarray) -> Expansion:
        if values.dtype.kind not in "iub":
            return (values.sum(dtype=np.float64).reshape(1),)
        halves = (values >> 32, values & 0xFFFFFFFF) if values.dtype.itemsize == 8 else (values,)
        first, *rest = [self.widen(half.sum(dtype=np.int64).reshape(1))[0] for half in halves]
        return add((first[0] * 2.0**32, first[1] * 2.0**32), rest[0]) if rest else first

    def sum_own_dtype(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values.sum()).reshape(1)

    def extremes(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return values.min().reshape(1), values.max().reshape(1)

    def constant(self, value: float | int, like: Any) -> np.ndarray:
        return self.full((1,), value, like)

    def bits(self, values: np.ndarray) -> np.ndarray:
        return values.view(np.int64)

    def from_bits(self, bits: np.ndarray) -> np.ndarray:
        return bits.view(np.float64)

    def places(self, count: int, like: Any) -> np.ndarray:
        return np.arange(count)

    def choose(self, totals: Sequence[np.ndarray], plain: Callable[[], Any], careful: Callable[[], Any]) -> Any:
        return plain() if all(math.isfinite(total[0]) for total in totals) else careful()


NUMPY = NumpyOps()
