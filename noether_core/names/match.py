"""Match the names of two models, or find the canonical names of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from noether_core.names.fused import put_together
from noether_core.names.layout import Shape
from noether_core.names.mapping import Rule, read_mapping
from noether_core.names.matching import Matching
from noether_core.names.pairing import Pairing
from noether_core.names.pieces import Entry, Piece, is_whole, overlaps, shape_of
from noether_core.names.read_flax import is_as_made, read_flax
from noether_core.names.read_torch import IGNORED, read_torch
from noether_core.names.rules import Found, apply
from noether_core.names.units import FRAMEWORKS, Layer, Unit
from noether_core.names.values import Values
from noether_core.silence import SILENT

_NO_LAYERS: Mapping[str, Layer] = MappingProxyType({})
_COMPOSITE = ("attention", "lstm", "gru", "rnn")


def match(
    torch: Mapping[str, Any],
    flax: Mapping[str, Any],
    mapping: str | Path | Mapping[str, Any] | None = None,
    *,
    torch_layers: Mapping[str, Layer] = _NO_LAYERS,
    flax_layers: Mapping[str, Layer] = _NO_LAYERS,
) -> Matching:
    """Match the arrays of a PyTorch model with those of a Flax model.

    In this order: by the mapping; by equal names; by equal multisets of values, where values are given; by names that mean
    the same; by shape, where only one layer has it; and by order among layers of one shape, where the order is known: from
    `flax_layers`; because names only count, as `Dense_0` and `Dense_1` do; or because `flax` is as the model made it, which
    any function of JAX on trees would have sorted.

    Args:
        torch: arrays or shapes by name, as of `state_dict()`.
        flax: arrays or shapes by path, joined by `/`.
        mapping: a file or dict for what is left (`read_mapping`).
        torch_layers: what is known of PyTorch's modules, by name (`noether_torch.names.layers`).
        flax_layers: what is known of Flax's modules, by path (`noether_jax.names.layers`).

    Returns:
        The matching, which may be incomplete: see its `check`.

    Raises:
        ConfigFileError: for a mapping that cannot be read, or says what cannot be.

    >>> found = match({"fc.weight": (3, 2), "fc.bias": (3,)}, {"Dense_0/kernel": (2, 3), "Dense_0/bias": (3,)})
    >>> print(found.explain())
    fc.weight (3, 2) ← Dense_0/kernel (by shape)
    fc.bias (3,) ← Dense_0/bias (by shape)
    """
    shapes, flax_shapes = _shapes(torch), _shapes(flax)
    wholes = {prod(shape) for shape in shapes.values()}
    units = read_torch(shapes, torch_layers), read_flax(flax_shapes, flax_layers, wholes)
    ordered = True, bool(flax_layers) or is_as_made(flax_shapes)
    return _matched(shapes, flax_shapes, units, Values(torch, flax), read_mapping(mapping), ordered, FRAMEWORKS)


def align(
    torch: Mapping[str, Any],
    other: Mapping[str, Any],
    mapping: str | Path | Mapping[str, Any] | None = None,
    *,
    sides: tuple[str, str] = ("A", "B"),
) -> Matching:
    """Match two sets of canonical names, such as those of two runs; the second's take the place of Flax's paths.

    Args:
        torch: arrays or shapes by name.
        other: likewise.
        mapping: see `match`.
        sides: what messages call the two.

    Raises:
        ConfigFileError: see `match`.

    >>> print(align({"features.0.weight": (8, 3, 5, 5)}, {"Conv_0.weight": (8, 3, 5, 5)}).explain())
    features.0.weight (8, 3, 5, 5) ← Conv_0.weight (by shape)
    """
    shapes, other_shapes = _shapes(torch), _shapes(other)
    units = read_torch(shapes, {}), read_torch(other_shapes, {})
    ordered = is_as_made(shapes), is_as_made(other_shapes)
    return _matched(shapes, other_shapes, units, Values(torch, other), read_mapping(mapping, sides), ordered, sides)


def canonical_names(flax: Mapping[str, Any], layers: Mapping[str, Layer] = _NO_LAYERS) -> Matching:
    """Return the canonical names of a Flax model's arrays where no PyTorch model is at hand.

    A name is the path, dotted, with PyTorch's word for the array. Layouts follow from the modules, where they are known, and
    from names and shapes otherwise: a kernel of two axes is a linear layer's, one of three to five a convolution's.

    Args:
        flax: arrays or shapes by path.
        layers: what is known of the modules, by path.

    >>> [entry.name for entry in canonical_names({"encoder/0/kernel": (2, 3), "norm/scale": (3,)}).entries]
    ['encoder.0.weight', 'norm.weight']
    """
    units = read_flax(_shapes(flax), layers)
    entries = [
        Entry(unit.names[role], pieces, "name") for unit in units for role, pieces in unit.variants[0].roles.items()
    ]
    return Matching(tuple(entries), MappingProxyType({unit.module: unit.module for unit in units}))


def _shapes(arrays: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(getattr(array, "shape", array)) for name, array in arrays.items()}


@SILENT
def _matched(
    torch: Mapping[str, Shape],
    flax: Mapping[str, Shape],
    units: tuple[Sequence[Unit], Sequence[Unit]],
    values: Values,
    rules: Mapping[str, Rule],
    ordered: tuple[bool, bool],
    sides: tuple[str, str],
) -> Matching:
    pairing = Pairing(*units, values.mark, ordered, sides)
    found: Found = defaultdict(list)
    for name, rule in rules.items():
        apply(name, rule, pairing, found, (torch, flax))
    pairing.run(lambda unit: unit.variants[0].kind in _COMPOSITE)
    pairing.take_apart()
    pairing.torch, pairing.flax = (
        put_together(pairing.torch, pairing.flax),
        put_together(pairing.flax, pairing.torch),
    )
    pairing.run()
    pairing.take_apart()
    pairing.run()
    for pair in pairing.pairs:
        reading = values.likeliest(pair)
        for role, pieces in pair.torch.variants[0].roles.items():
            if role in reading.roles:
                for name, rows, piece in overlaps(pieces, reading.roles[role]):
                    found[name].append((rows[0] if rows else 0, piece, pair.how))
    return _assembled(torch, flax, found, pairing)


def _assembled(torch: Mapping[str, Shape], flax: Mapping[str, Shape], found: Found, pairing: Pairing) -> Matching:
    entries = []
    for name in torch:
        blocks = sorted(found.get(name, ()), key=lambda block: block[0])
        pieces = tuple(piece for _, piece, _ in blocks)
        if pieces and shape_of(pieces) == torch[name]:
            entries.append(Entry(name, pieces, blocks[0][2]))
    named = {entry.name for entry in entries}
    used: defaultdict[str, list[Piece]] = defaultdict(list)
    for piece in (piece for entry in entries for piece in entry.pieces):
        used[piece.path].append(piece)
    left = {
        name: shape for name, shape in torch.items() if name not in named and name.rpartition(".")[2] not in IGNORED
    }
    return Matching(
        tuple(entries),
        MappingProxyType({pair.flax.module: pair.torch.module for pair in pairing.pairs}),
        MappingProxyType(left),
        MappingProxyType({path: shape for path, shape in flax.items() if not is_whole(used[path])}),
        pairing.sides,
    )
