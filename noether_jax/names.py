"""Read a Flax model's arrays by path, of NNX and of Linen, and write them back.

    matching = match(noether_torch.names.weights(theirs), weights(model), flax_layers=layers(model)).check()
    load(model, noether_torch.names.weights(theirs), matching)           # NNX: in place
    variables = load(variables, noether_torch.names.weights(theirs), matching)                           # Linen
    grads = matching.to_canonical(weights(grads), gradients=True)        # also inside of `jit`

A path is the names of the modules and of the array, joined by `/`: `blocks/0/attention/query/kernel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.dependencies import needing
from noether_core.errors import listing
from noether_core.names import Matching, WeightsError
from noether_jax.flax_arrays import COLLECTIONS, children_of, leaves_of, value_of
from noether_jax.flax_arrays import weights as weights
from noether_jax.flax_layers import layers as layers

with needing("noether_jax.names", "flax"):
    from flax import nnx
    from flax.core.meta import AxisMetadata


def load(model: Any, canonical: Mapping[str, Any], matching: Matching, *, strict: bool = True) -> Any:
    """Write arrays with PyTorch's names and layout into a model.

    Each keeps the dtype and the sharding that the model's has.

    Args:
        model: an `nnx.Module`, which is changed in place, or a tree, such as Linen's variables.
        canonical: arrays by name, as `noether_torch.names.weights` gives them.
        matching: of these names with this model's.
        strict: whether each of the model's arrays must be given.

    Returns:
        that module, or a new tree.

    Raises:
        WeightsError: for arrays that are not given, or do not fit.
    """
    flat = matching.to_flax(canonical)
    leaves = list(leaves_of(model))
    if strict and (left := [path for path, _ in leaves if path not in flat]):
        raise WeightsError(
            f"no weights were given for {listing(left)}: {len(flat)} of {len(leaves)} arrays are matched. Complete the "
            "matching, or give strict=False to leave these as they are"
        )
    if isinstance(model, nnx.Module):
        for path, variable in leaves:
            if path in flat:
                variable.set_value(_like(variable.get_value(), flat[path]))
        return model
    return _with(model, flat)


def _like(old: Any, new: Any) -> Any:
    if tuple(np.shape(new)) != tuple(old.shape):
        raise WeightsError(f"an array of shape {np.shape(new)} cannot take the place of one of {tuple(old.shape)}")
    array = jnp.asarray(new, old.dtype)
    return jax.device_put(array, old.sharding) if isinstance(old, jax.Array) and old.committed else array


def _with(model: Any, flat: Mapping[str, Any]) -> Any:
    """Return a tree with the arrays that `flat` has in place of its own."""
    if isinstance(model, Mapping) and "params" in model:
        return _rebuilt(model, lambda name, child: _replaced(child, flat, ()) if name in COLLECTIONS else child)
    return _replaced(model, flat, ())


def _replaced(tree: Any, flat: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    if not isinstance(tree, nnx.Variable | AxisMetadata) and children_of(tree):
        return _rebuilt(tree, lambda name, child: _replaced(child, flat, (*path, name)))
    new = flat.get("/".join(path))
    if new is None:
        return tree
    value = _like(value_of(tree), new)
    if isinstance(tree, nnx.Variable):
        return tree.replace(value)
    return tree.replace_boxed(value) if isinstance(tree, AxisMetadata) else value


def _rebuilt(tree: Any, replaced: Callable[[str, Any], Any]) -> Any:
    """Return a tree of the same structure with each child replaced, by its name."""
    below, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    if isinstance(tree, Mapping):  # of which a State shows as States what it keeps as dicts
        named = [(jax.tree_util.keystr(place, simple=True), child) for place, child in below]
    else:
        named = children_of(tree)
    return jax.tree.unflatten(structure, [replaced(name, child) for name, child in named])
