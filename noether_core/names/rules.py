"""Apply the rules of a mapping file: to a module, to the modules below one, or to an array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from noether_core.errors import ConfigFileError, suggest
from noether_core.names.layout import Layout, Shape, linear, same
from noether_core.names.mapping import Rule
from noether_core.names.pairing import Pairing
from noether_core.names.pieces import Piece, shape_of, whole
from noether_core.names.units import Unit, Variant

Found = dict[str, list[tuple[int, Piece, str]]]
"""For each of PyTorch's names: from which row on, what it is in Flax, and how that was found."""

Shapes = tuple[Mapping[str, Shape], Mapping[str, Shape]]


def apply(name: str, rule: Rule, pairing: Pairing, found: Found, shapes: Shapes) -> None:
    """Pair what a rule names; `pairing` and `found` get it.

    Raises:
        ConfigFileError: for a name or path that no array or module has, or two that do not fit.
    """
    torch, flax = shapes
    if name in torch:
        _array(name, rule, pairing, found, shapes)
        return
    path = rule.paths[0]
    ours, theirs = _below(name, pairing.torch), _below(path.replace("/", "."), pairing.flax)
    if not ours:
        raise ConfigFileError(
            f"mapping: {pairing.sides[0]} has no {name!r}.{suggest(name, [*torch, *_modules(pairing.torch)])}"
        )
    if not theirs or len(rule.paths) > 1 or path in flax:
        raise ConfigFileError(
            f"mapping: {name!r} is a module, {', '.join(rule.paths)} is not.{suggest(path, _modules(pairing.flax))}"
        )
    if len(ours) == len(theirs) == 1 and pairing.add(ours[0], theirs[0], "mapping"):
        return
    if len(ours) == len(theirs) == 1:
        shapes_there = ours[0].variants[0].shapes(), theirs[0].variants[0].shapes()
        raise ConfigFileError(_unlike(name, path, *shapes_there, pairing.sides[0]))
    chosen = {*ours, *theirs}
    pairing.run(lambda unit: unit in chosen)


def _below(module: str, units: Mapping[Unit, None]) -> list[Unit]:
    return [unit for unit in units if unit.name == module or f"{unit.name}.".startswith(f"{module}.")]


def _modules(units: Mapping[Unit, None]) -> list[str]:
    return [unit.name for unit in units]


def _unlike(name: str, path: str, ours: object, theirs: object, side: str) -> str:
    return (
        f"mapping: {name!r} has {ours}, and {path!r}, laid out as {side}'s, {theirs}: give another path, or its layout"
    )


def _array(name: str, rule: Rule, pairing: Pairing, found: Found, shapes: Shapes) -> None:
    torch, flax = shapes
    for path in rule.paths:
        if path not in flax:
            raise ConfigFileError(
                f"mapping: {name!r} is to be {path!r}, which {pairing.sides[1]} does not have.{suggest(path, flax)}"
            )
    ours, theirs = _owner(name, pairing.torch), _owner(rule.paths[0], pairing.flax)
    if ours and theirs and len(rule.paths) == 1 and _pair_owners(name, rule, (ours, theirs), pairing, flax):
        return
    is_kernel = name.rpartition(".")[2] == "weight" and (not ours or ours.variants[0].kind in ("", "linear"))
    pieces = [_piece(path, rule, torch[name], pairing, flax, is_kernel) for path in rule.paths]
    if shape_of(pieces) != torch[name]:
        raise ConfigFileError(_unlike(name, ", ".join(rule.paths), torch[name], shape_of(pieces), pairing.sides[0]))
    start = 0
    for piece in pieces:
        found.setdefault(name, []).append((start, piece, "mapping"))
        start += piece.shape[0] if len(pieces) > 1 else 0
    _take(name, pairing.torch)
    for path in rule.paths:
        _take(path, pairing.flax)


def _owner(path: str, units: Mapping[Unit, None]) -> Unit | None:
    return next((unit for unit in units if path in unit.paths), None)


def _pair_owners(name: str, rule: Rule, both: tuple[Unit, Unit], pairing: Pairing, flax: Mapping[str, Shape]) -> bool:
    """Pair the layers of two arrays that are the same to both, with the layout that the rule gives."""
    ours, theirs = both
    path = rule.paths[0]
    role = next(role for role, pieces in ours.variants[0].roles.items() if pieces[0].path == name)
    if [piece.path for piece in theirs.variants[0].roles.get(role, ())] != [path]:
        return False
    if layout := rule.layout(flax[path]):
        readings = [
            replace(one, kind="", roles={**one.roles, role: whole(path, layout)}) for one in theirs.variants[:1]
        ]
        theirs = _instead(theirs, readings, pairing.flax)
    return pairing.add(ours, theirs, "mapping")


def _instead(unit: Unit, readings: Sequence[Variant], units: dict[Unit, None]) -> Unit:
    """Replace a layer's readings."""
    other = replace(unit, variants=tuple(readings))
    del units[unit]
    units[other] = None
    return other


def _piece(path: str, rule: Rule, wanted: Shape, pairing: Pairing, flax: Mapping[str, Shape], is_kernel: bool) -> Piece:
    layouts: list[Layout | None] = [rule.layout(flax[path])]
    if owner := _owner(path, pairing.flax):
        blocks = [
            (variant.kind, piece) for variant in owner.variants for pieces in variant.roles.values() for piece in pieces
        ]
        if is_kernel and len(flax[path]) == 2 and all(kind == "array" for kind, _ in blocks):
            layouts.append(linear(flax[path]))  # x @ w, as JAX is written
        layouts += [piece.layout for _, piece in blocks if piece.path == path]
    choices = [layout for layout in [*layouts, same(flax[path])] if layout is not None]
    fitting = [
        each for each in choices if each.shape[1:] == wanted[1:] and (len(rule.paths) > 1 or each.shape == wanted)
    ]
    return Piece(path, (fitting or choices)[0])


def _take(path: str, units: dict[Unit, None]) -> None:
    """Take an array out of its layer, which keeps the others."""
    unit = _owner(path, units)
    if unit is None:
        return
    readings = []
    for one in unit.variants:
        roles = {role: pieces for role, pieces in one.roles.items() if path not in [piece.path for piece in pieces]}
        readings.append(replace(one, roles=roles))
    if readings[0].roles:
        _instead(unit, readings, units)
    else:
        del units[unit]
