"""Compute recurrent layers in the ways that ports compute them: order of gates, biases, functions, start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.activations import ACTIVATIONS
from noether_core.parity.divergence.causes.layers import PRECISIONS, Way, rounded

Array = np.ndarray[Any, Any]

_MOST_OUTPUT = 400_000
_PLAIN: Mapping[str, Any] = {
    "gates": (0, 1, 2, 3),
    "bias": "both",
    "gate": "sigmoid",
    "content": "tanh",
    "output": "tanh",
    "forget bias": 0.0,
    "direction": "forward",
    "precision": "float32",
}


def recurrences(x: Array, shape: tuple[int, ...], parameters: Mapping[str, Array]) -> Iterator[Way]:
    """Run an LSTM, a GRU or a plain network over rows × steps × features, each with one thing changed.

    Args:
        x: the inputs.
        shape: of the output, rows × steps × width.
        parameters: PyTorch's: `….weight_ih_l0` and so on. Source: Hochreiter and Schmidhuber 1997; Cho et al. 2014.
    """
    if x.ndim != 3 or len(shape) != 3 or x.shape[:2] != shape[:2] or int(np.prod(shape)) > _MOST_OUTPUT:
        return
    for name, into in parameters.items():
        if "weight_ih_l" not in name or into.ndim != 2 or into.shape[1] != x.shape[2]:
            continue
        hidden = parameters.get(name.replace("weight_ih", "weight_hh"))
        if hidden is None or hidden.shape != (into.shape[0], shape[2]):
            continue
        biases = [
            parameters.get(name.replace("weight_ih", kind), np.zeros(len(into))) for kind in ("bias_ih", "bias_hh")
        ]
        count = into.shape[0] // shape[2]
        if count == 4:
            yield from _lstms(x, into, hidden, biases)
        elif count == 3:
            yield from _grus(x, into, hidden, biases)
        elif count == 1:
            yield from _plain(x, into, hidden, biases)


def _bias(biases: list[Array], which: str) -> Array:
    return {"both": biases[0] + biases[1], "of inputs": biases[0], "of states": biases[1], "none": 0 * biases[0]}[which]


def _lstms(x: Array, into: Array, hidden: Array, biases: list[Array]) -> Iterator[Way]:
    changes: list[dict[str, Any]] = [{}]
    changes += [{"bias": which} for which in ("of inputs", "of states", "none")]
    changes += [{"gate": name} for name in ("hard sigmoid", "hard sigmoid of Keras", "tanh", "softsign")]
    changes += [{"content": name} for name in ("sigmoid", "ReLU", "the identity", "softsign")]
    changes += [{"output": name} for name in ("the identity", "sigmoid", "ReLU")]
    changes += [{"forget bias": 1.0}, {"direction": "backward"}]
    changes += [{"precision": name} for name in PRECISIONS[1:]]
    changes += [{"gates": order} for order in permutations(range(4)) if order != (0, 1, 2, 3)]
    for change in changes:
        options = {**_PLAIN, **change}
        words = {name: _order(value) if name == "gates" else str(value) for name, value in options.items()}
        yield Way("recurrence", words, _lstm(x, into, hidden, _bias(biases, options["bias"]), options))


def _order(order: tuple[int, ...]) -> str:
    return ", ".join("ifgo"[place] for place in order)


def _function(name: str, x: Array) -> Array:
    return np.clip(0.2 * x + 0.5, 0.0, 1.0) if name == "hard sigmoid of Keras" else ACTIVATIONS[name](x)


def _lstm(x: Array, into: Array, hidden: Array, bias: Array, options: Mapping[str, Any]) -> Array:
    rows, length, _ = x.shape
    width = hidden.shape[1]
    state = cell = np.zeros((rows, width))
    output = np.empty((rows, length, width))
    precision = options["precision"]
    inputs, narrow_into, narrow_hidden = (rounded(each, precision) for each in (x, into, hidden))
    steps = range(length) if options["direction"] == "forward" else range(length - 1, -1, -1)
    for step in steps:
        total = inputs[:, step] @ narrow_into.T + rounded(state, precision) @ narrow_hidden.T + bias
        i, f, g, o = (total.reshape(rows, 4, width)[:, place] for place in options["gates"])
        gate = options["gate"]
        kept = _function(gate, f + options["forget bias"]) * cell
        cell = kept + _function(gate, i) * _function(options["content"], g)
        state = _function(gate, o) * _function(options["output"], cell)
        output[:, step] = state
    return output


def _grus(x: Array, into: Array, hidden: Array, biases: list[Array]) -> Iterator[Way]:
    for reset in ("after the product", "before the product"):
        for update in ("keeps the state", "keeps the content"):
            for order in ((0, 1, 2), (1, 0, 2)):
                words = {"reset": reset, "update gate": update, "gates": ", ".join("rzn"[place] for place in order)}
                yield Way(
                    "recurrence", words, _gru(x, into, hidden, biases, (reset[0] == "a", update[-5:] == "state", order))
                )


def _gru(
    x: Array, into: Array, hidden: Array, biases: list[Array], options: tuple[bool, bool, tuple[int, ...]]
) -> Array:
    after, keeps, order = options
    rows, length, _ = x.shape
    width = hidden.shape[1]
    state, output = np.zeros((rows, width)), np.empty((rows, length, width))
    sigmoid = ACTIVATIONS["sigmoid"]
    for step in range(length):
        one = (x[:, step] @ into.T + biases[0]).reshape(rows, 3, width)
        other = (state @ hidden.T + biases[1]).reshape(rows, 3, width)
        r, z = (sigmoid(one[:, place] + other[:, place]) for place in order[:2])
        inner = r * other[:, 2] if after else (r * state) @ hidden[2 * width :].T + biases[1][2 * width :]
        content = np.tanh(one[:, 2] + inner)
        state = z * state + (1 - z) * content if keeps else (1 - z) * state + z * content
        output[:, step] = state
    return output


def _plain(x: Array, into: Array, hidden: Array, biases: list[Array]) -> Iterator[Way]:
    rows, length, _ = x.shape
    for name in ("tanh", "ReLU", "sigmoid"):
        for which in ("both", "of inputs", "of states", "none"):
            state, output = np.zeros((rows, hidden.shape[1])), np.empty((rows, length, hidden.shape[1]))
            for step in range(length):
                state = ACTIVATIONS[name](x[:, step] @ into.T + state @ hidden.T + _bias(biases, which))
                output[:, step] = state
            yield Way("recurrence", {"content": name, "bias": which}, output)
