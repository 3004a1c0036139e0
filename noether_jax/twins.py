"""Make a training script one that can make its own twins; see `noether_core.twin`.

params = twin(params)
with Run(twin_path("runs/port"), CALLBACKS) as run:
    for batch in batches:
        x, y = twin_batch(batch)
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.twin import TwinError, nudged, rows_permuted, this_twin

Tree = TypeVar("Tree")


def twin(tree: Tree) -> Tree:
    """Return weights nudged by one rounding error while `noether-parity calibrate` makes a twin; otherwise the tree itself.

    Call it when the weights have their first values, before training, and outside of compiled functions.

    Args:
        tree: parameters as a pytree: a Linen model's `params`, an NNX module or its state. Of any float dtype and sharding;
            zeros are not nudged, nor is what holds integers or PRNG keys.

    Raises:
        TwinError: if a twin is to be made and the tree has no arrays.

    >>> params = {"kernel": jax.numpy.ones((2, 3))}
    >>> twin(params) is params
    True
    """
    making = this_twin()
    if making is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    if not any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
        raise TwinError("twin got no arrays, so that there is nothing to nudge; give it the model's parameters")
    nudged_leaves = [_nudged(leaf, making.seed, number) for number, leaf in enumerate(leaves)]
    changed: Tree = jax.tree.unflatten(structure, nudged_leaves)
    return changed


def _nudged(leaf: Any, seed: int, number: int) -> Any:
    if isinstance(leaf, np.ndarray):
        return nudged(leaf, seed, number)
    if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, np.inexact):
        return leaf
    shards = []
    for shard in leaf.addressable_shards:  # those of one place alike, wherever copies of it are
        start = [each.start or 0 for each in shard.index]
        values = nudged(np.asarray(shard.data), seed, number, *(start if any(start) else ()))
        shards.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)


def twin_batch(batch: Tree) -> Tree:
    """Return a batch with its rows permuted while a twin of that kind is made; otherwise the batch itself.

    Args:
        batch: a pytree of arrays, each with one row an example. Scalars stay.

    Raises:
        TwinError: if the arrays have different numbers of rows.

    >>> twin_batch((np.zeros((4, 2)), np.zeros(4)))[0].shape
    (4, 2)
    """
    making = this_twin()
    if making is None or not making.rows:
        return batch
    leaves, structure = jax.tree.flatten(batch)
    changed: Tree = jax.tree.unflatten(structure, rows_permuted(leaves))
    return changed
