"""Give the core its operations on PyTorch tensors. Nothing here waits for the device but `to_host` and `to_numpy`."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from noether_core.algebra.expansion import Expansion, add, normalise
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import NEVER
from noether_core.algebra.sums import Statistics, fold_tree
from noether_core.errors import UpdateOutputError
from noether_core.reduce import host
from noether_core.reduce.backend import ValueType
from noether_core.reduce.eager import EagerKernels, PendingReducer
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.layout import Pending, Step, Taken
from noether_torch import dtensors
from noether_torch.plain import PLAIN_TYPES, computing, found_strange, require_memory, transform
from noether_torch.processes import group_exchange

_FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
_INTS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")  # of float32 on a GPU; where they are "tf32", 10 bits are left
_NAMES = {getattr(torch, name): name for name in ("bool", *_INTS, *_FLOATS)}


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


def _beside(like: Tensor, value: Tensor) -> Tensor:
    """Return a tensor on the device of `like`; one that comes from the host waits for nothing that the device does."""
    return value.to(like.device, non_blocking=value.device.type == "cpu")


def _numpy_dtype(value: Tensor) -> np.dtype[Any]:
    """Return NumPy's dtype of a name, or that of `ml_dtypes`."""
    name = str(value.dtype).removeprefix("torch.")
    return np.dtype(getattr(ml_dtypes, name, name))


def _to_numpy(values: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
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


class _TorchOps:
    parts, deep = 2, 4
    never = NEVER
    xp: Any = torch
    to_host = staticmethod(_to_numpy)

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
        return target.index_copy(0, _beside(target, torch.from_numpy(slots)), values)

    def copy(self, value: Tensor) -> Tensor:
        return value.clone(memory_format=torch.contiguous_format)

    def positions(self, positions: Sequence[int], like: Tensor) -> Tensor:
        return _beside(like, torch.tensor(positions, dtype=torch.int64, device="cpu")[:, None])

    def weight(self, value: Any, like: Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            value = BACKEND.from_numpy(value)
        require_memory([value])
        return _beside(like, value.reshape(-1).clone())


class _TorchKernels(EagerKernels):
    def take(self, step: Step, earlier: Sequence[Pending]) -> tuple[Pending, Taken]:
        require_memory(step.arrays)
        return EagerKernels.take(self, step, earlier)  # at every step: cheaper than super()


_dtype_of, _shape_of = attrgetter("dtype"), attrgetter("shape")


class _TorchBackend:
    name = "PyTorch"
    reducer = PendingReducer(_TorchKernels(_TorchOps(), computing))
    to_numpy = staticmethod(_to_numpy)

    def signature(self, values: Sequence[Any]) -> Hashable:
        kinds = {*map(type, values)}
        if PLAIN_TYPES.issuperset(kinds) and transform() is None:
            try:  # flat tuples of objects that exist already: a third of the time that a tuple for each value takes
                ranks = tuple(map(Tensor.dim, values))
                shapes = tuple(map(_shape_of, values)) if any(ranks) else ranks  # scalars' shapes take no time
                return tuple(map(Tensor.get_device, values)), tuple(map(_dtype_of, values)), shapes
            except RuntimeError:  # one has no shape
                pass
        return transform() is not None, dtensors.signature(values, kinds)

    def inspect(self, key: str, value: Any) -> ValueType | None:
        if not isinstance(value, Tensor):
            return None
        if dtensors.is_global(value):
            return self._inspect_global(key, value)
        if (strange := found_strange(value)) is not None:
            what, advice = strange
            raise UpdateOutputError(
                f"update output {key!r} is {what}; expected a dense tensor with values, outside of transforms: {advice}"
            )
        if value.dtype not in _NAMES:
            raise UpdateOutputError(
                f"update output {key!r} has dtype {value.dtype}; expected bools, ints or floats:"
                " convert it (a complex tensor has .abs() and .real, a quantized one .dequantize()), or do not track it"
            )
        if value.device.type == "mps":
            raise UpdateOutputError(
                f"update output {key!r} is on {value.device}, which has no binary64 to reduce in; move it with .cpu()"
            )
        shape = tuple(value.shape)
        # one number on the CPU is read in a tenth of the time that an operation on it takes
        device = host.DEVICE if value.device.type == "cpu" and not shape else value.device
        return ValueType(_NAMES[value.dtype], shape, device, value.dtype is torch.float64)

    def _inspect_global(self, key: str, value: Tensor) -> ValueType | None:
        placing = dtensors.placing_of(key, value)
        is_here = placing is None or placing.is_here
        part = dtensors.local([value])[0] if is_here else torch.empty(0, dtype=value.dtype, device=value.device)
        found = self.inspect(key, part)
        if found is None or placing is None:
            return found and found._replace(is_global=True)
        shape = found.shape if is_here else placing.shape
        spread = placing if placing.parted else None
        return found._replace(shape=shape, spread=spread, is_counted=placing.is_counted, is_global=True)

    def local(self, values: Sequence[Tensor]) -> list[Tensor]:
        return dtensors.local(values)

    def processes(self) -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def arithmetic(self) -> dict[str, str]:
        found = {
            f"torch.backends.{name}.fp32_precision": attrgetter(name)(torch.backends).fp32_precision
            for name in _PRECISIONS
        }
        # asking of a device would make it ready for use, and the process could not be forked then
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            found["torch device"] = torch.cuda.get_device_name()
        return found

    def exchange(self, time_limit: float) -> Exchange | None:
        return group_exchange(time_limit=time_limit) if self.processes()[1] > 1 else None

    def from_numpy(self, value: np.ndarray[Any, Any], like: Tensor | None = None) -> Tensor:
        if like is not None:
            return _beside(like, self.from_numpy(value))
        value = np.array(value)  # a NumPy scalar has no tensor of its own
        # an integer dtype of its size carries the bits across, also of a dtype that NumPy lacks
        return torch.from_numpy(value.view(f"u{value.itemsize}")).view(getattr(torch, value.dtype.name))


BACKEND = _TorchBackend()
