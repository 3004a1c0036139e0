"""Read the layers of a Flax model from the paths and shapes of its arrays, and from what is known of its modules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from noether_core.names.attention import read_attention
from noether_core.names.layout import (
    Layout,
    Shape,
    channels_first,
    convolution,
    flat,
    linear,
    same,
    transposed_convolution,
)
from noether_core.names.pieces import whole
from noether_core.names.recurrent import read_cell
from noether_core.names.stacked import find_stacks, with_stacks, without_stacks
from noether_core.names.units import Layer, Unit, Variant, as_stored, placed

ROLES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "negative_slope": "weight",
    "weight": "weight",
    "bias": "bias",
    "kernel_scale": "weight_g",
    "mean": "running_mean",
    "var": "running_var",
}
"""What PyTorch calls what a Flax layer calls by these names."""

_ALSO = {"w": "kernel", "W": "kernel", "b": "bias", "offset": "bias", "embeddings": "embedding"}
"""What Haiku, and who writes JAX without a library, calls what Flax has; its layout is the same."""

_LOW_RANK = ("lora_a", "lora_b")
_STATISTICS = ("mean", "var")
_WEIGHTS = ("kernel", "scale", "embedding", "negative_slope", "weight")
_TRANSPOSED = re.compile(r"transpose|deconv|up_?conv|conv_?t(_|\d|$)", re.IGNORECASE)


def read_flax(shapes: Mapping[str, Shape], layers: Mapping[str, Layer], wholes: Collection[int] = ()) -> list[Unit]:
    """Return a model's layers, in the order of their first arrays.

    Args:
        shapes: of its parameters and batch statistics, by path, joined by `/`, without the name of a collection.
        layers: what is known of its modules, by path; if they are known, in their order.
        wholes: how many elements the arrays of the other model have: what it has as one array, though it is of several layers
            that are stacked, is not taken apart.

    >>> [unit.names for unit in read_flax({"Dense_0/kernel": (2, 3), "Dense_0/bias": (3,)}, {})]
    [{'weight': 'Dense_0.weight', 'bias': 'Dense_0.bias'}]
    """
    found = find_stacks(shapes, layers)
    units = [placed(unit, layers) for unit in _read(without_stacks(shapes, found), layers)]
    return with_stacks(units, found, wholes)


def _read(shapes: Mapping[str, Shape], layers: Mapping[str, Layer]) -> list[Unit]:
    modules: dict[str, dict[str, Shape]] = {}
    stored: dict[str, str] = {}
    for path, shape in shapes.items():
        module, leaf = _home(path, shapes)
        stored[f"{module}/{leaf}" if module else leaf] = path
        modules.setdefault(module, {})[leaf] = shape
    order = {module: i for i, module in enumerate(layers)}
    modules = {
        module: dict(sorted(leaves.items(), key=_torch_order)) if module in order else leaves
        for module, leaves in sorted(modules.items(), key=lambda item: order.get(item[0], len(order)))
    }
    composite = dict(_composites(modules))
    units: dict[str, Unit] = {}
    for module, leaves in modules.items():
        if module in composite:
            units[f"composite {composite[module].name}"] = composite[module]
        else:
            units |= {f"{unit.name} {i}": unit for i, unit in enumerate(_plain(module, leaves, layers.get(module)))}
    return [as_stored(unit, stored) for unit in units.values()]


def _home(path: str, shapes: Mapping[str, Shape]) -> tuple[str, str]:
    """Return the module that an array belongs to, and what it is called there.

    Linen's `WeightNorm` keeps the scale of the kernel of a `Dense_0` beside it as `WeightNorm_0/Dense_0/kernel/scale`.
    """
    module, _, leaf = path.rpartition("/")
    if leaf == "scale" and module.endswith("/kernel"):
        words = module.split("/")
        for at in range(len(words) - 1):
            kernel = "/".join([*words[:at], *words[at + 1 :]])
            if kernel in shapes and shapes[path] == shapes[kernel][-1:]:
                return kernel.rpartition("/")[0], "kernel_scale"
    return module, _ALSO.get(leaf, leaf)


def _torch_order(leaf: tuple[str, Shape]) -> int:
    return [*ROLES, leaf[0]].index(leaf[0])


def is_as_made(paths: Iterable[str]) -> bool:
    """Tell whether paths, or names, are in the order in which a model made its arrays: JAX sorts trees; a bias is made last.

    >>> is_as_made(["b/kernel", "b/bias", "a/kernel"]), is_as_made(["a/kernel", "b/bias", "b/kernel"])
    (True, False)
    """
    places = {path: place for place, path in enumerate(paths)}
    biases = ((path, place) for path, place in places.items() if re.split("[/.]", path)[-1] in ("bias", "b"))
    names = (*_WEIGHTS, "w", "W")
    return any(
        places.get(path.removesuffix("bias").removesuffix("b") + name, place) < place
        for path, place in biases
        for name in names
    )


def _composites(modules: Mapping[str, Mapping[str, Shape]]) -> Iterator[tuple[str, Unit]]:
    for parent in dict.fromkeys(module.rpartition("/")[0] for module in modules):
        for read in (read_cell, read_attention):
            if found := read(parent, modules):
                yield from ((child, found[0]) for child in found[1])
                break


def _plain(module: str, leaves: Mapping[str, Shape], layer: Layer | None) -> Iterator[Unit]:
    """Yield a module's layer, and each array that belongs to none."""
    known = {leaf: shape for leaf, shape in leaves.items() if leaf in ROLES}
    if sum(leaf in known for leaf in _WEIGHTS) > 1 or (known.keys() <= {*_STATISTICS} and len(known) == 1):
        known = {}  # no layer of Flax's, whatever it is
    name = module.replace("/", ".")
    dot = f"{name}." if name else ""
    if known:
        names = {ROLES[leaf]: dot + ROLES[leaf] for leaf in known}
        yield Unit(name, tuple(_variants(module, known, layer)), names)
    for leaf in (leaf for leaf in leaves if leaf not in known):
        path = f"{module}/{leaf}" if module else leaf
        if leaf in _LOW_RANK and len(leaves[leaf]) == 2:
            weight = whole(path, linear(leaves[leaf]))
            readings = Variant("linear", {"weight": weight}), Variant("array", {"": weight})
            yield Unit(dot + leaf, readings, {"weight": f"{dot}{leaf}.weight"})
            continue
        yield Unit(dot + leaf, (Variant("array", {"": whole(path, same(leaves[leaf]))}),), {"": dot + leaf})


def _variants(module: str, leaves: Mapping[str, Shape], layer: Layer | None) -> Iterator[Variant]:
    def at(leaf: str) -> str:
        return f"{module}/{leaf}" if module else leaf

    for kind, layout in _weights(module, leaves, layer):
        roles = {}
        for leaf, shape in leaves.items():
            if leaf in _WEIGHTS:
                roles[ROLES[leaf]] = whole(at(leaf), layout)
            elif leaf == "bias" and "kernel" in leaves:
                batch = len(layout.shape) - 2 if kind == "linear" else 0
                roles["bias"] = whole(at(leaf), flat(shape, batch))
            elif leaf == "kernel_scale":
                roles["weight_g"] = whole(at(leaf), same(shape, (*shape, *(1 for _ in layout.shape[1:]))))
            else:
                is_moved = leaf == "bias" and layout.stored == shape and len(shape) > 1
                roles[ROLES[leaf]] = whole(at(leaf), layout if is_moved else same(shape))
        yield Variant(kind, roles)


def _weights(module: str, leaves: Mapping[str, Shape], layer: Layer | None) -> Iterator[tuple[str, Layout]]:
    """Yield the kinds that a layer can be, with the layout of its weight."""
    if "kernel" in leaves:
        yield from [(layer.kind, layer.kernel)] if layer and layer.kernel else _kernels(module, leaves)
    elif "embedding" in leaves:
        yield "embedding", same(leaves["embedding"])
    elif "negative_slope" in leaves:
        yield "", same(leaves["negative_slope"], leaves["negative_slope"] or (1,))
    elif "weight" in leaves:  # a module of one's own, or of Equinox, which lays out as PyTorch does
        yield "", same(leaves["weight"])
        if len(leaves["weight"]) > 1:
            yield from _likely(module, leaves["weight"], leaves.get("bias"))
    else:
        shape = next((leaves[leaf] for leaf in ("scale", "bias", "mean") if leaf in leaves), ())
        kind = "norm" if {"scale", *_STATISTICS} & leaves.keys() else ""
        yield kind, same(shape)
        if len(shape) > 1:
            yield kind, channels_first(shape)


def _kernels(module: str, leaves: Mapping[str, Shape]) -> Iterator[tuple[str, Layout]]:
    """Yield what a kernel of this shape can be; what its path and its bias make likely first."""
    shape, bias = leaves["kernel"], leaves.get("bias")
    yield from _likely(module, shape, bias)
    yield "in_out", same(shape)


def _likely(module: str, shape: Shape, bias: Shape | None) -> Iterator[tuple[str, Layout]]:
    dense = [("linear", linear(shape, inputs)) for inputs in range(1, len(shape))]
    if len(shape) < 3:
        yield from dense
        return
    if bias is not None and len(bias) > 1:
        outs = len(bias) if bias == shape[-len(bias) :] else 1
        batch = 0 if outs == len(bias) else len(bias) - 1
        yield "linear", linear(shape, len(shape) - outs - batch, batch)
        return
    transposed = [("conv_transpose", transposed_convolution(shape, swapped)) for swapped in (False, True)]
    convolutions = [("conv", convolution(shape)), *transposed]
    yield from [*transposed, convolutions[0]] if _TRANSPOSED.search(module) else convolutions
    if module.rpartition("/")[2] in ("query", "key", "value"):
        yield dense[0]
    yield from dense
