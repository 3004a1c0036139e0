"""Give the core PyTorch's operations. Nothing here waits for the device but `to_numpy`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from noether_core.algebra.expansion import Expansion, add, normalise
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import NEVER
from noether_core.algebra.sums import Statistics, fold_tree
from noether_torch.numpy_arrays import to_tensor
from noether_torch.plain import require_memory


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return 64-bit ints as int64s `high, low` with value = high * 2^32 + low."""
    bits = values.view(torch.int64)
    high = bits >> 32 if values.dtype is torch.int64 else (bits >> 32) & 0xFFFFFFFF
    return high, bits & 0xFFFFFFFF


def _signed(values: Tensor) -> Tensor:
    """Return values as a dtype that every operation takes; exact."""
    if values.dtype in (torch.uint16, torch.uint32):
        return values.to(torch.int64)
    return values.double() if values.is_floating_point() and values.dtype.itemsize == 1 else values


_PIECE = 2**17  # elements: a copy of so many fits into the cache, and the allocator hands out its memory again


def _sum_binary64(values: Tensor) -> float:
    """Return the sum of a vector on the CPU in binary64, for which PyTorch makes a copy."""
    if len(values) <= _PIECE or values.dtype is torch.float64:
        return values.sum(dtype=torch.float64).item()
    memory = torch.empty(_PIECE, dtype=torch.float64, device="cpu")
    return sum(memory[: len(piece)].copy_(piece).sum().item() for piece in torch.split(values, _PIECE))


def _number(value: Tensor) -> Any:
    """Return a tensor of one element as a Python number if it is on the CPU, else of shape [1].

    Small tensors that are held among large ones, which come and go, would fragment the heap.
    """
    return value.item() if value.is_cpu else value.reshape(1)


def beside(like: Tensor, value: Tensor) -> Tensor:
    """Return a tensor on the device of `like`; one that comes from the host waits for nothing that the device does."""
    return value.to(like.device, non_blocking=value.device.type == "cpu")


def _numpy_dtype(value: Tensor) -> np.dtype[Any]:
    """Return NumPy's dtype of a name, or that of `ml_dtypes`."""
    name = str(value.dtype).removeprefix("torch.")
    return np.dtype(getattr(ml_dtypes, name, name))


def to_numpy(values: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """Return copies of tensors as NumPy arrays of the same dtypes: of each device all in one transfer, as bytes."""
    found: dict[int, np.ndarray[Any, Any]] = {}
    for device in {value.device for value in values}:
        members = {at: value for at, value in enumerate(values) if value.device == device}
        flat = [
            value.detach().resolve_neg().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)
            for value in members.values()
        ]
        parts = np.split(torch.cat(flat).cpu().numpy(), np.cumsum(list(map(Tensor.numel, flat)))[:-1])
        for (at, value), part in zip(members.items(), parts, strict=True):
            found[at] = part.copy().view(_numpy_dtype(value)).reshape(value.shape)
    return [found[at] for at in range(len(values))]


class TorchOps:
    """Give the core PyTorch's operations; single numbers are Python's on the CPU, else tensors of one element."""

    parts, deep = 2, 4
    never = NEVER
    xp: Any = torch
    to_host = staticmethod(to_numpy)

    def where(self, condition: Any, values: Any, others: Any) -> Any:
        if isinstance(condition, bool):
            return values if condition else others
        return torch.where(condition, values, others)

    def are_finite(self, values: Tensor) -> bool:
        return values.is_cpu and bool(torch.isfinite(values).all())

    def split(self, values: Any) -> tuple[Any, Any]:
        if isinstance(values, float):
            return NUMPY.split(np.asarray(values))
        high = ((values.view(torch.int64) + 2**26) & -(2**27)).view(torch.float64)
        return high, values - high

    def widen(self, values: Any) -> tuple[Expansion, bool]:
        if isinstance(values, float):
            return (values,), True
        if isinstance(values, int):
            return (float(values), float(values - int(float(values)))), False
        if values.dtype in (torch.int64, torch.uint64):
            high, low = _halves(values)
            return normalise((high.double() * 2.0**32, low.double())), False
        return (values.double(),), values.dtype.itemsize <= 2 or values.dtype is torch.float32

    def full(self, shape: tuple[int, ...], value: float | int, like: Tensor) -> Tensor:
        dtype = torch.int64 if isinstance(value, int) else torch.float64
        return torch.full(shape, value, dtype=dtype, device=like.device)

    def fold(self, sums: Statistics) -> Statistics:
        return fold_tree(self, sums)

    def sum_binary64(self, values: Tensor) -> Expansion:
        if values.is_floating_point():
            values = _signed(values)
            return (_sum_binary64(values) if values.is_cpu else values.sum(dtype=torch.float64).reshape(1),)
        if values.dtype not in (torch.int64, torch.uint64):
            return self.widen(_number(_signed(values).sum(dtype=torch.int64)))[0]
        high, low = (self.widen(_number(half.sum()))[0] for half in _halves(values))
        return add((high[0] * 2.0**32, high[1] * 2.0**32), low)

    def sum_own_dtype(self, values: Tensor) -> Any:
        return _number(values.sum())

    def extremes(self, values: Tensor) -> tuple[Any, Any]:
        if values.dtype is torch.uint64:  # with the highest bit turned, they order as int64 do
            ends = torch.aminmax(values.view(torch.int64) ^ -(2**63))
            low, high = ((end ^ -(2**63)).view(torch.uint64) for end in ends)
        else:
            low, high = torch.aminmax(_signed(values))
        return _number(low), _number(high)

    def constant(self, value: float | int, like: Any) -> Any:
        return self.full((1,), value, like) if isinstance(like, Tensor) else value

    def choose(self, totals: Sequence[Any], plain: Callable[[], Any], careful: Callable[[], Any]) -> Any:
        # a number is on the host; to look at a tensor would wait for its device
        is_finite = all(isinstance(total, float) and math.isfinite(total) for total in totals)
        return plain() if is_finite else careful()

    def bits(self, values: Tensor) -> Tensor:
        return values.view(torch.int64)

    def from_bits(self, bits: Tensor) -> Tensor:
        return bits.view(torch.float64)

    def places(self, count: int, like: Tensor) -> Tensor:
        return torch.arange(count, device=like.device)

    def stack(self, values: Sequence[Tensor], dtype: str) -> Tensor:
        return torch.stack([value if value.ndim == 0 else value.reshape(()) for value in values])

    def room(self, vectors: Sequence[Tensor], count: int) -> Sequence[Sequence[Tensor]] | None:
        if not all(vector.is_cpu for vector in vectors):
            return None  # an accelerator's memory has an allocator of its own
        with torch.inference_mode(False):  # else nothing could be put into it outside of that mode
            return [torch.empty((count, len(each)), dtype=each.dtype, device=each.device).unbind(0) for each in vectors]

    def put_into(self, row: Tensor, vectors: list[Tensor]) -> Tensor:
        return torch.cat(vectors, out=row)

    def stack_rows(self, rows: Sequence[Any]) -> Tensor:
        return torch.stack(list(rows)) if isinstance(rows[0], Tensor) else torch.from_numpy(np.array(rows))[:, None]

    def put(self, target: Tensor, slots: np.ndarray[Any, Any], values: Tensor) -> Tensor:
        return target.index_copy(0, beside(target, torch.from_numpy(slots)), values)

    def copy(self, value: Tensor) -> Tensor:
        return value.clone(memory_format=torch.contiguous_format)

    def positions(self, positions: Sequence[int], like: Tensor) -> Tensor:
        return beside(like, torch.tensor(positions, dtype=torch.int64, device="cpu")[:, None])

    def weight(self, value: Any, like: Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            value = to_tensor(value)
        require_memory([value])
        return beside(like, value.reshape(-1).clone())
