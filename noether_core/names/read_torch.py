"""Read the layers of a PyTorch model from the names and shapes of its arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping

from noether_core.names.attention import torch_attentions
from noether_core.names.layout import Shape, same
from noether_core.names.pieces import whole
from noether_core.names.recurrent import torch_cells
from noether_core.names.units import Layer, Unit, Variant

ROLES = ("weight", "weight_g", "bias", "running_mean", "running_var")
_PARAMETRIZED = re.compile(r"(?:(?P<prefix>.*)\.)?parametrizations\.weight\.original(?P<number>[01]?)")
IGNORED = ("num_batches_tracked",)
"""What PyTorch counts and Flax does not."""


def read_torch(shapes: Mapping[str, Shape], layers: Mapping[str, Layer]) -> list[Unit]:
    """Return a model's layers, in the order of their first arrays.

    Args:
        shapes: of its parameters and buffers, by name.
        layers: what is known of its modules, by name.

    >>> [unit.name for unit in read_torch({"a.weight": (3, 2), "a.bias": (3,), "scale": ()}, {})]
    ['a', 'scale']
    """
    composite = torch_cells(shapes) | torch_attentions(shapes)
    units: dict[str, Unit] = {}
    grouped: dict[str, dict[str, str]] = {}
    for name in shapes:
        prefix, role = _role(name, shapes, layers)
        if role in IGNORED:
            continue
        if name in composite:
            units[f"composite {composite[name].name}"] = composite[name]
        elif role in ROLES:
            grouped.setdefault(prefix, {})[role] = name
            units[f"module {prefix}"] = _module(prefix, grouped[prefix], shapes, layers)
        else:
            units[f"array {name}"] = Unit(name, (Variant("array", {"": whole(name, same(shapes[name]))}),), {"": name})
    return list(units.values())


def _role(name: str, shapes: Mapping[str, Shape], layers: Mapping[str, Layer]) -> tuple[str, str]:
    """Return the module that an array belongs to, and what it is to that.

    What a parametrization is of stands for it: `original` and `weight_orig`; of a weight norm `original1` and `weight_v` for
    the weight's direction, and `original0` and `weight_g` for its size.
    """
    prefix, dot, leaf = name.rpartition(".")
    found = _PARAMETRIZED.fullmatch(name)
    if found is not None:
        prefix, leaf = found["prefix"] or "", {"": "orig", "0": "g", "1": "v"}[found["number"]]
        size, direction = (name.rpartition("original")[0] + f"original{number}" for number in (0, 1))
    elif leaf in ("weight_g", "weight_v", "weight_orig"):
        leaf = leaf.removeprefix("weight_")
        size, direction = f"{prefix}{dot}weight_g", f"{prefix}{dot}weight_v"
    else:
        return prefix, leaf
    if leaf == "orig":
        return prefix, "weight"
    shape = shapes.get(direction, ())
    is_norm = shapes.get(size) == (*shape[:1], *(1 for _ in shape[1:])) and shape
    is_known = not (prefix in layers and layers[prefix].kind == "conv_transpose")  # PyTorch's norm is over other axes
    if is_norm and is_known:
        return prefix, {"g": "weight_g", "v": "weight"}[leaf]
    return prefix, "weight" if leaf == "v" and is_norm else name


def _module(prefix: str, names: Mapping[str, str], shapes: Mapping[str, Shape], layers: Mapping[str, Layer]) -> Unit:
    roles = {role: whole(name, same(shapes[name])) for role, name in names.items()}
    kind = layers[prefix].kind if prefix in layers else _guess(names, shapes)
    return Unit(prefix, (Variant(kind, roles),), dict(names))


def _guess(names: Mapping[str, str], shapes: Mapping[str, Shape]) -> str:
    """Return what a module must be by its arrays; empty where several kinds have such."""
    return "norm" if "running_mean" in names or "running_var" in names else ""
