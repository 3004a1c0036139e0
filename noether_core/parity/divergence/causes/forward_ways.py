"""Search the way that leads from the arrays before an activation to it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from noether_core.parity.divergence.causes import layers, recurrent, sequences
from noether_core.parity.divergence.causes.case import Array
from noether_core.parity.divergence.causes.forward_chains import chained
from noether_core.parity.divergence.causes.layers import Way
from noether_core.parity.divergence.causes.measures import distance, factor, least_squares, scattered
from noether_core.parity.divergence.causes.sources import MOST_ELEMENTS, Sources, with_parameters

_FOUND = 3e-6  # relative: no better way is looked for


def best_way(given: Sources, output: Array) -> tuple[Way | None, float]:
    """Return the way that leaves least of an output, and what it leaves."""
    best, least = None, float("inf")
    if output.size > MOST_ELEMENTS or not np.isfinite(output).all():
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
        yield from with_parameters(given, x, output)
    yield from _combined(given, output)
    for x in given.inputs:
        yield from layers.poolings(x, shape)
        yield from _dropped(x, output)
    yield from _over_sequences(given, shape)
    yield from chained(given, output)


def _over_sequences(given: Sources, shape: tuple[int, ...]) -> Iterator[Way]:
    for v, k, q in zip(given.inputs, given.inputs[1:], given.inputs[2:], strict=False):
        yield from sequences.separate_attentions(q, k, v, shape)
    for x in given.inputs:
        yield from sequences.attentions(x, shape)
        yield from sequences.embeddings(x, shape, given.parameters)
        yield from recurrent.recurrences(x, shape, given.parameters)


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
    solved = least_squares(columns[some], output.reshape(-1)[some], 1e-9)
    if solved is not None and np.abs(solved).max() < 1e3:
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
    if 0.01 < share < 0.99 and scattered(dropped):
        constant, _ = factor(np.where(dropped, 0.0, x), output)
        yield Way(
            "dropout", {"share": f"{share:.2f}", "factor": f"{constant:.4g}"}, np.where(dropped, 0.0, constant * x)
        )
