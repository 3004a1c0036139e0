"""Tell tensors that are plain values in memory from all the other things that are called tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PLAIN_TYPES = {Tensor, nn.Parameter}
_PLAIN_WAYS = {Tensor.__torch_function__.__func__, nn.Parameter.__torch_function__}  # type: ignore[attr-defined]
_TO_PLAIN = (
    "take its values as a torch.Tensor (a masked one has .get_data() and .get_mask(), others"
    " .as_subclass(torch.Tensor)), or do not track it"
)
_TO_OUTSIDE = "return it from that function, with has_aux=True where it has one, and call run.step outside"
_TO_DENSE = "use .to_dense(), or of a nested one .values() or .to_padded_tensor(), or do not track it"

transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack  # None outside of vmap, grad and the like


def computing() -> AbstractContextManager[Any]:
    """Return a context for computing with a user's tensors as they are: no graph is recorded, and autocast casts nothing.

    Autocast would also refuse to stack tensors of a half precision that is not its own.
    """
    return _outside_autocast() if torch._C._is_any_autocast_enabled() else torch.no_grad()


@contextmanager
def _outside_autocast() -> Iterator[None]:
    with torch.no_grad(), torch._C._DisableAutocast():
        yield


def require_memory(values: Sequence[Tensor]) -> None:
    """Raise for a tensor that has no memory to read: one that looks as those before it did is not inspected again."""
    if 0 in map(Tensor.data_ptr, values) and any(value.numel() for value in values if not value.data_ptr()):
        raise RuntimeError("a tensor has no memory")


def type_of(value: Tensor) -> Hashable:
    """Return what decides how a tensor is reduced; None, which no plan is made for, where it cannot be asked."""
    try:
        return type(value), value.dtype, value.shape, value.device
    except RuntimeError:
        return None


def found_strange(value: Tensor) -> tuple[str, str] | None:
    """Return what is wrong with a tensor that is not plain values in memory, and what to do; None for one that is."""
    kind = type(value)
    function = kind.__torch_function__
    if (
        kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
        or getattr(function, "__func__", function) not in _PLAIN_WAYS
    ):
        return f"{kind.__module__}.{kind.__qualname__}, a kind of tensor with operations of its own", _TO_PLAIN
    if transform() is not None or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return "inside of a function that torch.func transforms (vmap, grad, …)", _TO_OUTSIDE
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return "given in a FakeTensorMode, where nothing is computed", "call run.step outside of it"
    if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        return "a parameter that is not initialised", "run the model once before"
    if value.is_nested or value.layout is not torch.strided or value.device.type == "meta":
        layout = "nested" if value.is_nested else value.layout
        return f"a tensor of layout {layout} on {value.device}", _TO_DENSE
    if value.numel() and not value.data_ptr():
        return "a tensor whose memory was freed", "call the hook before its storage is resized, or do not track it"
    return None
