"""Measure tensors on their device: their statistics and fingerprints. Nothing waits for an accelerator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noether_core.errors import NoetherError
from noether_core.probes.fingerprint import FIRST, LEAST, NAN_BITS, SECOND, plain_copy
from noether_core.probes.probed import Due, Probed
from noether_core.probes.sampling import places
from noether_core.probes.statistics import REALS, measure_all
from noether_torch import dtensors
from noether_torch.numpy_arrays import to_array, to_tensor
from noether_torch.plain import computing

_PIECE = 2**24  # elements of which an accelerator holds copies at a time
_ROW = 2**12  # elements
_INTS = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}  # by their bytes, those that all operations have
_MOST_GATHERED = 2**22  # places of a matrix that has a row for each tensor


def measured(values: Mapping[str, Any], due: Due) -> Probed:
    """Return what is probed of tensors by key, copies of those that are kept; a DTensor is gathered by all its processes.

    Raises:
        NoetherError: for a dtype that is no number's.
    """
    with computing():
        tensors = [_whole(value) for value in values.values()]
        rows = _rows(tensors)
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
    dtype = tensor.dtype
    tensor = tensor.view(_INTS[dtype.itemsize])  # elements of all dtypes are picked alike, by their bits
    for axis, along in enumerate(places(tensor.shape, limit) or ()):
        if len(along) < tensor.shape[axis]:
            tensor = tensor.index_select(axis, torch.from_numpy(along).to(tensor.device, non_blocking=True))
    return tensor.clone(memory_format=torch.contiguous_format).view(dtype)


def _stacked(rows: Sequence[Tensor], empty: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not rows:
        return torch.empty(empty, dtype=dtype)
    device = next((row.device for row in rows if not row.is_cpu), rows[0].device)
    return torch.stack([row.to(device, non_blocking=True) for row in rows])


def _rows(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return float64 [5] and int32 [2] of each tensor."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    on_host = [at for at, tensor in enumerate(tensors) if tensor.is_cpu or not tensor.numel()]
    reals, sums = measure_all([to_array(tensors[at].cpu()) for at in on_host], torch.get_num_threads())
    found |= zip(on_host, zip(torch.from_numpy(reals), torch.from_numpy(sums.view(np.int32)), strict=True), strict=True)
    for at in set(range(len(tensors))).difference(on_host):
        groups.setdefault((tensors[at].device, tensors[at].dtype), []).append(at)
    for members in groups.values():
        for those in _together([tensors[at].numel() for at in members]):
            chosen = [members[which] for which in those]
            found |= zip(chosen, zip(*on_device([tensors[at] for at in chosen]), strict=True), strict=True)
    return [found[at] for at in range(len(tensors))]


# ---------------------------------------------------------------------- on an accelerator

# There the host starts each operation, which takes longer than to compute it: so tensors are measured many at a time.
# They are laid into rows of a matrix, each beginning a new one; what rows come to is gathered by tensor, in order.


def _together(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield which tensors are measured in one go, by their numbers of elements."""
    chosen: list[int] = []
    total = longest = 0
    for at, size in enumerate(sizes):
        rows = math.ceil(size / _ROW)
        total, longest = total + rows, max(longest, rows)
        if chosen and (total * _ROW > _PIECE or (len(chosen) + 1) * longest > _MOST_GATHERED):
            yield chosen
            chosen, total, longest = [], rows, rows
        chosen.append(at)
    if chosen:
        yield chosen


def on_device(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return float64 [n, 5] and int32 [n, 2] of tensors that are not empty, as `noether_core.probes.statistics.measure` does.

    Args:
        tensors: of one device and dtype, as `_together` says.
    """
    if tensors[0].dtype.itemsize == 1 and tensors[0].is_floating_point():
        tensors = [tensor.float() for tensor in tensors]
    sizes = [tensor.numel() for tensor in tensors]
    if sizes[0] > _PIECE:
        return _of_pieces(tensors[0])
    layout = _Layout(sizes, tensors[0].device)
    values = layout.laid(tensors)
    wide = _widened(values)
    counts = layout.counts
    low = layout.gathered(torch.where(layout.is_element, wide, math.inf).amin(1), math.inf).amin(1)
    high = layout.gathered(torch.where(layout.is_element, wide, -math.inf).amax(1), -math.inf).amax(1)
    mean = layout.gathered(wide.sum(1), 0.0).sum(1) / counts
    norm = layout.gathered(wide.square().sum(1), 0.0).sum(1).sqrt()
    apart = torch.where(layout.is_element, wide - mean[layout.owners][:, None], 0.0).square().sum(1)
    spread = layout.gathered(apart, 0.0).sum(1)
    # what is laid between tensors is 0, which the sums of a fingerprint do not count
    sums = [layout.gathered(each.sum(1, dtype=torch.int64), 0).sum(1) for each in _mixed(_value_bits(values))]
    return _finished(mean, spread / counts, norm, low, high), torch.stack(sums, 1).to(torch.int32)


class _Layout:
    """Know which rows of a matrix hold which of several tensors.

    Attributes:
        is_element: bool [rows, `_ROW`]: whether it is one of a tensor's.
        owners: int64 [rows]: the tensor's number.
        counts: float64 [n]: how many elements tensors have.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.pads = [-size % _ROW for size in sizes]
        rows = np.array([math.ceil(size / _ROW) for size in sizes])
        owners = np.repeat(np.arange(len(sizes)), rows)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(rows) - rows, rows)
        members = np.full((len(sizes), rows.max()), len(owners))  # the row after the last stands for none
        members[owners, within] = np.arange(len(owners))
        filled = np.minimum(np.array(sizes)[owners] - within * _ROW, _ROW)
        self.owners, self._members, self.counts, filled_there = (
            torch.from_numpy(each).to(device, non_blocking=True)
            for each in (owners, members, np.array(sizes, np.float64), filled)
        )
        self.is_element = torch.arange(_ROW, device=device) < filled_there[:, None]

    def laid(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors as rows, with zeros between them."""
        zeros = torch.zeros(_ROW, dtype=tensors[0].dtype, device=tensors[0].device)
        parts = [
            part for tensor, pad in zip(tensors, self.pads, strict=True) for part in (tensor.reshape(-1), zeros[:pad])
        ]
        return torch.cat(parts).view(-1, _ROW)

    def gathered(self, of_rows: Tensor, nothing: float) -> Tensor:
        """Return [n, most rows of a tensor]: what rows came to, by tensor."""
        return torch.cat([of_rows, torch.full_like(of_rows[:1], nothing)])[self._members]


def _of_pieces(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Measure one large tensor, a piece at a time; see `on_device`."""
    values = tensor.reshape(-1)
    pieces = torch.split(values, _PIECE)
    each = [_piece(piece) for piece in pieces]
    total, squares, low, high = (torch.stack(column) for column in zip(*(reals for reals, _ in each), strict=True))
    mean, low, high = total.sum() / len(values), low.min(), high.max()
    spread = torch.stack([(_widened(piece) - mean).square().sum() for piece in pieces]).sum()
    reals = _finished(mean, spread / len(values), squares.sum().sqrt(), low, high)
    return reals[None], torch.stack([sums for _, sums in each]).sum(0).to(torch.int32)[None]


def _piece(values: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    wide = _widened(values)
    low, high = torch.aminmax(wide)
    sums = [each.sum(dtype=torch.int64) for each in _mixed(_value_bits(values))]
    return (wide.sum(), wide.square().sum(), low, high), torch.stack(sums)


def _finished(mean: Tensor, variance: Tensor, norm: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return `REALS` in the last axis; of values that are all the same, these exactly."""
    is_constant = low == high
    std = torch.where(is_constant, 0.0, variance.sqrt())
    return torch.stack([torch.where(is_constant, low, mean), std, norm, low, high], -1)


def _widened(values: Tensor) -> Tensor:
    return values.view(torch.int64).double() if values.dtype is torch.uint64 else values.double()


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
