"""Read a Flax model's arrays by path, of NNX, of Linen and of any tree of their structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from noether_core.dependencies import needing

with needing("noether_jax.names", "flax"):
    from flax import nnx
    from flax.core.meta import AxisMetadata

Shape = tuple[int, ...]
COLLECTIONS = ("params", "batch_stats")
_NO_WEIGHTS = (nnx.RngState, nnx.Cache, nnx.Intermediate, nnx.Perturbation)
_PLAIN = (int, float, complex, bool, np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)


def weights(model: Any) -> dict[str, Any]:
    """Return a model's parameters and batch statistics by path, as they are.

    Args:
        model: an `nnx.Module`; Linen's variables, or its `params` alone; or any tree of their structure, such as gradients,
            updates or an optimizer's moments, also inside of a compiled function. Random states and caches are left out.

    Returns:
        arrays by path, without the name of a collection: of an NNX module in the order of its attributes, else of the tree.

    >>> {path: array.shape for path, array in weights(nnx.Linear(2, 3, rngs=nnx.Rngs(0))).items()}
    {'kernel': (2, 3), 'bias': (3,)}
    >>> weights({"params": {"Dense_0": {"kernel": np.ones((2, 3))}}})["Dense_0/kernel"].shape
    (2, 3)
    """
    return {path: value_of(leaf) for path, leaf in leaves_of(model)}


def leaves_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield a model's arrays by path, in the variables or boxes that hold them."""
    if isinstance(model, nnx.Module):
        for module_path, module in modules_of(model, (), set()):
            for name, value in _attributes(module):
                if isinstance(value, nnx.Variable) and not isinstance(value, _NO_WEIGHTS):
                    yield (f"{module_path}/{name}" if module_path else name), value
        return
    if isinstance(model, Mapping) and "params" in model:
        merged = _merged([model[name] for name in COLLECTIONS if name in model])
        yield from (("/".join(path), leaf) for path, leaf in _below(merged, ()))
        return
    yield from (("/".join(path), leaf) for path, leaf in _below(model, ()))


def _merged(collections: list[Any]) -> Any:
    """Return trees of one structure of modules as one."""
    if len(collections) == 1 or not all(isinstance(each, Mapping) for each in collections):
        return collections[0]
    names = dict.fromkeys(name for each in collections for name in each)
    return {name: _merged([each[name] for each in collections if name in each]) for name in names}


def _below(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, nnx.Variable | AxisMetadata):
        if not isinstance(tree, _NO_WEIGHTS):
            yield path, tree
    elif children := children_of(tree):
        for name, child in children:
            yield from _below(child, (*path, name))
    elif isinstance(tree, _PLAIN) or hasattr(tree, "shape"):
        yield path, tree


def children_of(tree: Any) -> list[tuple[str, Any]]:
    """Return what is right below a node of a tree, by name; nothing of a leaf."""
    if isinstance(tree, Mapping):
        return [(str(name), child) for name, child in tree.items()]
    if isinstance(tree, nnx.List):
        return [(str(i), child) for i, child in enumerate(tree)]
    children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    return [(jax.tree_util.keystr(path, simple=True), child) for path, child in children if path]


def _attributes(module: nnx.Module) -> list[tuple[str, Any]]:
    if isinstance(module, nnx.List):
        return children_of(module)
    return [(name, value) for name, value in vars(module).items() if not name.startswith("_pytree__")]


def modules_of(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, nnx.Module]]:
    """Yield a module and those below it, each once, in the order of their attributes."""
    if id(value) in seen or isinstance(value, nnx.Variable):
        return
    if isinstance(value, nnx.Module):
        seen.add(id(value))
        yield "/".join(path), value
        children = _attributes(value)
    else:
        children = children_of(value)
    for name, child in children:
        yield from modules_of(child, (*path, name), seen)


def value_of(leaf: Any) -> Any:
    """Return the array in a variable or a box; any other as it is."""
    if isinstance(leaf, nnx.Variable):
        return leaf.get_value()
    return leaf.unbox() if isinstance(leaf, AxisMetadata) else leaf


def shape_of(kernel: Any) -> Shape:
    """Return the shape of what a variable or a box holds; of None that of a number."""
    return () if kernel is None else tuple(np.shape(value_of(kernel)))
