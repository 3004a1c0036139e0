"""Take what an activation can have been computed from: what came before it in its step, and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from noether_core.parity.divergence.causes import layers
from noether_core.parity.divergence.causes.case import Array, Case
from noether_core.parity.divergence.causes.layers import Way
from noether_core.parity.divergence.causes.norms import norms
from noether_core.parity.divergence.causes.transposed import transposed_convolutions
from noether_core.parity.divergence.training import Training

_MOST_SOURCES = 8
MOST_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Sources:
    """Hold what an activation can have been computed from.

    Attributes:
        inputs: data and earlier activations, the nearest first, binary64.
        parameters: by name, binary64; those of the activation's own layer first.
        buffers: running means and variances before the update, by their layer's name.
        own: whether the parameters are the activation's own layer's.
    """

    inputs: tuple[Array, ...]
    parameters: dict[str, Array]
    buffers: dict[str, tuple[Array, Array]]
    own: bool = False


def sources(case: Case, side: Training, key: str) -> Sources:
    """Return what one side can have computed an activation from."""
    keys = list(side.keys(case.update))
    before = [each for each in keys[: keys.index(key)] if each.startswith(("act/", "data/"))]
    return sources_among(case, side, key, before[::-1])


def sources_among(case: Case, side: Training, key: str, inputs_of: Sequence[str]) -> Sources:
    """Return what one side can have computed an activation from, where its inputs are among some keys, the likeliest first."""
    keys = list(side.keys(case.update))
    arrays = (side.array(case.update, each) for each in inputs_of)
    small = (each.astype(np.float64) for each in arrays if each is not None and each.size <= MOST_ELEMENTS)
    inputs = [each for each in small if np.isfinite(each).all()]
    name = key.partition("/")[2]
    names = [each.partition("/")[2] for each in keys if each.startswith("param/")]
    own = [each for each in names if each.startswith(name + ".")]
    parameters = {}
    for each in own or names:
        value = side.array(case.update, f"param/{each}")
        if value is not None and value.size <= MOST_ELEMENTS:
            parameters[each] = value.astype(np.float64)
    return Sources(tuple(inputs[:_MOST_SOURCES]), parameters, _buffers(case, side, keys), bool(own))


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


def with_parameters(given: Sources, x: Array, output: Array) -> Iterator[Way]:
    """Yield what layers with these parameters make of an input, in all the ways that ports compute them."""
    weights = {name: value for name, value in given.parameters.items() if not name.endswith("bias")}
    for name, weight in weights.items():
        layer = name.rpartition(".")[0]
        bias = given.parameters.get(f"{layer}.bias")
        if weight.ndim == 1:
            yield from norms(x, output, weight, bias, given.buffers.get(layer))
        elif np.issubdtype(x.dtype, np.floating):
            yield from layers.linears(x, output.shape, weight, bias)
            yield from layers.convolutions(x, output.shape, weight, bias)
            yield from transposed_convolutions(x, output.shape, weight, bias)
    yield from norms(x, output, None, None, None)
