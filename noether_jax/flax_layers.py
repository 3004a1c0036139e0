"""Say what is known of a Flax model's modules: which layers they are, and how these lay out their kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax

from noether_core.dependencies import needing
from noether_core.names import Layer, Layout
from noether_core.names.layout import contraction, convolution, linear, transposed_convolution
from noether_jax.flax_arrays import Shape, modules_of, shape_of, weights

with needing("noether_jax.names", "flax"):
    from flax import linen, nnx

_NORMS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
_LEAVES = ("kernel", "embedding", "scale", "bias", "mean", "negative_slope")
_RANKS: dict[str, Callable[[Any], int]] = {  # of the first of these that an NNX layer has
    "Linear": lambda _: 2,
    "Embed": lambda _: 2,
    "LinearGeneral": lambda module: len((*module.in_features, *module.out_features, *module.batch_axis)),
    "Conv": lambda module: len(module.kernel_size) + 2,
    "ConvTranspose": lambda module: len(module.kernel_size) + 2,
    "Einsum": lambda module: len(module.kernel_shape),
    "PReLU": lambda _: 0,
    **dict.fromkeys(_NORMS, lambda _: 1),
}


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
        modules = dict(modules_of(model, (), set()))
        is_sorted = {path: _is_sorted(module) for path, module in modules.items()}
        unknown = any(is_sorted.values())
        return {
            path: replace(_layer(module, *_stack_of(module)), ordered=not (unknown if each is None else each))
            for (path, module), each in zip(modules.items(), is_sorted.values(), strict=True)
        }
    return {
        path: _layer(module, shapes.get("kernel", ()), stack)
        for path, (module, shapes, stack) in _called(model, inputs, arguments).items()
    }


def _called(model: linen.Module, inputs: Any, arguments: Any) -> dict[str, tuple[Any, Mapping[str, Shape], int | None]]:
    """Return a Linen model's modules in the order in which they are first called.

    Of each the shapes of its parameters as it is called, and the axis along which those of several are kept, as by `nn.scan`.
    """
    found: dict[str, tuple[Any, Mapping[str, Shape]]] = {}

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        path = "/".join(context.module.path)
        found.setdefault(path, (context.module, {}))
        result = call(*args, **kwargs)
        params = context.module.variables.get("params", {})
        found[path] = (
            context.module,
            {name: shape_of(own) for name, own in params.items() if not isinstance(own, Mapping)},
        )
        return result

    with linen.intercept_methods(note):
        rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
        variables = jax.eval_shape(lambda *given: model.init(rngs, *given, **arguments), *inputs)
    kept = {path: tuple(array.shape) for path, array in weights(variables).items()}
    return {
        path: (module, shapes, _axis({kept.get(f"{path}/{name}".lstrip("/")): shapes[name] for name in shapes}))
        for path, (module, shapes) in found.items()
    }


def _axis(pairs: Mapping[Shape | None, Shape]) -> int | None:
    """Return the axis, if there is one, that each shape has more than another; the first, if several may be it."""
    axes = [
        {axis for axis in range(len(kept)) if kept[:axis] + kept[axis + 1 :] == one}
        for kept, one in pairs.items()
        if kept
    ]
    return min(set.intersection(*axes), default=None) if axes else None


def _stack_of(module: nnx.Module) -> tuple[Shape, int | None]:
    """Return the shape of an NNX layer's kernel, if it has one, and the axis along which `vmap` has stacked several."""
    kernel = shape_of(getattr(module, "kernel", None))
    name, rank = next(((name, rank(module)) for name, rank in _RANKS.items() if _is_kind(module, name)), ("", -1))
    leaf = next(
        (getattr(module, each) for each in _LEAVES if isinstance(getattr(module, each, None), nnx.Variable)), None
    )
    if name and len(shape_of(leaf)) == rank + 1:
        return kernel[1:], 0
    return kernel, None


def _is_sorted(module: nnx.Module) -> bool | None:
    """Tell whether a module's attributes are sorted, as of those that JAX made, as in `nnx.vmap`; None if nothing tells."""
    names = list(vars(module))
    main = next((name for name in ("kernel", "scale") if name in names), None)
    return names.index("bias") < names.index(main) if main and "bias" in names else None


def _is_kind(module: Any, name: str) -> bool:
    return any(each.__name__ == name for each in type(module).__mro__)


def _layer(module: Any, shape: Shape, stack: int | None) -> Layer:
    kind = next((name for each in type(module).__mro__ if (name := each.__name__) in _KINDS), "")
    if not kind:
        own = (
            "other" if isinstance(module, linen.Module) else ""
        )  # of NNX it is not known whether its arrays are stacked
        return Layer("norm" if any(_is_kind(module, name) for name in _NORMS) else own, stack=stack)
    meaning, layout = _KINDS[kind]
    return Layer(meaning, layout(module, shape) if shape else None, stack)


def _general(module: Any, shape: Shape) -> Layout:
    axes = module.axis if isinstance(module.axis, tuple | list) else (module.axis,)
    batch: Any = getattr(module, "batch_axis", None) or getattr(module, "batch_dims", ())
    return linear(shape, len(axes), len(batch))


def _einsum(module: Any, shape: Shape) -> Layout | None:
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


_KINDS: dict[str, tuple[str, Callable[[Any, Shape], Layout | None]]] = {
    "Linear": ("linear", lambda _, shape: linear(shape, 1, len(shape) - 2)),  # several of them, if it is mapped over
    "Dense": ("linear", lambda _, shape: linear(shape, 1, len(shape) - 2)),
    "LinearGeneral": ("linear", _general),
    "DenseGeneral": ("linear", _general),
    "Einsum": ("linear", _einsum),
    "Conv": ("conv", lambda _, shape: convolution(shape)),
    "ConvTranspose": ("conv_transpose", lambda module, shape: transposed_convolution(shape, module.transpose_kernel)),
    "Embed": ("embedding", lambda _, __: None),
}
