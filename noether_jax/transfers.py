"""Move between host and device: explicitly, and whatever `jax.transfer_guard` the user has set for transfers of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

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
