"""Read the cells of RNNs: PyTorch stacks the gates in one array and has two biases; Flax has one, maybe of an array a gate.

The gates' order is PyTorch's: i, f, g, o of an LSTM, r, z, n of a GRU (`torch.nn.LSTM`, `torch.nn.GRU`), which is also that of
the fused arrays of `flax.nnx`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from noether_core.names.layout import Shape, linear, same
from noether_core.names.pieces import Piece, absent
from noether_core.names.units import Unit, Variant

Leaves = Mapping[str, Shape]
KINDS = {4: "lstm", 3: "gru", 1: "rnn"}
_GATES = {"lstm": "ifgo", "gru": "rzn", "rnn": " "}
_TORCH = re.compile(r"(?P<prefix>.*\.)?(?P<role>(?:weight|bias)_(?:ih|hh))(?P<suffix>(?:_l\d+(?:_reverse)?)?)")


@dataclass(frozen=True)
class _Cell:
    """Hold a Flax cell: its kind, and per gate its input's and its state's linear layer, each once if they are fused."""

    kind: str
    inputs: tuple[str, ...]
    states: tuple[str, ...]


def read_cell(path: str, modules: Mapping[str, Leaves]) -> tuple[Unit, list[str]] | None:
    """Return the cell at a module's path and the modules that it is made of, or None if there is none.

    Args:
        path: the module's, such as `rnn/cell`.
        modules: for each module that has arrays, their shapes by name.
    """
    cell = _cell(path, modules)
    if cell is None:
        return None
    roles = {
        f"weight_{short}": tuple(Piece(f"{child}/kernel", linear(modules[child]["kernel"])) for child in children)
        for short, children in (("ih", cell.inputs), ("hh", cell.states))
    }
    biases = _biases(cell, modules)
    prefix, suffix = _named(path)
    names = {role: f"{prefix}{role}{suffix}" for role in (*roles, *biases)}
    return Unit((prefix + suffix[1:]).strip("."), (Variant(cell.kind, roles | biases),), names), [
        *cell.inputs,
        *cell.states,
    ]


def _cell(path: str, modules: Mapping[str, Leaves]) -> _Cell | None:
    def under(*names: str) -> str:
        found = [f"{path}/{name}" if path else name for name in names]
        return next((child for child in found if "kernel" in modules.get(child, ())), "")

    for kind, gates in _GATES.items():
        inputs = tuple(under(f"i{gate}".strip(), f"i{gate}_") for gate in gates)
        states = tuple(under(f"h{gate}".strip()) for gate in gates)
        if all(inputs) and all(states) and _is_cell(1, inputs[0], states[0], modules):
            return _Cell(kind, inputs, states)
    inputs, states = (under("dense_i"),), (under("dense_h"),)
    if inputs[0] and states[0]:
        for count, kind in KINDS.items():
            if _is_cell(count, inputs[0], states[0], modules):
                return _Cell(kind, inputs, states)
    return None


def _is_cell(gates: int, inputs: str, states: str, modules: Mapping[str, Leaves]) -> bool:
    given, kept = modules[inputs]["kernel"], modules[states]["kernel"]
    return len(given) == len(kept) == 2 and given[1] == kept[1] == gates * kept[0]


def _biases(cell: _Cell, modules: Mapping[str, Leaves]) -> dict[str, tuple[Piece, ...]]:
    """Return both biases: where Flax has only one, PyTorch's other is added to it."""
    gates = len(_GATES[cell.kind])
    features = modules[cell.states[0]]["kernel"][0]
    given = [_bias(cell.inputs, gate, features, modules) for gate in range(gates)]
    kept = [_bias(cell.states, gate, features, modules) for gate in range(gates)]
    if not any(given) and not any(kept):
        return {}
    for gate in range(gates):
        summed = not (cell.kind == "gru" and gate == gates - 1)  # a GRU's reset gate is between its last two
        given[gate], kept[gate] = _both(given[gate], kept[gate], summed, features)
    return {"bias_ih": _runs(given), "bias_hh": _runs(kept)}


def _bias(children: tuple[str, ...], gate: int, features: int, modules: Mapping[str, Leaves]) -> Piece | None:
    child = children[gate if len(children) > 1 else 0]
    shape = modules[child].get("bias")
    if shape is None:
        return None
    rows = (gate * features, (gate + 1) * features) if shape[0] > features else None
    return Piece(f"{child}/bias", same(shape), rows)


def _both(given: Piece | None, kept: Piece | None, summed: bool, features: int) -> tuple[Piece, Piece]:
    one = given or kept
    other = absent(features) if one is None or not summed else Piece(one.path, one.layout, one.rows, "added")
    return given or other, kept or other


def _runs(pieces: list[Piece | None]) -> tuple[Piece, ...]:
    """Return the blocks, those that follow each other in one array as one."""
    runs: list[Piece] = []
    for piece in pieces:
        assert piece is not None
        last = runs[-1] if runs else None
        if (
            last
            and last.rows
            and piece.rows
            and (last.path, last.role, last.rows[1]) == (piece.path, piece.role, piece.rows[0])
        ):
            rows = (last.rows[0], piece.rows[1])
            runs[-1] = Piece(piece.path, piece.layout, None if rows == (0, piece.layout.shape[0]) else rows, piece.role)
        else:
            runs.append(piece)
    return tuple(runs)


def _named(path: str) -> tuple[str, str]:
    """Return what comes before and after a role in PyTorch's name: an `RNN` has layers, a cell alone has not.

    >>> _named("encoder/forward_rnn/cell"), _named("cell_0")
    (('encoder.', '_l0'), ('cell_0.', ''))
    """
    words = path.split("/") if path else []
    suffix = ""
    if len(words) > 1 and words[-1] == "cell":
        words, suffix = words[:-1], "_l0"
        if words[-1] in ("forward_rnn", "backward_rnn"):
            suffix += "_reverse" if words[-1] == "backward_rnn" else ""
            words = words[:-1]
    return "".join(f"{word}." for word in words), suffix


def torch_cells(shapes: Mapping[str, Shape]) -> dict[str, Unit]:
    """Return PyTorch's cells by the name of each of their arrays: one for each layer and direction of an LSTM, GRU or RNN."""
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    for name in shapes:
        if found := _TORCH.fullmatch(name):
            grouped.setdefault((found["prefix"] or "", found["suffix"]), {})[found["role"]] = name
    cells: dict[str, Unit] = {}
    for (prefix, suffix), names in grouped.items():
        weight = shapes.get(names.get("weight_hh", ""), ())
        kind = KINDS.get(weight[0] // weight[1], "") if len(weight) == 2 and weight[0] % weight[1] == 0 else ""
        if kind and "weight_ih" in names:
            roles = {role: (Piece(name, same(shapes[name])),) for role, name in names.items()}
            name = (prefix + suffix[1:]).strip(".")
            parts = tuple(_linear(name, short, roles) for short in ("ih", "hh"))
            cells |= dict.fromkeys(names.values(), Unit(name, (Variant(kind, roles),), names, parts))
    return cells


def _linear(cell: str, short: str, roles: Mapping[str, tuple[Piece, ...]]) -> Unit:
    """Return one of a cell's two linear layers."""
    own = {role.removesuffix(f"_{short}"): pieces for role, pieces in roles.items() if role.endswith(short)}
    name = f"{cell}.{short}"
    return Unit(name, (Variant("linear", own),), {role: pieces[0].path for role, pieces in own.items()})
