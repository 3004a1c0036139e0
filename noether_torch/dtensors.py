"""Take of tensors that are spread over processes what this process holds; nothing here exchanges anything."""

from __future__ import annotations

import sys
from collections.abc import Collection, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noether_core.errors import NoetherError, UpdateOutputError
from noether_core.reduce import host
from noether_torch.plain import PLAIN_TYPES, type_of


def _class(module: str, name: str) -> Any:
    """Return a class; None where its module, which is slow to import, is not in use."""
    return getattr(sys.modules.get(module), name, None)


def _dtensor() -> Any:
    return _class("torch.distributed.tensor", "DTensor")


def _awaited() -> Any:
    """Return the class of a tensor that a collective may still be filling."""
    return _class("torch.distributed._functional_collectives", "AsyncCollectiveTensor")


def is_global(value: Any) -> bool:
    """Tell whether a value has to be asked for what this process holds."""
    kind = type(value)
    return kind not in PLAIN_TYPES and kind in (_dtensor(), _awaited())


def signature(values: Sequence[Any], kinds: Collection[type]) -> tuple[Hashable, ...]:
    """Return what decides how each of some values, which are of these kinds, is reduced."""
    kind = _dtensor()
    if kind not in kinds:
        return tuple([type_of(value) if isinstance(value, Tensor) else host.signature(value) for value in values])
    with torch.no_grad():  # one graph for each `to_local` would take longer than all else
        return tuple(
            [
                (value.device_mesh, value.placements, value.shape, type(value), type_of(value.to_local()))
                if type(value) is kind
                else type_of(value)
                if isinstance(value, Tensor)
                else host.signature(value)
                for value in values
            ]
        )


def local(values: Sequence[Tensor]) -> list[Tensor]:
    """Return what this process holds of values that are `is_global`; where a collective is under way, this waits for it.

    Raises:
        UpdateOutputError: for a DTensor on a mesh without this process.
    """
    kind, awaited = _dtensor(), _awaited()
    parts: list[Any] = list(values)
    with torch.no_grad():
        for at, value in enumerate(parts):
            if type(value) is kind:
                if value.device_mesh.get_coordinate() is None:
                    raise UpdateOutputError(
                        f"{_placing(value)} is not in this process, which has values that it is to weigh; {_WHOLE}"
                    )
                parts[at] = value.to_local()
        return [part.wait() if type(part) is awaited else part for part in parts]


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
    if type(value) is not _dtensor():
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
    return local([value])[0]
