"""Each layer, of random shapes, computes the same in both frameworks once its weights are converted, in both directions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from layer_cases import CASES, Case
from numpy.random import Generator, default_rng

import noether_jax.names
import noether_torch.names
from noether_core.names import Matching, match

ROUNDING = float(np.finfo(np.float32).eps)
NAMES = [case.__name__ for case in CASES]


class Nnx:
    """Hold an NNX model."""

    def __init__(self, case: Case) -> None:
        made = case.nnx() if case.nnx else None
        if made is None:
            pytest.skip("Flax NNX has no such layer")
        self.model: Any = made
        self.layers = noether_jax.names.layers(self.model)

    def forward(self, case: Case) -> np.ndarray[Any, Any]:
        return np.asarray(_called(self.model, case.inputs))

    def load(self, canonical: Mapping[str, Any], matching: Matching) -> None:
        noether_jax.names.load(self.model, canonical, matching)


@nnx.jit
def _called(model: Any, inputs: Any) -> Any:
    return model(inputs)


class Linen:
    """Hold a Linen model: its variables."""

    def __init__(self, case: Case) -> None:
        assert case.linen is not None
        self.module = case.linen
        self.model: Any = jax.eval_shape(self.module.init, jax.random.key(0), case.inputs)  # shapes are enough
        self.layers = noether_jax.names.layers(self.module, case.inputs)

    def forward(self, case: Case) -> np.ndarray[Any, Any]:
        return np.asarray(jax.jit(self.module.apply)(self.model, case.inputs))

    def load(self, canonical: Mapping[str, Any], matching: Matching) -> None:
        self.model = noether_jax.names.load(self.model, canonical, matching)


def drawn(shapes: Mapping[str, Any], rng: Generator) -> dict[str, np.ndarray[Any, Any]]:
    """Return random arrays; variances are positive."""
    arrays = {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in shapes.items()}
    return {name: np.abs(array) + 0.5 if name.endswith("var") else array for name, array in arrays.items()}


def close(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Tell whether two results are equal within a few roundings of what was added up."""
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 16 * ROUNDING * (1 + np.abs(other).max()))


def seeded(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with each layer, each of Flax's ways of writing it, and some seeds."""
    test = pytest.mark.parametrize("seed", range(25))(test)
    test = pytest.mark.parametrize("flavour", [Nnx, Linen], ids=["nnx", "linen"])(test)
    return pytest.mark.sweep(1)(pytest.mark.parametrize("make", CASES, ids=NAMES)(test))


@seeded
def test_a_layer_computes_the_same_with_converted_weights(make: Any, flavour: Any, seed: int) -> None:
    rng = default_rng([seed, zlib.crc32(make.__name__.encode())])
    case = make(rng)
    flax = flavour(case)
    ours, theirs = noether_torch.names.weights(case.torch), noether_jax.names.weights(flax.model)
    matching = match(ours, theirs, torch_layers=noether_torch.names.layers(case.torch), flax_layers=flax.layers).check()

    given = drawn({entry.name: entry for entry in matching.entries}, rng)
    if flavour is Nnx and make.__name__.startswith("gru"):
        for name in given:
            if "bias_hh" in name:
                given[name][:] = 0  # NNX's GRU has no such bias
    noether_torch.names.load(case.torch, given)
    flax.load(given, matching)
    assert close(flax.forward(case), case.forward_torch())

    stored = drawn(theirs, rng)
    noether_torch.names.load(case.torch, matching.to_canonical(stored))
    flax.load(matching.to_canonical(stored), matching)
    for path, array in noether_jax.names.weights(flax.model).items():
        np.testing.assert_array_equal(array, stored[path], path)  # back and forth, to the last bit
    assert close(flax.forward(case), case.forward_torch())
    assert torch.isfinite(torch.from_numpy(case.forward_torch())).all()
