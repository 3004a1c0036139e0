"""Read a Flax model's arrays by path, of NNX and of Linen, and write them back.

    matching = match(noether_torch.names.weights(theirs), weights(model), flax_layers=layers(model)).check()
    load(model, noether_torch.names.weights(theirs), matching)           # NNX: in place
    variables = load(variables, noether_torch.names.weights(theirs), matching)                           # Linen
    grads = matching.to_canonical(weights(grads), gradients=True)        # also inside of `jit`

A path is the names of the modules and of the array, joined by `/`: `blocks/0/attention/query/kernel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.dependencies import needing
from noether_core.errors import listing
from noether_core.names import Layer, Layout, Matching, WeightsError
from noether_core.names.layout import contraction, convolution, linear, transposed_convolution

with needing("noether_jax.names", "flax"):
    from flax import linen, nnx
    from flax.core.meta import AxisMetadata

_COLLECTIONS = ("params", "batch_stats")
_NO_WEIGHTS = (nnx.RngState, nnx.Cache, nnx.Intermediate, nnx.Perturbation)
_NORMS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
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
    return {path: _value(leaf) for path, leaf in _leaves(model)}


def layers(model: Any, *inputs: Any, **arguments: Any) -> dict[str, Layer]:
    """Return what is known of a model's modules, by path and in order: more than the arrays' shapes tell.

    Args:
        model: an `nnx.Module`, or a Linen module.
        inputs: what a Linen module is called with; shapes (`jax.ShapeDtypeStruct`) are enough, as nothing is computed.
        arguments: what it is called with by keyword, such as `train=False`.

    Returns:
        for an NNX module in the order of its attributes, for a Linen module in the order of its calls.

    >>> layers(linen.Dense(3), jax.ShapeDtypeStruct((1, 2), "float32"))[""].kind
    'linear'
    """
    if isinstance(model, nnx.Module):
        found = {path: (module, _shape(getattr(module, "kernel", None))) for path, module in _modules(model, (), set())}
    else:
        found = _called(model, inputs, arguments)
    return {path: _layer(module, shape) for path, (module, shape) in found.items()}


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
    leaves = list(_leaves(model))
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


def _leaves(model: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(model, nnx.Module):
        for module_path, module in _modules(model, (), set()):
            for name, value in _attributes(module):
                if isinstance(value, nnx.Variable) and not isinstance(value, _NO_WEIGHTS):
                    yield (f"{module_path}/{name}" if module_path else name), value
        return
    if isinstance(model, Mapping) and "params" in model:
        merged = _merged([model[name] for name in _COLLECTIONS if name in model])
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
    elif children := _children(tree):
        for name, child in children:
            yield from _below(child, (*path, name))
    elif isinstance(tree, _PLAIN) or hasattr(tree, "shape"):
        yield path, tree


def _children(tree: Any) -> list[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        return [(str(name), child) for name, child in tree.items()]
    if isinstance(tree, nnx.List):
        return [(str(i), child) for i, child in enumerate(tree)]
    children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    return [(jax.tree_util.keystr(path, simple=True), child) for path, child in children if path]


def _attributes(module: nnx.Module) -> list[tuple[str, Any]]:
    if isinstance(module, nnx.List):
        return _children(module)
    return [(name, value) for name, value in vars(module).items() if not name.startswith("_pytree__")]


def _modules(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, nnx.Module]]:
    """Yield a module and those below it, each once, in the order of their attributes."""
    if id(value) in seen or isinstance(value, nnx.Variable):
        return
    if isinstance(value, nnx.Module):
        seen.add(id(value))
        yield "/".join(path), value
        children = _attributes(value)
    else:
        children = _children(value)
    for name, child in children:
        yield from _modules(child, (*path, name), seen)


def _value(leaf: Any) -> Any:
    if isinstance(leaf, nnx.Variable):
        return leaf.get_value()
    return leaf.unbox() if isinstance(leaf, AxisMetadata) else leaf


def _shape(kernel: Any) -> tuple[int, ...]:
    return () if kernel is None else tuple(_value(kernel).shape)


def _called(model: linen.Module, inputs: Any, arguments: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return a Linen model's modules in the order in which they are first called, each with the shape of its kernel."""
    found: dict[str, tuple[Any, tuple[int, ...]]] = {}

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        path = "/".join(context.module.path)
        found.setdefault(path, (context.module, ()))
        result = call(*args, **kwargs)
        kernel = context.module.variables.get("params", {}).get("kernel")
        found[path] = context.module, _shape(kernel)
        return result

    with linen.intercept_methods(note):
        rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
        jax.eval_shape(lambda *given: model.init(rngs, *given, **arguments), *inputs)
    return found


def _layer(module: Any, shape: tuple[int, ...]) -> Layer:
    kind = next((name for each in type(module).__mro__ if (name := each.__name__) in _KINDS), "")
    if not kind:
        return Layer("norm" if any(each.__name__ in _NORMS for each in type(module).__mro__) else "")
    meaning, layout = _KINDS[kind]
    return Layer(meaning, layout(module, shape) if shape else None)


def _general(module: Any, shape: tuple[int, ...]) -> Layout:
    axes = module.axis if isinstance(module.axis, tuple | list) else (module.axis,)
    batch: Any = getattr(module, "batch_axis", None) or getattr(module, "batch_dims", ())
    return linear(shape, len(axes), len(batch))


def _einsum(module: Any, shape: tuple[int, ...]) -> Layout | None:
    equation = module.einsum_str
    if not equation or "..." in equation.partition("->")[0].rpartition(",")[2]:
        return None
    inputs, result = equation.replace(" ", "").split("->")
    given, kernel = inputs.split(",")
    outs = [letter for letter in result if letter in kernel and letter not in given]
    ins = [letter for letter in given if letter in kernel and letter not in result]
    batch = [letter for letter in kernel if letter in given and letter in result]
    axes = [tuple(map(kernel.index, letters)) for letters in (outs, ins, batch)]
    return contraction(shape, *axes) if sum(map(len, axes)) == len(shape) else None


_KINDS: dict[str, tuple[str, Callable[[Any, tuple[int, ...]], Layout | None]]] = {
    "Linear": ("linear", lambda _, shape: linear(shape, 1, len(shape) - 2)),  # several of them, if it is mapped over
    "Dense": ("linear", lambda _, shape: linear(shape, 1, len(shape) - 2)),
    "LinearGeneral": ("linear", _general),
    "DenseGeneral": ("linear", _general),
    "Einsum": ("linear", _einsum),
    "Conv": ("conv", lambda _, shape: convolution(shape)),
    "ConvTranspose": ("conv_transpose", lambda module, shape: transposed_convolution(shape, module.transpose_kernel)),
    "Embed": ("embedding", lambda _, __: None),
}


def _like(old: Any, new: Any) -> Any:
    if tuple(np.shape(new)) != tuple(old.shape):
        raise WeightsError(f"an array of shape {np.shape(new)} cannot take the place of one of {tuple(old.shape)}")
    array = jnp.asarray(new, old.dtype)
    return jax.device_put(array, old.sharding) if isinstance(old, jax.Array) and old.committed else array


def _with(model: Any, flat: Mapping[str, Any]) -> Any:
    """Return a tree with the arrays that `flat` has in place of its own."""
    if isinstance(model, Mapping) and "params" in model:
        kind: Any = type(model)
        return kind({name: _replaced(model[name], flat, ()) if name in _COLLECTIONS else model[name] for name in model})
    return _replaced(model, flat, ())


def _replaced(tree: Any, flat: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    if isinstance(tree, nnx.Variable | AxisMetadata) or not _children(tree):
        new = flat.get("/".join(path))
        if new is None:
            return tree
        value = _like(_value(tree), new)
        if isinstance(tree, nnx.Variable):
            return tree.replace(value)
        return tree.replace_boxed(value) if isinstance(tree, AxisMetadata) else value
    children = {name: _replaced(child, flat, (*path, name)) for name, child in _children(tree)}
    kind: Any = type(tree)
    if isinstance(tree, Mapping):
        return kind({name: children[str(name)] for name in tree})
    treedef = jax.tree.structure(tree, is_leaf=lambda node: node is not tree)
    return jax.tree.unflatten(treedef, children.values())
