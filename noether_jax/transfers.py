"""Move between host and device: explicitly, and whatever `jax.transfer_guard` the user has set for transfers of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from noether_core.errors import NoetherError

Tree = TypeVar("Tree")


@contextmanager
def ours() -> Iterator[None]:
    """Let operations of our own use 64 bits, and bring their constants to the device."""
    with jax.enable_x64(True), jax.transfer_guard("allow"):
        yield


def to_device(tree: Any) -> Any:
    """Return a pytree with JAX arrays in place of NumPy's, 64-bit ones included; on the default device, committed to none."""
    with ours():
        return jax.device_put(tree)


def to_host(tree: Tree) -> Tree:
    """Return a pytree with NumPy arrays in place of JAX's, all in one transfer. This waits for the device."""
    with jax.transfer_guard_device_to_host("allow"):  # of this direction alone: all three take three times as long
        fetched: Tree = jax.device_get(tree)
        return fetched


class Rows(NamedTuple):
    """Hold what this process has of a pytree whose arrays have a leading axis of members.

    Attributes:
        tree: the pytree in NumPy arrays, with a row for each member that lies here.
        is_counted: bool [members], whether this process counts the row: of those that hold a copy of it, one does.
    """

    tree: Any
    is_counted: np.ndarray[Any, Any]


def rows_to_host(tree: Any, *, has_rows: bool) -> Rows:
    """Return what this process has of a pytree, all in one transfer; of one without rows, as the only row.

    Raises:
        NoetherError: if a row is cut into parts on several processes, or the arrays do not lie alike.
    """
    leaves, form = jax.tree.flatten(tree)
    if all(not isinstance(leaf, jax.Array) or leaf.is_fully_addressable for leaf in leaves):
        arrays = to_host(leaves) if has_rows else [np.asarray(array)[None] for array in to_host(leaves)]
        return Rows(jax.tree.unflatten(form, arrays), np.ones(len(arrays[0]), bool))
    parts = [_parts(leaf, has_rows) for leaf in leaves]
    places = [[(start, is_counted) for start, is_counted, _ in part] for part in parts]
    if any(each != places[0] for each in places):
        raise _cut("its arrays lie on different processes")
    rows = [
        [np.asarray(row) if has_rows else np.asarray(row)[None] for row in part]
        for part in to_host([[part[2] for part in each] for each in parts])
    ]
    arrays = [
        np.concatenate(each or [np.zeros((0, *leaf.shape[1:]), leaf.dtype)])
        for each, leaf in zip(rows, leaves, strict=True)
    ]
    is_counted = [np.full(len(row), counted) for row, (_, counted) in zip(rows[0], places[0], strict=True)]
    return Rows(jax.tree.unflatten(form, arrays), np.concatenate([np.zeros(0, bool), *is_counted]))


def _parts(array: jax.Array, has_rows: bool) -> list[tuple[int, bool, jax.Array]]:
    """Return the distinct parts of an array that lie in this process: its first row, whether it counts here, the part."""
    found: dict[int, tuple[bool, jax.Array]] = {}
    for shard in array.addressable_shards:
        if shard.data.shape[has_rows:] != array.shape[has_rows:]:
            raise _cut(f"an array of shape {array.shape} is in parts of shape {shard.data.shape}")
        start = (shard.index[0].start or 0) if has_rows else 0
        is_counted, data = found.get(start, (False, shard.data))
        found[start] = is_counted or shard.replica_id == 0, data
    return [(start, *found[start]) for start in sorted(found)]


def _cut(what: str) -> NoetherError:
    return NoetherError(
        f"what run.step got is spread over several processes so that none of them can read a whole row: {what}; give jit"
        " out_shardings=NamedSharding(mesh, PartitionSpec()) for it (with axis_name: PartitionSpec(axis_name))"
    )
