"""Search the way that leads from the arrays before an activation to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from noether_core.parity.divergence.causes import layers, recurrent, sequences
from noether_core.parity.divergence.causes.case import Array, Case
from noether_core.parity.divergence.causes.layers import Way
from noether_core.parity.divergence.causes.measures import distance, factor
from noether_core.parity.divergence.causes.norms import norms
from noether_core.parity.divergence.training import Training

_MOST_SOURCES = 8
_MOST_ELEMENTS = 4_000_000
_FOUND = 3e-6  # relative: no better way is looked for


@dataclass(frozen=True)
class Sources:
    """Hold what an activation can have been computed from.

    Attributes:
        inputs: data and earlier activations, the nearest first, binary64.
        parameters: by name, binary64; those of the activation's own layer first.
        buffers: running means and variances before the update, by their layer's name.
    """

    inputs: tuple[Array, ...]
    parameters: dict[str, Array]
    buffers: dict[str, tuple[Array, Array]]


def sources(case: Case, side: Training, key: str) -> Sources:
    """Return what one side can have computed an activation from."""
    keys = list(side.keys(case.update))
    before = [each for each in keys[: keys.index(key)] if each.startswith(("act/", "data/"))]
    arrays = (side.array(case.update, each) for each in reversed(before))
    small = (each.astype(np.float64) for each in arrays if each is not None and each.size <= _MOST_ELEMENTS)
    inputs = [each for each in small if np.isfinite(each).all()]
    name = key.partition("/")[2]
    names = [each.partition("/")[2] for each in keys if each.startswith("param/")]
    own = [each for each in names if each.startswith(name + ".")]
    parameters = {}
    for each in own or names:
        value = side.array(case.update, f"param/{each}")
        if value is not None and value.size <= _MOST_ELEMENTS:
            parameters[each] = value.astype(np.float64)
    return Sources(tuple(inputs[:_MOST_SOURCES]), parameters, _buffers(case, side, keys))


def _buffers(case: Case, side: Training, keys: list[str]) -> dict[str, tuple[Array, Array]]:
    """Return running statistics as the update found them: what the one before left; at the first, zeros and ones."""
    found = {}
    for key in keys:
        if not key.endswith("running_mean"):
            continue
        layer = key.partition("/")[2].removesuffix(".running_mean")
        pair = []
        for kind, start in (("running_mean", 0.0), ("running_var", 1.0)):
            value = side.array(case.update, f"param/{layer}.{kind}")
            value = side.array(case.update - 1, f"opt/{layer}.{kind}") if value is None else value
            now = side.array(case.update, f"opt/{layer}.{kind}")
            if value is None and now is not None:
                value = np.full(now.shape, start)
            pair.append(value)
        mean, variance = pair
        if mean is not None and variance is not None:
            found[layer] = mean.astype(np.float64), variance.astype(np.float64)
    return found


def best_way(given: Sources, output: Array) -> tuple[Way | None, float]:
    """Return the way that leaves least of an output, and what it leaves."""
    best, least = None, float("inf")
    if output.size > _MOST_ELEMENTS or not np.isfinite(output).all():
        return best, least
    for way in _ways(given, output):
        if way.output.shape != output.shape:
            continue
        left = distance(np.nan_to_num(way.output), output)
        if left < 0.7 * least:
            best, least = way, left
        if least < _FOUND:
            break
    return best, least


def _ways(given: Sources, output: Array) -> Iterator[Way]:
    shape = output.shape
    for x in given.inputs:
        yield from layers.activations(x, shape, output)
        yield from layers.reshapings(x, shape)
    for x in given.inputs:
        yield from _with_parameters(given, x, output)
    yield from _combined(given, output)
    for x in given.inputs:
        yield from layers.poolings(x, shape)
        yield from _dropped(x, output)
    yield from _over_sequences(given, shape)


def _over_sequences(given: Sources, shape: tuple[int, ...]) -> Iterator[Way]:
    for v, k, q in zip(given.inputs, given.inputs[1:], given.inputs[2:], strict=False):
        yield from sequences.separate_attentions(q, k, v, shape)
    for x in given.inputs:
        yield from sequences.attentions(x, shape)
        yield from sequences.embeddings(x, shape, given.parameters)
        yield from recurrent.recurrences(x, shape, given.parameters)


def _with_parameters(given: Sources, x: Array, output: Array) -> Iterator[Way]:
    weights = {name: value for name, value in given.parameters.items() if not name.endswith("bias")}
    for name, weight in weights.items():
        layer = name.rpartition(".")[0]
        bias = given.parameters.get(f"{layer}.bias")
        if weight.ndim == 1:
            yield from norms(x, output, weight, bias, given.buffers.get(layer))
        elif np.issubdtype(x.dtype, np.floating):
            yield from layers.linears(x, output.shape, weight, bias)
            yield from layers.convolutions(x, output.shape, weight, bias)
    yield from norms(x, output, None, None, None)


def _combined(given: Sources, output: Array) -> Iterator[Way]:
    """Add and subtract the nearest arrays of the output's shape, with whole coefficients; and scale one."""
    alike = [(index, x) for index, x in enumerate(given.inputs) if x.shape == output.shape][:5]
    for _, x in alike:
        constant, left = factor(x, output)
        if left < 1e-4 and abs(constant - 1) > 1e-6:
            yield Way("factor", {"factor": f"{constant:.5g}"}, constant * x)
    if len(alike) < 2:
        return
    columns = np.stack([x.reshape(-1) for _, x in alike], axis=1)
    some = np.linspace(0, len(columns) - 1, min(len(columns), 20_000)).astype(int)
    solved = np.linalg.lstsq(columns[some], output.reshape(-1)[some], rcond=1e-9)[0]
    if np.abs(solved).max() < 1e3:
        words = ", ".join(
            f"{value:+.4g} × input {index + 1}"
            for value, (index, _) in zip(solved, alike, strict=True)
            if abs(value) > 1e-4
        )
        yield Way("sum", {"terms": words}, (columns @ solved).reshape(output.shape))


def _dropped(x: Array, output: Array) -> Iterator[Way]:
    """Drop the elements that are zero in the output, and scale the others by a constant."""
    if x.shape != output.shape:
        return
    dropped = (output == 0) & (x != 0)
    share = float(dropped.sum() / max(1, int((x != 0).sum())))
    if 0.01 < share < 0.99:
        constant, _ = factor(np.where(dropped, 0.0, x), output)
        yield Way(
            "dropout", {"share": f"{share:.2f}", "factor": f"{constant:.4g}"}, np.where(dropped, 0.0, constant * x)
        )
