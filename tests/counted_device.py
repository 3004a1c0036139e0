"""Stand in for an accelerator: tensors that say they are on one, and notes of every time that the host waits for it.

No operation reaches such a tensor but through PyTorch's dispatcher, so whatever looks at a value (`item`, `bool`, `float`,
`nonzero`, `cpu`) is seen here, whoever calls it. As with CUDA, a copy to the device waits unless it is `non_blocking`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
# what gives the host a value, or has a shape that depends on values
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
}


@cache
def device() -> torch.device:
    """Register the device at its first use. PyTorch never forgets it: use it in a process of its own."""
    _setup_privateuseone_for_python_backend("counted")
    return torch.device("counted", 0)


class OnDevice(Tensor):
    """Hold a CPU tensor, and say it is on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            dtype=held.dtype,
            device=device(),
            storage_offset=held.storage_offset(),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of CountedDevice")


class CountedDevice(TorchDispatchMode):
    """Run operations on the device's tensors, and note each wait.

    Attributes:
        waits: what made the host wait, in order.
        to_host: how many bytes each copy to the host had.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.to_host: list[int] = []

    def put(self, value: Tensor) -> Tensor:
        """Return a copy of a CPU tensor that is on the device."""
        return OnDevice(value.clone())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = list(_tensors(args))
        is_there = any(isinstance(each, OnDevice) for each in tensors)
        target = kwargs.get("device")
        goes_there = is_there if target is None else torch.device(target).type == device().type
        if function in WAITS and is_there:
            self.waits.append(str(function))
        if function is aten.copy_.default:
            self._note_copy(args[1], isinstance(args[0], OnDevice), len(args) > 2 and args[2])
        elif target is not None and tensors:
            self._note_copy(tensors[0], goes_there, kwargs.get("non_blocking", False))
        elif is_there and any(each.ndim and not isinstance(each, OnDevice) for each in tensors):
            raise AssertionError(f"{function} got tensors of two devices")
        if target is not None:
            kwargs["device"] = "cpu"
        found = function(*_held(args), **kwargs)
        return _put(found) if goes_there else found

    def _note_copy(self, source: Tensor, goes_there: bool, non_blocking: bool) -> None:
        if isinstance(source, OnDevice) and not goes_there:
            self.to_host.append(source.held.nbytes)
            self.waits.append("copy to the host")
        elif not isinstance(source, OnDevice) and goes_there and not non_blocking:
            self.waits.append("copy to the device that waits")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _held(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.held
    return type(value)(map(_held, value)) if isinstance(value, list | tuple) else value


def _put(value: Any) -> Any:
    if isinstance(value, Tensor):
        return OnDevice(value)
    return tuple(map(_put, value)) if isinstance(value, list | tuple) else value
