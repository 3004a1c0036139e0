"""View tensors on the CPU as NumPy arrays, and back, those too whose dtypes are `ml_dtypes`'."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

_NAMES = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
_OWN = {getattr(torch, name): getattr(ml_dtypes, name) for name in _NAMES}
_TORCH = {np.dtype(own): dtype for dtype, own in _OWN.items()}
_BITS = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16)}  # by bytes


def to_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a view of a contiguous tensor on the CPU.

    >>> to_array(torch.ones(2, dtype=torch.bfloat16)).dtype
    dtype(bfloat16)
    """
    if tensor.dtype in _OWN:
        return tensor.view(_BITS[tensor.dtype.itemsize][0]).numpy().view(_OWN[tensor.dtype])
    return tensor.numpy()


def to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor that holds a copy of an array.

    >>> to_tensor(np.ones(2, ml_dtypes.bfloat16)).dtype
    torch.bfloat16
    """
    own = np.array(array, order="C")
    if own.dtype in _TORCH:
        return torch.from_numpy(own.view(_BITS[own.dtype.itemsize][1])).view(_TORCH[own.dtype])
    return torch.from_numpy(own)
