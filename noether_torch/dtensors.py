"""Take of tensors that are spread over processes what this process holds; nothing here exchanges anything."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noether_core.errors import NoetherError, UpdateOutputError
from noether_torch.plain import PLAIN_TYPES, type_of


def _class(module: str, name: str) -> Any:
    """Return a class; `()`, of which nothing is an instance, where its module, which is slow to import, is not in use."""
    return getattr(sys.modules.get(module), name, ())


def _is_dtensor(value: Any) -> bool:
    return isinstance(value, _class("torch.distributed.tensor", "DTensor"))


def _is_awaited(value: Any) -> bool:
    """Tell whether a collective may still be filling a tensor."""
    return isinstance(value, _class("torch.distributed._functional_collectives", "AsyncCollectiveTensor"))


def is_global(value: Any) -> bool:
    """Tell whether a value has to be asked for what this process holds."""
    return type(value) not in PLAIN_TYPES and (_is_dtensor(value) or _is_awaited(value))


def signature(value: Tensor) -> Hashable:
    """Return what decides how a tensor is reduced, likewise of one that is spread over processes."""
    if type(value) in PLAIN_TYPES or not _is_dtensor(value):
        return type_of(value)
    with torch.no_grad():
        part = value.to_local()  # type: ignore[attr-defined]
    return type(value), value.device_mesh, value.placements, value.shape, type_of(part)  # type: ignore[attr-defined]


def local(value: Tensor) -> Tensor:
    """Return what this process holds of a value that `is_global`; where a collective is under way, this waits for it.

    Raises:
        UpdateOutputError: for a DTensor on a mesh without this process.
    """
    part: Any = value
    if _is_dtensor(value):
        if not (placing := _placing(value)).is_here:
            raise UpdateOutputError(f"{placing} is not in this process, which has values that it is to weigh; {_WHOLE}")
        with torch.no_grad():
            part = value.to_local()  # type: ignore[attr-defined]
    return part.wait() if _is_awaited(part) else part  # type: ignore[no-any-return]


_WHOLE = "call .full_tensor() on it, in every process"


class Placing(NamedTuple):
    """Say where a DTensor is; it prints as words."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"a DTensor of shape {self.shape}, placed {self.placements} on {self.mesh}"

    @property
    def parted(self) -> list[Any]:
        """Return the placements by which several processes have different things."""
        several = [placement for at, placement in enumerate(self.placements) if self.mesh.size(at) > 1]
        return [placement for placement in several if not placement.is_replicate()]

    @property
    def is_here(self) -> bool:
        """Tell whether this process is in the mesh."""
        return self.mesh.get_coordinate() is not None

    @property
    def is_counted(self) -> bool:
        """Tell whether this process counts what it holds: of copies it is the first along each dimension of the mesh."""
        pairs = zip(self.mesh.get_coordinate() or (), self.placements, strict=True) if self.is_here else ()
        return self.is_here and not any(at for at, placement in pairs if placement.is_replicate())


def _placing(value: Any) -> Placing:
    return Placing(value.device_mesh, value.placements, tuple(value.shape))


def placing_of(key: str, value: Tensor) -> Placing | None:
    """Return where a value is; None for one that is this process's own.

    Raises:
        UpdateOutputError: for one of which no process has an element's value.
    """
    if not _is_dtensor(value):
        return None
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    placing = _placing(value)
    if not all(isinstance(placement, Shard | _StridedShard) for placement in placing.parted):
        raise UpdateOutputError(
            f"update output {key!r} is {placing}: what the processes have of it is still to be reduced, as of the norm of a"
            f" sharded gradient; expected placements that are Replicate or Shard: {_WHOLE}, for nothing is exchanged in a step"
        )
    return placing


class _Refused:
    """Stand for a value that cannot be logged: an error, once it is asked for its number."""

    def __init__(self, error: NoetherError) -> None:
        self._error = error

    def item(self) -> float:
        """Raise the error."""
        raise self._error


def loggable(key: str, value: Any) -> Any:
    """Return a value of the user's own, with a plain tensor for a DTensor that this process has whole."""
    if not is_global(value):
        return value
    try:
        placing = placing_of(key, value)
    except UpdateOutputError as error:
        return _Refused(NoetherError(f"cannot log {key!r}: {error}"))
    if placing is not None and (placing.parted or not placing.is_here):
        return _Refused(
            NoetherError(
                f"cannot log {key!r}: it is {placing}; expected a number that this process has whole: {_WHOLE}"
            )
        )
    return local(value)
