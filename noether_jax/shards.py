"""Take of arrays that lie on devices of several processes what this one is to count, where it lies; nothing is exchanged."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from noether_core.errors import UpdateOutputError
from noether_jax.transfers import ours

_Index = tuple[tuple[int, int], ...]
_WHOLE = "gather it in the training step, in every process, with jax.experimental.multihost_utils.process_allgather"


class Spread(NamedTuple):
    """Say how an array is spread over processes; it prints as words."""

    sharding: Sharding
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"an array of shape {self.shape}, sharded over processes by {self.sharding}"


class Placing(NamedTuple):
    """Say what of an array this process is to count. Each element is counted once over all processes.

    Attributes:
        spread: how it is spread, if no process counts all of it.
        devices: those whose shards this process counts.
        whole: how the array lies on this process's devices, if it holds all of it.
        is_counted: whether this process counts anything.
    """

    spread: Spread | None
    devices: tuple[Any, ...]
    whole: Sharding | None
    is_counted: bool


def placing_of(value: jax.Array) -> Placing:
    """Return what of an array that other processes hold too this one is to count; worked out once for each sharding."""
    return _placing(value.sharding, value.shape, jax.process_index())


@lru_cache(1024)
def _placing(sharding: Sharding, shape: tuple[int, ...], process: int) -> Placing:
    places = _places(sharding, shape)
    owners: dict[_Index, Any] = {}  # as JAX numbers the replicas
    for device, index in places.items():
        owners.setdefault(index, device)
    processes = {device.process_index for device in owners.values()}
    here = tuple(device for device in owners.values() if device.process_index == process)
    whole = _within(sharding, shape, places, process)
    if len(processes) == 1 and _within(sharding, shape, places, *processes) is not None:
        return Placing(None, here, whole, bool(here))
    return Placing(Spread(sharding, shape), here, None, bool(here))


def _places(sharding: Sharding, shape: tuple[int, ...]) -> dict[Any, _Index]:
    found = sharding.devices_indices_map(shape).items()
    return {
        device: tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        for device, index in found
    }


def _within(sharding: Sharding, shape: tuple[int, ...], places: dict[Any, _Index], process: int) -> Sharding | None:
    """Return the sharding with which the shards of one process are the whole array; None if they are not."""
    own = {device: index for device, index in places.items() if device.process_index == process}
    if sharding.is_fully_replicated and own:
        return jax.sharding.SingleDeviceSharding(next(iter(own)))
    if not own or not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    devices = sharding.mesh.devices
    block = devices[np.ix_(*map(np.unique, np.nonzero(np.isin(devices, list(own)))))]
    if {*block.flat} != {*own}:
        return None
    mesh = Mesh(block, sharding.mesh.axis_names)
    inner = NamedSharding(mesh, PartitionSpec(*sharding.spec))  # type: ignore[no-untyped-call]
    return inner if _places(inner, shape) == own else None


def local(value: jax.Array) -> jax.Array:
    """Return what this process is to count of an array, as one of its own devices; of what it only weighs with, its copy.

    The shards that it counts of an array which is spread are put one after another along the first axis.

    Raises:
        UpdateOutputError: for a weight of which this process has no copy.
    """
    spread, devices, whole, _ = placing_of(value)
    shards: dict[Any, jax.Array] = {shard.device: shard.data for shard in value.addressable_shards}
    if spread is None and whole is not None:
        inside = whole.devices_indices_map(value.shape)
        if len(inside) == 1:
            return shards[next(iter(inside))]
        return _made(value.shape, whole, [shards[device] for device in inside])
    if not devices:
        raise UpdateOutputError(
            f"{Spread(value.sharding, value.shape)}, has nothing in process {jax.process_index()}, which has values that it is"
            f" to weigh; {_WHOLE}"
        )
    parts = [shards[device] for device in devices]
    if len(parts) == 1:
        return parts[0]
    mesh = Mesh(np.array(devices), ("shard",))
    by_shard = NamedSharding(mesh, PartitionSpec("shard"))  # type: ignore[no-untyped-call]
    rows, *rest = parts[0].shape
    return _made((rows * len(parts), *rest), by_shard, parts)


def _made(shape: tuple[int, ...], sharding: Sharding, parts: list[Any]) -> jax.Array:
    with ours():
        made: jax.Array = jax.make_array_from_single_device_arrays(shape, sharding, parts)
        return made


def check_reduced(key: str, value: jax.Array) -> None:
    """Raise `UpdateOutputError` for an array of which each device has a summand."""
    spec = value.sharding.spec if isinstance(value.sharding, NamedSharding) else None
    if spec is not None and getattr(spec, "unreduced", None):
        raise UpdateOutputError(
            f"update output {key!r} has the sharding {value.sharding}, by which its devices, also those of other processes,"
            " have summands of it; expected an array whose sums are made: reshard it in the jitted function"
        )
