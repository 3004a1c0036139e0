"""Take apart what Flax keeps of several layers in one array: `nn.scan` and `vmap` stack the arrays of layers that are alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from noether_core.names.layout import Layout, Shape
from noether_core.names.pieces import Piece
from noether_core.names.units import Layer, Unit, Variant


@dataclass(frozen=True)
class Stack:
    """Hold a module whose arrays are all stacked.

    Attributes:
        module: its path; empty for the model itself.
        count: how many layers there are.
        axes: by the path of each array, along which of its axes they are.
    """

    module: str
    count: int
    axes: Mapping[str, int]

    def layer(self, unit: Unit, number: int | None) -> Unit:
        """Return a layer, read as if it were alone, as the one of a number: rows of what is stacked; None: as all of it."""
        variants = []
        for one in unit.variants:
            roles = {role: tuple(self._piece(piece, number) for piece in pieces) for role, pieces in one.roles.items()}
            variants.append(Variant(one.kind, roles))
        names = {role: self._named(name, number) for role, name in unit.names.items()}
        parts = tuple(self.layer(part, number) for part in unit.parts if number is not None)
        return Unit(self._named(unit.name, number), tuple(variants), names, parts, unit.ordered)

    def _named(self, name: str, number: int | None) -> str:
        if number is None:
            return name
        module = self.module.replace("/", ".")
        words = [module, str(number), name[len(module) :].strip(".")]
        return ".".join(word for word in words if word)

    def _piece(self, piece: Piece, number: int | None) -> Piece:
        if not piece.path:
            return piece
        layout = stacked(piece.layout, self.count, self.axes[piece.path])
        if number is None:
            return replace(piece, layout=replace(layout, shape=(self.count, *piece.layout.shape)))
        rows = layout.shape[0] // self.count
        first, last = piece.rows or (0, rows)
        return replace(piece, layout=layout, rows=(number * rows + first, number * rows + last))


def stacked(layout: Layout, count: int, axis: int = 0) -> Layout:
    """Return the layout of arrays of one layout, stacked along an axis: its rows are those of each, one after the other.

    >>> from noether_core.names.layout import linear
    >>> stacked(linear((2, 3)), 5).stored, stacked(linear((2, 3)), 5).shape
    ((5, 2, 3), (15, 2))
    """
    stored = (*layout.stored[:axis], count, *layout.stored[axis:])
    split = (*layout.split[:axis], count, *layout.split[axis:])
    axes = (axis, *(each + (each >= axis) for each in layout.axes))
    backwards = tuple(each + (each >= axis) for each in layout.reversed_axes)
    first, *rest = layout.shape or (1,)
    return Layout(stored, split, axes, (count * first, *rest), backwards)


def find_stacks(shapes: Mapping[str, Shape], layers: Mapping[str, Layer]) -> list[Stack]:
    """Return what is stacked, each the outermost module of which all is.

    Args:
        shapes: of a model's arrays, by path.
        layers: what is known of its modules; an array of another is stacked too, if all around it is and it can be.
    """
    known = {path: layer.stack for path in shapes if (layer := layers.get(path.rpartition("/")[0]))}
    axes = {path: axis for path, axis in known.items() if axis is not None and axis < len(shapes[path])}
    found: list[Stack] = []
    done: set[str] = set()
    for module in sorted({around for path in axes for around in _around(path)}, key=lambda each: each.split("/")):
        below = {path: axes.get(path, 0) for path in shapes if not module or path.startswith(f"{module}/")}
        counts = {shapes[path][axis] if axis < len(shapes[path]) else 0 for path, axis in below.items()}
        is_known = all(path in axes or path not in known or not layers[path.rpartition("/")[0]].kind for path in below)
        if done.isdisjoint(below) and len(counts) == 1 and 0 not in counts and is_known:
            done.update(below)
            found.append(Stack(module, counts.pop(), below))
    return found


def _around(path: str) -> list[str]:
    words = path.split("/")
    return ["/".join(words[:count]) for count in range(len(words))]


def without_stacks(shapes: Mapping[str, Shape], found: Iterable[Stack]) -> dict[str, Shape]:
    """Return shapes, those that are stacked of one layer each."""
    axes = {path: axis for stack in found for path, axis in stack.axes.items()}
    return {
        path: shape[: axes[path]] + shape[axes[path] + 1 :] if path in axes else shape for path, shape in shapes.items()
    }


def with_stacks(units: Iterable[Unit], found: Iterable[Stack], wholes: Collection[int]) -> list[Unit]:
    """Return layers, of a stack each of its layers, one stack where the first of its layers was.

    Args:
        units: as read of `without_stacks`.
        found: the stacks.
        wholes: how many elements the arrays of the other model have: a stack of which it has all in one array stays whole.
    """
    of_path = {path: stack for stack in found for path in stack.axes}
    expanded: list[Unit] = []
    members: dict[int, list[Unit]] = {}
    for unit in units:
        stack = of_path.get(unit.paths[0]) if unit.paths else None
        if stack is None:
            expanded.append(unit)
        elif unit.size * stack.count in wholes and unit.size not in wholes:
            expanded.append(stack.layer(unit, None))
        else:
            if id(stack) not in members:
                expanded.append(unit)  # its place
            members.setdefault(id(stack), []).append(unit)
    places = {id(own[0]): (of_path[own[0].paths[0]], own) for own in members.values()}
    return [each for unit in expanded for each in _layers(unit, places)]


def _layers(unit: Unit, places: Mapping[int, tuple[Stack, list[Unit]]]) -> Iterable[Unit]:
    if id(unit) not in places:
        return [unit]
    stack, own = places[id(unit)]
    return [stack.layer(each, number) for number in range(stack.count) for each in own]
