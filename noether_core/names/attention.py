"""Read attention: PyTorch's `MultiheadAttention` stacks query, key and value in one array, Flax's has a layer for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from noether_core.names.layout import Shape, flat, linear, same
from noether_core.names.pieces import Piece
from noether_core.names.units import Unit, Variant

Leaves = Mapping[str, Shape]
_PROJECTIONS = ("query", "key", "value")
_TORCH_PROJECTIONS = ("q", "k", "v")


def read_attention(path: str, modules: Mapping[str, Leaves]) -> tuple[Unit, list[str]] | None:
    """Return the attention at a Flax module's path and the modules that it is made of, or None if there is none.

    Args:
        path: the module's, such as `block/attention`.
        modules: for each module that has arrays, their shapes by name.
    """
    children = [f"{path}/{name}" if path else name for name in (*_PROJECTIONS, "out")]
    ranks = [len(modules.get(child, {}).get("kernel", ())) for child in children]
    if ranks != [3, 3, 3, 3]:
        return None
    inputs = (1, 1, 1, 2)
    parts = tuple(_linear(child, modules[child], count) for child, count in zip(children, inputs, strict=True))
    prefix = "".join(f"{word}." for word in path.split("/")) if path else ""
    roles = _fused([part.variants[0].roles for part in parts])
    if roles is None:
        return None  # PyTorch's has no such: its parts are layers of their own
    unit = Unit(prefix.rstrip("."), (Variant("attention", roles),), {role: prefix + role for role in roles}, parts)
    return unit, children


def _linear(path: str, leaves: Leaves, inputs: int) -> Unit:
    roles = {"weight": (Piece(f"{path}/kernel", linear(leaves["kernel"], inputs)),)}
    if (bias := leaves.get("bias")) is not None:
        roles["bias"] = (Piece(f"{path}/bias", flat(bias)),)
    name = path.replace("/", ".")
    return Unit(name, (Variant("linear", roles),), {role: f"{name}.{role}" for role in roles})


def _fused(parts: Sequence[Mapping[str, tuple[Piece, ...]]]) -> dict[str, tuple[Piece, ...]] | None:
    query, key, value, _ = (part["weight"][0].shape for part in parts)
    if not query[0] == key[0] == value[0] == query[1]:
        return None
    roles: dict[str, tuple[Piece, ...]] = {}
    if query == key == value:
        roles["in_proj_weight"] = tuple(part["weight"][0] for part in parts[:3])
    else:
        for short, part in zip(_TORCH_PROJECTIONS, parts[:3], strict=True):
            roles[f"{short}_proj_weight"] = part["weight"]
    if all("bias" in part for part in parts[:3]):
        roles["in_proj_bias"] = tuple(part["bias"][0] for part in parts[:3])
    return roles | {f"out_proj.{role}": pieces for role, pieces in parts[3].items()}


def torch_attentions(shapes: Mapping[str, Shape]) -> dict[str, Unit]:
    """Return PyTorch's attentions by the name of each of their arrays."""
    found: dict[str, Unit] = {}
    for name in shapes:
        prefix, dot, role = name.rpartition(".")
        if role in ("in_proj_weight", "q_proj_weight") and f"{prefix}{dot}out_proj.weight" in shapes:
            unit = _torch_attention(prefix + dot, role == "in_proj_weight", shapes)
            found |= dict.fromkeys(unit.names.values(), unit)
    return found


def _torch_attention(prefix: str, is_fused: bool, shapes: Mapping[str, Shape]) -> Unit:
    weights = ("in_proj_weight",) if is_fused else tuple(f"{short}_proj_weight" for short in _TORCH_PROJECTIONS)
    wanted = (*weights, "in_proj_bias", "out_proj.weight", "out_proj.bias")
    names = {role: prefix + role for role in wanted if prefix + role in shapes}
    roles = {role: (Piece(name, same(shapes[name])),) for role, name in names.items()}
    rows = roles[weights[0]][0].shape[0] // (3 if is_fused else 1)
    parts = []
    for i, short in enumerate(_TORCH_PROJECTIONS):
        part = {"weight": _third(roles[weights[0]][0], i, rows) if is_fused else roles[weights[i]]}
        if "in_proj_bias" in roles:
            part["bias"] = _third(roles["in_proj_bias"][0], i, rows)
        parts.append(_part(f"{prefix}{short}_proj", part))
    parts.append(
        _part(f"{prefix}out_proj", {role[9:]: piece for role, piece in roles.items() if role.startswith("out_proj.")})
    )
    return Unit(prefix.rstrip("."), (Variant("attention", roles),), names, tuple(parts))


def _third(piece: Piece, i: int, rows: int) -> tuple[Piece, ...]:
    return (piece.between(i * rows, (i + 1) * rows),)


def _part(name: str, roles: dict[str, tuple[Piece, ...]]) -> Unit:
    return Unit(name, (Variant("linear", roles),), {role: f"{name}.{role}" for role in roles})
