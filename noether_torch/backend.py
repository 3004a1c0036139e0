"""Know PyTorch's tensors: which are tracked, by what they are planned, and how their steps are reduced."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noether_core.errors import UpdateOutputError
from noether_core.reduce import host
from noether_core.reduce.backend import ValueType
from noether_core.reduce.eager import EagerKernels, PendingReducer
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.layout import Pending, Step, Taken
from noether_torch import dtensors
from noether_torch.numpy_arrays import to_tensor
from noether_torch.ops import TorchOps, beside, to_numpy
from noether_torch.plain import PLAIN_TYPES, computing, found_strange, require_memory, transform
from noether_torch.processes import group_exchange

_FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
_RARE = ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
_INTS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")  # of float32 on a GPU; where they are "tf32", 10 bits are left
_NAMES = {getattr(torch, name): name for name in ("bool", *_INTS, *_FLOATS, *_RARE)}


class _TorchKernels(EagerKernels):
    def take(self, step: Step, earlier: Sequence[Pending]) -> tuple[Pending, Taken]:
        require_memory(step.arrays)
        return EagerKernels.take(self, step, earlier)  # at every step: cheaper than super()


_dtype_of, _shape_of = attrgetter("dtype"), attrgetter("shape")


class _TorchBackend:
    name = "PyTorch"
    reducer = PendingReducer(_TorchKernels(TorchOps(), computing))
    to_numpy = staticmethod(to_numpy)

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
        return to_tensor(value) if like is None else beside(like, to_tensor(value))


BACKEND = _TorchBackend()
