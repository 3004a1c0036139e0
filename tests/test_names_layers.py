"""Each layer, of random shapes, computes the same in both frameworks once its weights are converted, in both directions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest
import torch
import yaml
from flax import nnx
from layer_cases import CASES, Case
from numpy.random import Generator, default_rng

import noether_jax.names
import noether_torch.names
from noether_core.names import Matching, UnmatchedNamesError, match

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
        if case.linen is None:
            pytest.skip("Flax Linen has no such layer")
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


@pytest.fixture(autouse=True)
def _whole_products() -> Iterator[None]:
    """Multiply float32 as PyTorch does: on a GPU JAX's default is TF32."""
    with jax.default_matmul_precision("highest"):
        yield


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


LEFT: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], nnx.Module], set[str]]] = {
    "an LSTM's projection": (
        lambda: torch.nn.LSTM(3, 4, proj_size=2),
        lambda: nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0))),
        {"weight_hr_l0"},
    ),
    "an attention's own key and value": (
        lambda: torch.nn.MultiheadAttention(4, 2, add_bias_kv=True),
        lambda: nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0)),
        {"bias_k", "bias_v"},
    ),
    "the vectors of a spectral norm": (
        lambda: torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 4)),
        lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
        {"parametrizations.weight.0._u", "parametrizations.weight.0._v"},
    ),
    "a grouped transposed convolution": (
        lambda: torch.nn.ConvTranspose2d(4, 6, 3, groups=2),
        lambda: nnx.ConvTranspose(4, 6, (3, 3), rngs=nnx.Rngs(0)),
        {"weight"},
    ),
    "running statistics of instances": (
        lambda: torch.nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        lambda: nnx.InstanceNorm(3, rngs=nnx.Rngs(0)),
        {"running_mean", "running_var"},
    ),
    "a slope for each channel": (lambda: torch.nn.PReLU(3), lambda: nnx.PReLU(), {"weight"}),
    "a bilinear layer": (
        lambda: torch.nn.Bilinear(2, 3, 4),
        lambda: nnx.Linear(2, 4, rngs=nnx.Rngs(0)),
        {"weight"},
    ),
    "the scale of a weight that Flax has alone": (
        lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 4)),
        lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
        {"parametrizations.weight.original0"},
    ),
    "a layer more than a stack has": (
        lambda: torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3))),
        lambda: nnx.vmap(lambda key: nnx.Linear(3, 3, rngs=nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 2)),
        {"2.weight"},
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_flax_has_no_layer_for_is_named_and_asked_for(name: str) -> None:
    make, make_flax, wanted = LEFT[name]
    ours, theirs = make(), make_flax()
    arrays, known = noether_torch.names.layers(ours), noether_jax.names.layers(theirs)
    weights = noether_torch.names.weights(ours)
    matching = match(weights, noether_jax.names.weights(theirs), torch_layers=arrays, flax_layers=known)
    assert wanted <= set(matching.unmatched_torch)
    with pytest.raises(
        UnmatchedNamesError, match=r"PyTorch arrays and .* Flax arrays have no partner\. Give a mapping"
    ) as told:
        matching.check()
    assert all(name in str(told.value) for name in wanted)
    asked = yaml.safe_load(matching.mapping_to_complete())
    assert set(asked) == set(matching.unmatched_torch)
    given = {entry.name: weights[entry.name] for entry in matching.entries}
    stored = matching.to_flax(given)  # what is matched is converted, and no array in part
    shapes = {path: tuple(array.shape) for path, array in noether_jax.names.weights(theirs).items()}
    assert all(array.shape == shapes[path] for path, array in stored.items())
