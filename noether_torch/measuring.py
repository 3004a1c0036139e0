"""Measure tensors on their device: their statistics and fingerprints. Nothing waits for an accelerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noether_core.errors import NoetherError
from noether_core.probes.fingerprint import FIRST, LEAST, NAN_BITS, SECOND, plain_copy
from noether_core.probes.probed import Due, Probed
from noether_core.probes.sampling import places
from noether_core.probes.statistics import REALS, measure
from noether_torch import dtensors
from noether_torch.numpy_arrays import to_array, to_tensor

_PIECE = 2**24  # elements of which an accelerator holds copies at a time


def measured(values: Mapping[str, Any], due: Due) -> Probed:
    """Return what is probed of tensors by key, copies of those that are kept; a DTensor is gathered by all its processes.

    Raises:
        NoetherError: for a dtype that is no number's.
    """
    with torch.no_grad():
        tensors = [_whole(value) for value in values.values()]
        rows = [_row(tensor) for tensor in tensors]
        kept = [_sample(tensor, due.array_limit) for tensor in tensors] if due.arrays else []
        reals = _stacked([row[0] for row in rows], (0, len(REALS)), torch.float64)
        sums = _stacked([row[1] for row in rows], (0, 2), torch.int32)
    shapes = tuple(tuple(tensor.shape) for tensor in tensors)
    return Probed(tuple(values), shapes, reals, sums, dict(zip(values, kept, strict=False)), due.array_limit)


def _whole(value: Any) -> Tensor:
    """Return a value as a tensor that this process has whole, of real numbers, where there is binary64."""
    if dtensors.is_global(value):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value.wait()
    tensor = value.detach() if isinstance(value, Tensor) else _as_tensor(value)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_nested:
        tensor = tensor.values()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.cpu() if tensor.device.type == "mps" else tensor.resolve_neg()


def _as_tensor(value: Any) -> Tensor:
    array = plain_copy(value)
    try:
        return to_tensor(array)
    except TypeError as error:
        raise NoetherError(
            f"a probe got an array of dtype {array.dtype}, which PyTorch lacks; convert it first"
        ) from error


def _sample(tensor: Tensor, limit: int) -> Tensor:
    for axis, along in enumerate(places(tensor.shape, limit) or ()):
        if len(along) < tensor.shape[axis]:
            tensor = tensor.index_select(axis, torch.from_numpy(along).to(tensor.device, non_blocking=True))
    return tensor.clone(memory_format=torch.contiguous_format)


def _stacked(rows: Sequence[Tensor], empty: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not rows:
        return torch.empty(empty, dtype=dtype)
    device = next((row.device for row in rows if not row.is_cpu), rows[0].device)
    return torch.stack([row.to(device, non_blocking=True) for row in rows])


def _row(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64 [5] and int32 [2]."""
    if tensor.is_cpu or not tensor.numel():
        reals, sums = measure(to_array(tensor.cpu()))
        return torch.from_numpy(reals), torch.from_numpy(sums.view(np.int32))
    return on_device(tensor)


# ---------------------------------------------------------------------- on an accelerator


def on_device(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64 [5] and int32 [2] of a tensor that is not empty, as `noether_core.probes.statistics.measure` does."""
    values = tensor.reshape(-1)
    if values.dtype.itemsize == 1 and values.is_floating_point():
        values = values.float()
    pieces = torch.split(values, _PIECE)
    each = [_piece(piece) for piece in pieces]
    total, squares, low, high = (torch.stack(column) for column in zip(*(reals for reals, _ in each), strict=True))
    mean, low, high = total.sum() / len(values), low.min(), high.max()
    spread = torch.stack([(piece.double() - mean).square().sum() for piece in pieces]).sum()
    is_constant = low == high
    std = torch.where(is_constant, torch.zeros_like(spread), (spread / len(values)).sqrt())
    reals = torch.stack([torch.where(is_constant, low, mean), std, squares.sum().sqrt(), low, high])
    return reals, torch.stack([sums for _, sums in each]).sum(0).to(torch.int32)


def _piece(values: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    wide = values.view(torch.int64).double() if values.dtype is torch.uint64 else values.double()
    low, high = torch.aminmax(wide)
    sums = [each.sum(dtype=torch.int64) for each in _mixed(_value_bits(values))]
    return (wide.sum(), wide.square().sum(), low, high), torch.stack(sums)


def _value_bits(values: Tensor) -> Tensor:
    """Return int32 that stand for values: equal ones have equal bits; see `noether_core.probes.fingerprint`."""
    if not values.is_floating_point():
        wide = values.view(torch.int64) if values.dtype is torch.uint64 else values.to(torch.int64)
        return _folded(wide)
    short = values.to(torch.float32)
    bits = torch.where(torch.isnan(short), NAN_BITS, (short + 0.0).view(torch.int32))
    if values.dtype is not torch.float64:
        return bits
    is_short = (short.double() == values) & ((values.abs() >= LEAST) | (values == 0))
    return torch.where(is_short | torch.isnan(values), bits, _folded(values.view(torch.int64)))


def _folded(words: Tensor) -> Tensor:
    return words.to(torch.int32) ^ _mixed((words >> 32).to(torch.int32))[1]


def _mixed(bits: Tensor) -> tuple[Tensor, Tensor]:
    bits = (bits ^ _shifted(bits, 16)) * _signed(FIRST)
    first = bits ^ _shifted(bits, 15)
    bits = first * _signed(SECOND)
    return first, bits ^ _shifted(bits, 15)


def _shifted(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (32 - by)) - 1)  # of an int32 the sign would be shifted in


def _signed(factor: int) -> int:
    return factor - 2**32 if factor >= 2**31 else factor
