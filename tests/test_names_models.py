"""Whole models: their arrays are read, matched, written back and converted inside of compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from flax.training import train_state
from transformers.pytorch_utils import Conv1D

import noether_jax.names
import noether_torch.names
from noether_core.names import WeightsError, canonical_names, images_to_torch, match

ROUNDING = float(np.finfo(np.float32).eps)


class Digits(torch.nn.Module):
    """Convolve, normalise, flatten, and go through an LSTM.

    A bias before the normalisation would have a gradient of zero but for rounding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        self.rnn = torch.nn.LSTM(32, 6, batch_first=True)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.features(x).permute(0, 2, 3, 1).flatten(2)
        return self.head(self.rnn(rows)[0][:, -1])


class FlaxDigits(linen.Module):
    """Compute what `Digits` does, with names of its own."""

    @linen.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = linen.Conv(4, (3, 3), use_bias=False)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = linen.RNN(linen.LSTMCell(6))(x.reshape(*x.shape[:2], -1))
        return linen.Dense(3)(x[:, -1])


class NnxDigits(nnx.Module):
    """Compute what `Digits` does, with names of its own."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(32, 6, rngs=rngs))
        self.out = nnx.Linear(6, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.norm(self.conv(x)))
        return self.out(self.lstm(x.reshape(*x.shape[:2], -1))[:, -1])


IMAGES = np.random.default_rng(0).standard_normal((5, 8, 8, 1)).astype(np.float32)
SHAPE = jax.ShapeDtypeStruct(IMAGES.shape, "float32")


def torch_gradients(model: torch.nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    model.zero_grad()
    model(torch.from_numpy(images_to_torch(IMAGES).copy())).square().mean().backward()
    return noether_torch.names.weights(
        {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    )


def assert_close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(ours) == set(theirs)
    for name in theirs:
        one, other = np.asarray(ours[name]), np.asarray(theirs[name])
        assert np.linalg.norm(one - other) <= 50 * ROUNDING * (np.linalg.norm(other) + 1e-3), name


def test_gradients_of_a_linen_model_have_pytorchs_names_and_values_inside_of_jit() -> None:
    ours, module = Digits().train(), FlaxDigits()
    arrays = noether_torch.names.weights(ours)
    variables = jax.eval_shape(module.init, jax.random.key(0), SHAPE)
    known = noether_jax.names.layers(module, SHAPE)
    matching = match(arrays, noether_jax.names.weights(variables), flax_layers=known).check()
    loaded = noether_jax.names.load(variables, arrays, matching)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)

    @jax.jit
    def step(params: Any, statistics: Any) -> dict[str, Any]:
        def loss(params: Any) -> Any:
            both = {"params": params, "batch_stats": statistics}
            return jnp.mean(module.apply(both, IMAGES, mutable=["batch_stats"])[0] ** 2)

        return matching.to_canonical(noether_jax.names.weights(jax.grad(loss)(params)), gradients=True)

    assert_close(step(loaded["params"], loaded["batch_stats"]), torch_gradients(ours))


def test_an_nnx_model_is_loaded_in_place_and_its_gradients_agree() -> None:
    ours, theirs = Digits().train(), NnxDigits()
    arrays = noether_torch.names.weights(ours)
    known = noether_jax.names.layers(theirs)
    matching = match(arrays, noether_jax.names.weights(theirs), flax_layers=known).check()
    assert noether_jax.names.load(theirs, arrays, matching) is theirs

    @nnx.jit
    def step(model: NnxDigits) -> dict[str, Any]:
        gradients = nnx.grad(lambda model: jnp.mean(model(IMAGES) ** 2))(model)
        return matching.to_canonical(noether_jax.names.weights(gradients), gradients=True)

    assert_close(step(theirs), torch_gradients(ours))
    assert list(known)[:4] == ["", "conv", "norm", "lstm"]


def test_an_optimizers_moments_have_the_names_too() -> None:
    shapes = jax.eval_shape(FlaxDigits().init, jax.random.key(0), SHAPE)["params"]
    params = jax.tree.map(lambda each: np.zeros(each.shape, each.dtype), shapes)
    matching = canonical_names(noether_jax.names.weights(params), noether_jax.names.layers(FlaxDigits(), SHAPE))
    state = optax.adam(0.1).init(params)
    moments = matching.to_canonical(noether_jax.names.weights(state[0].mu))
    assert moments["Conv_0.weight"].shape == (4, 1, 3, 3)
    assert list(moments) == list(matching.to_canonical(noether_jax.names.weights(params)))
    masked = optax.masked(optax.sgd(0.1, momentum=0.9), {**jax.tree.map(lambda _: False, params), "Dense_0": True})
    trace = noether_jax.names.weights(masked.init(params).inner_state[0].trace)
    assert set(matching.to_canonical(trace)) == {"Dense_0.weight", "Dense_0.bias"}


class Encoder(linen.Module):
    """Compute what `torch.nn.TransformerEncoder` does, normalised first."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(2):
            y = linen.LayerNorm(epsilon=1e-5)(x)
            x = x + linen.MultiHeadDotProductAttention(2)(y)
            y = linen.Dense(12)(linen.LayerNorm(epsilon=1e-5)(x))
            x = x + linen.Dense(8)(linen.relu(y))
        return x


def test_a_transformer_with_names_of_its_own_computes_the_same() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
    ours = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train()
    with torch.no_grad():
        for each in ours.parameters():
            each.copy_(torch.randn_like(each))
    x = np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)
    variables = jax.eval_shape(Encoder().init, jax.random.key(0), x)
    arrays = noether_torch.names.weights(ours)
    # without `layers`: names that only count are enough
    matching = match(
        arrays, noether_jax.names.weights(variables), torch_layers=noether_torch.names.layers(ours)
    ).check()
    loaded = noether_jax.names.load(variables, arrays, matching)
    expected = ours(torch.from_numpy(x)).detach().numpy()
    assert np.abs(Encoder().apply(loaded, x) - expected).max() <= 100 * ROUNDING * np.abs(expected).max()


class Backwards(linen.Module):
    """Define layers in another order than that of their calls."""

    def setup(self) -> None:
        self.zebra = linen.Dense(4)
        self.apple = linen.Dense(4)

    def __call__(self, x: Any) -> Any:
        return self.apple(self.zebra(x))


def test_a_linen_models_order_is_that_of_its_calls() -> None:
    x = jax.ShapeDtypeStruct((1, 4), "float32")
    variables = jax.jit(Backwards().init)(jax.random.key(0), np.ones((1, 4), np.float32))  # sorted by name
    known = noether_jax.names.layers(Backwards(), x)
    assert list(known) == ["", "zebra", "apple"]
    ours = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    matching = match(noether_torch.names.weights(ours), noether_jax.names.weights(variables), flax_layers=known).check()
    assert [entry.paths[0] for entry in matching.entries] == [
        "zebra/kernel",
        "zebra/bias",
        "apple/kernel",
        "apple/bias",
    ]


def test_trees_of_any_container_are_read_and_written() -> None:
    boxed = linen.Partitioned(jnp.ones((2, 3)), names=("a", None))
    tree = {"layers": [{"kernel": boxed, "bias": jnp.ones(3)}, None], "scale": np.float32(2)}
    held = train_state.TrainState(step=0, apply_fn=len, params=tree, tx=optax.sgd(0.1), opt_state=())
    assert set(noether_jax.names.weights(held)) > {"params/layers/0/kernel"}
    arrays = noether_jax.names.weights(tree)
    assert {path: np.shape(array) for path, array in arrays.items()} == {
        "layers/0/kernel": (2, 3),
        "layers/0/bias": (3,),
        "scale": (),
    }
    matching = canonical_names(arrays)
    canonical = {name: np.asarray(array) * 5 for name, array in matching.to_canonical(arrays).items()}
    loaded = noether_jax.names.load(tree, canonical, matching)
    assert isinstance(loaded["layers"][0]["kernel"], linen.Partitioned)
    assert loaded["layers"][1] is None
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    assert [float(jnp.max(leaf)) for leaf in jax.tree.leaves(loaded)] == [5.0, 5.0, 10.0]


@pytest.mark.parametrize("of", [lambda state: state, lambda state: nnx.State({"params": state})], ids=["it", "below"])
def test_an_nnx_state_is_read_and_written(of: Callable[[nnx.State], nnx.State]) -> None:
    state = of(nnx.state(NnxDigits(), nnx.Param))
    arrays = noether_jax.names.weights(state)
    assert "lstm/cell/dense_i/kernel" in arrays
    matching = canonical_names(arrays)
    doubled = {name: array * 2 for name, array in matching.to_canonical(arrays).items()}
    loaded = noether_jax.names.load(state, doubled, matching)
    for path, array in noether_jax.names.weights(loaded).items():
        np.testing.assert_array_equal(array, arrays[path] * 2)
    assert jax.tree.structure(loaded) == jax.tree.structure(state)  # so that an optimizer's updates can be added to it


def test_dtypes_are_kept() -> None:
    ours = torch.nn.Linear(2, 3, dtype=torch.bfloat16)
    arrays = noether_torch.names.weights(ours)
    assert arrays["weight"].dtype == ml_dtypes.bfloat16
    theirs = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    matching = match(arrays, noether_jax.names.weights(theirs)).check()
    noether_jax.names.load(theirs, arrays, matching)
    assert theirs.kernel[...].dtype == jnp.float32
    noether_torch.names.load(ours, {name: array * 0 + 2 for name, array in arrays.items()})
    assert ours.weight.dtype == torch.bfloat16
    assert float(ours.weight.detach().max()) == 2.0


def test_layers_that_are_stacked_are_layers_in_a_row_or_stay_one_where_pytorch_has_one() -> None:
    stacked = nnx.vmap(lambda key: nnx.Linear(2, 3, rngs=nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 5))
    arrays, known = noether_jax.names.weights(stacked), noether_jax.names.layers(stacked)
    canonical = canonical_names(arrays, known).to_canonical(arrays)
    assert list(canonical) == [f"{number}.{role}" for number in range(5) for role in ("weight", "bias")]
    np.testing.assert_array_equal(canonical["3.weight"], arrays["kernel"][3].T)
    experts = {"weight": (5, 3, 2), "bias": (5, 3)}
    whole = match(experts, arrays, flax_layers=known).check().to_canonical(arrays)
    np.testing.assert_array_equal(whole["weight"], np.swapaxes(arrays["kernel"], 1, 2))
    np.testing.assert_array_equal(whole["bias"], arrays["bias"])


class Mixed(nnx.Module):
    """Has a stack of blocks with an attention, a recurrent cell, and an array of its own."""

    def __init__(self, key: Any) -> None:
        rngs = nnx.Rngs(key)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.cell, self.norm = nnx.LSTMCell(4, 3, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(4))


class TorchMixed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(4, 2)
        self.cell, self.norm = torch.nn.LSTMCell(4, 3), torch.nn.LayerNorm(4)
        self.gain = torch.nn.Parameter(torch.ones(4))


def test_every_kind_of_layer_may_be_stacked() -> None:
    stacked = nnx.vmap(Mixed)(jax.random.split(jax.random.key(0), 3))
    ours = torch.nn.ModuleList(TorchMixed() for _ in range(3))
    arrays = noether_jax.names.weights(stacked)
    names = {"torch_layers": noether_torch.names.layers(ours), "flax_layers": noether_jax.names.layers(stacked)}
    matching = match(noether_torch.names.weights(ours), arrays, **names).check()
    canonical = matching.to_canonical(arrays)
    query, gain = arrays["attention/query/kernel"][1].reshape(4, 4).T, arrays["gain"][2]
    np.testing.assert_array_equal(canonical["1.attention.in_proj_weight"][:4], query)
    np.testing.assert_array_equal(canonical["2.gain"], gain)
    for path, array in matching.to_flax(canonical).items():
        np.testing.assert_array_equal(array, arrays[path], path)


def test_a_linear_layer_of_gpt_2_is_not_transposed() -> None:
    ours = torch.nn.Sequential(Conv1D(4, 4), Conv1D(6, 4))
    theirs = {"Dense_0/kernel": (4, 4), "Dense_0/bias": (4,), "Dense_1/kernel": (4, 6), "Dense_1/bias": (6,)}
    arrays = noether_torch.names.weights(ours)
    stored = match(arrays, theirs, torch_layers=noether_torch.names.layers(ours)).check().to_flax(arrays)
    np.testing.assert_array_equal(stored["Dense_0/kernel"], arrays["0.weight"])
    np.testing.assert_array_equal(stored["Dense_1/kernel"], arrays["1.weight"])


def test_a_shared_parameter_is_given_once() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    assert list(noether_torch.names.weights(model)) == ["0.weight"]


def test_weights_that_are_missing_or_strange_are_refused() -> None:
    ours, theirs = torch.nn.Linear(2, 3), nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    arrays = noether_torch.names.weights(ours)
    matching = match(arrays, noether_jax.names.weights(theirs))
    with pytest.raises(WeightsError, match="no weights were given for 'bias': 1 of 2 arrays are matched"):
        noether_jax.names.load(theirs, {"weight": arrays["weight"]}, matching)
    noether_jax.names.load(theirs, {"weight": arrays["weight"]}, matching, strict=False)
    with pytest.raises(WeightsError, match="no weights were given for 'bias'"):
        noether_torch.names.load(ours, {"weight": arrays["weight"]})
    with pytest.raises(WeightsError, match="the model has no 'gain'; it has 'weight', 'bias'"):
        noether_torch.names.load(ours, {**arrays, "gain": np.ones(3)})
    with pytest.raises(WeightsError, match=r"'weight' has shape \(3, 2\), and \(2, 3\) was given"):
        noether_torch.names.load(ours, {**arrays, "weight": np.ones((2, 3))})
