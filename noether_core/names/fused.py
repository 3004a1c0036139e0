"""Put the three projections of an attention together where the other model has them as one linear layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from noether_core.names.units import Unit, Variant
from noether_core.names.words import meanings

_PROJECTIONS = ("query", "key", "value")


def put_together(units: Iterable[Unit], others: Iterable[Unit]) -> dict[Unit, None]:
    """Return layers with each query, key and value beside each other as one, if the other model needs such.

    It does if it has a layer of that size, and this one has none.
    """
    units = list(units)
    needed = Counter(unit.size for unit in others) - Counter(unit.size for unit in units)
    families: dict[tuple[str, ...], list[Unit]] = {}
    for unit in units:
        meant = meanings(unit.name)
        if meant and meant[-1] in _PROJECTIONS and unit.variants[0].kind in ("linear", ""):
            families.setdefault(meant[:-1], []).append(unit)
    fused = [one for family in families.values() if (one := _fused(family)) and needed[one.size]]
    taken = {part for one in fused for part in one.parts}
    return dict.fromkeys([*fused, *(unit for unit in units if unit not in taken)])


def _fused(family: list[Unit]) -> Unit | None:
    parts = {meanings(unit.name)[-1]: unit for unit in family}
    if len(family) != len(_PROJECTIONS) or parts.keys() != set(_PROJECTIONS):
        return None
    ordered = [parts[projection] for projection in _PROJECTIONS]
    readings = [unit.variants[0] for unit in ordered]
    shapes = [reading.shapes() for reading in readings]
    if any(len(each["weight"]) != 2 or each["weight"][1] != shapes[0]["weight"][1] for each in shapes):
        return None
    if any(each.keys() != shapes[0].keys() for each in shapes):
        return None
    roles = {role: tuple(piece for reading in readings for piece in reading.roles[role]) for role in shapes[0]}
    name = f"{ordered[0].name.rpartition('.')[0]}.qkv".lstrip(".")
    return Unit(
        name,
        (Variant("linear", roles),),
        {role: f"{name}.{role}" for role in roles},
        tuple(ordered),
        ordered[0].ordered,
    )
