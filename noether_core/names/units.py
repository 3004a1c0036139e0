"""Hold a layer's arrays by what they are to it, whichever framework it is of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from noether_core.names.layout import Layout, Shape
from noether_core.names.pieces import Piece, shape_of

FRAMEWORKS = ("PyTorch", "Flax")
"""What messages call two models that are matched, unless they are those of two runs."""

MAIN_ROLES = ("weight", "in_proj_weight", "q_proj_weight", "weight_ih")
"""What tells layers apart, if they have it; the rest are biases and statistics."""


@dataclass(frozen=True)
class Layer:
    """Say what is known of a module besides its arrays' shapes.

    Attributes:
        kind: `linear`, `conv`, `conv_transpose`, `embedding`, `norm`; `in_out` for a linear layer that keeps its weight as Flax
            does; `other` for a module of one's own; empty if unknown.
        kernel: the layout of its kernel, where the shape alone does not tell it; of one layer, if it is stacked.
        stack: the axis of its arrays along which several layers are stacked, as by `nn.scan` and `vmap`; None for one layer.
        ordered: whether its place among the modules means something.
    """

    kind: str
    kernel: Layout | None = None
    stack: int | None = None
    ordered: bool = True


@dataclass(frozen=True)
class Variant:
    """Hold one reading of a layer: of a kernel of four axes nothing but its shape may be known.

    Attributes:
        kind: as in `Layer`, or `attention`, `lstm`, `gru`, `rnn`, `array`; empty if it may be any.
        roles: for each array in PyTorch's terms (`weight`, `bias` …) the blocks that make it.
    """

    kind: str
    roles: Mapping[str, tuple[Piece, ...]]

    def shapes(self) -> dict[str, Shape]:
        """Return the shapes in PyTorch by role."""
        return {role: shape_of(pieces) for role, pieces in self.roles.items()}


@dataclass(frozen=True, eq=False)
class Unit:
    """Hold a layer.

    Attributes:
        name: its module's, dotted.
        variants: how it can be read, the likeliest first.
        names: for each role the array's canonical name.
        parts: the layers that it can be taken apart to.
        ordered: whether its place among the layers means something, if that of any does.
    """

    name: str
    variants: tuple[Variant, ...]
    names: Mapping[str, str]
    parts: tuple[Unit, ...] = ()
    ordered: bool = True

    @property
    def main_role(self) -> str:
        """The role by which layers are told apart."""
        roles = self.variants[0].roles
        return next((role for role in MAIN_ROLES if role in roles), min(roles))

    @property
    def module(self) -> str:
        """The module that its main array belongs to, dotted."""
        return self.names[self.main_role].rpartition(".")[0]

    @property
    def size(self) -> int:
        """How many elements its main array has, in any layout."""
        return math.prod(shape_of(self.variants[0].roles[self.main_role]))

    @property
    def paths(self) -> tuple[str, ...]:
        """The arrays that it is made of, each once."""
        pieces = (piece for blocks in self.variants[0].roles.values() for piece in blocks)
        return tuple(dict.fromkeys(piece.path for piece in pieces if piece.path))


def placed(unit: Unit, layers: Mapping[str, Layer]) -> Unit:
    """Return a layer, and those that it is made of, with what is known of its modules' places."""
    modules = {path.rpartition("/")[0] for path in unit.paths}
    if all(layers[module].ordered for module in modules if module in layers):
        return unit
    return replace(unit, ordered=False, parts=tuple(placed(part, layers) for part in unit.parts))


def as_stored(unit: Unit, paths: Mapping[str, str]) -> Unit:
    """Return a layer with the paths of its arrays replaced."""
    if all(paths.get(path, path) == path for path in unit.paths):
        return unit
    variants = []
    for one in unit.variants:
        roles = {
            role: tuple(replace(piece, path=paths.get(piece.path, piece.path)) for piece in pieces)
            for role, pieces in one.roles.items()
        }
        variants.append(Variant(one.kind, roles))
    return replace(unit, variants=tuple(variants), parts=tuple(as_stored(part, paths) for part in unit.parts))


def fitting(torch: Unit, flax: Unit, exact: bool = False) -> list[Variant]:
    """Return the readings of a Flax layer in which it can be that PyTorch layer: the kind and all shapes agree.

    Where `exact`, neither may have an array that the other lacks.
    """
    one = torch.variants[0]
    wanted = one.shapes()
    return [variant for variant in flax.variants if _fits(one.kind, wanted, variant, torch.main_role, exact)]


def _fits(kind: str, wanted: Mapping[str, Shape], variant: Variant, main: str, exact: bool) -> bool:
    if main not in variant.roles or not _is_kind(kind, variant.kind):
        return False
    shapes = variant.shapes()
    if exact and shapes.keys() != wanted.keys():
        return False
    return all(shapes[role] == shape for role, shape in wanted.items() if role in shapes)


def _is_kind(torch: str, flax: str) -> bool:
    if flax == "in_out":  # not of any module, or each kernel would fit two shapes
        return torch in ("in_out", "other")
    return torch in ("", "other", flax) or not flax
