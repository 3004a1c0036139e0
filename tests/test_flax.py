"""What Flax models keep aside, as update outputs."""

from __future__ import annotations

import doctest
import subprocess
import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax_models import Block, LinenNetwork, Network, batch

import noether_jax.flax
from noether_core import NoetherError, UpdateOutputError
from noether_jax.flax import intermediate_outputs

NORMS = ["norms/high", "norms/parts/0", "norms/parts/1"]


def shapes(outputs: dict[str, jax.Array]) -> dict[str, tuple[int, ...]]:
    return {key: value.shape for key, value in outputs.items()}


def test_nnx_keys_are_the_names_of_modules_and_values() -> None:
    model, x = Network(), batch(0)
    result, sown = nnx.capture(model, nnx.Intermediate)(x)
    outputs = intermediate_outputs(sown)
    assert list(outputs) == ["blocks/0/attention/weights", "blocks/1/attention/weights", *NORMS]
    first = jax.nn.softmax(model.blocks[0].attention.query(x))
    np.testing.assert_array_equal(outputs["blocks/0/attention/weights"], first)
    np.testing.assert_array_equal(outputs["norms/high"], result.max())


def test_what_an_nnx_method_returned_has_the_modules_name() -> None:
    forward = nnx.capture(Network(), nnx.Intermediate, method_outputs=nnx.Intermediate)
    output, captured = forward(batch(0))
    outputs = intermediate_outputs(captured)
    of_block = [f"blocks/{{}}/{name}" for name in ("attention", "attention/query", "attention/weights")]
    blocks = [key.format(at) for at in (0, 1) for key in ("blocks/{}", *of_block)]
    assert list(outputs) == ["__call__", *blocks, *NORMS]
    np.testing.assert_array_equal(outputs["__call__"], output)
    np.testing.assert_array_equal(outputs["blocks/1"], output)


def test_linen_keys_are_the_names_of_modules_and_values() -> None:
    model, x = LinenNetwork(), batch(0)
    params = model.init(jax.random.key(0), x)["params"]
    output, variables = model.apply({"params": params}, x, mutable=["intermediates"])
    outputs = intermediate_outputs(variables["intermediates"])
    assert list(outputs) == ["blocks_0/weights", "blocks_1/weights", *NORMS]
    np.testing.assert_array_equal(outputs["norms/high"], output.max())
    frozen = intermediate_outputs(flax.core.freeze(variables["intermediates"]))
    assert shapes(frozen) == shapes(outputs)
    output, variables = model.apply({"params": params}, x, capture_intermediates=True)
    outputs = intermediate_outputs(variables["intermediates"])
    blocks = [f"blocks_{at}{end}" for at in (0, 1) for end in ("", "/query", "/weights")]
    assert sorted(outputs) == sorted(["__call__", *blocks, *NORMS])
    np.testing.assert_array_equal(outputs["__call__"], output)


def test_what_is_sown_several_times_is_numbered() -> None:
    block, x = Block(nnx.Rngs(0)), batch(0)
    _, sown = nnx.capture(lambda block, x: block(block(x)), nnx.Intermediate)(block, x)
    assert list(intermediate_outputs(sown)) == ["attention/weights/0", "attention/weights/1"]

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> Any:
            layer = nn.Dense(4, name="layer")
            self.sow("intermediates", "total", x.sum(), init_fn=lambda: 0.0, reduce_fn=jnp.add)
            self.sow("intermediates", "total", x.sum(), init_fn=lambda: 0.0, reduce_fn=jnp.add)
            return {"deep": layer(layer(x)), "none": None}

    _, variables = Twice().init_with_output(jax.random.key(0), x, mutable=True, capture_intermediates=True)
    outputs = intermediate_outputs(variables["intermediates"])
    assert sorted(outputs) == ["__call__/deep", "layer/0", "layer/1", "total"]
    np.testing.assert_array_equal(outputs["total"], x.sum() + x.sum())


# Flax asks for nnx.capture instead
@pytest.mark.filterwarnings("ignore:\\s*Using 'Module.sow:DeprecationWarning")
def test_what_is_popped_off_an_nnx_model_has_the_same_keys() -> None:
    model, captured = Network(), Network()
    _, sown = nnx.capture(captured, nnx.Intermediate)(batch(0))
    model(batch(0))
    assert shapes(intermediate_outputs(nnx.pop(model, nnx.Intermediate))) == shapes(intermediate_outputs(sown))


class Perturbed(nnx.Module):
    def __init__(self) -> None:
        self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return 3 * self.perturb("hidden", self.layer(x)).sum()


class LinenPerturbed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return 3 * self.perturb("hidden", nn.Dense(4)(x)).sum()


def test_gradients_of_intermediates_have_keys_too() -> None:
    model, x = nnx.Dict(inner=Perturbed()), batch(0)
    _, zeros = nnx.capture(lambda model: model.inner(x), nnx.Perturbation)(model)

    def loss(model: nnx.Dict, zeros: nnx.State) -> jax.Array:
        return nnx.capture(lambda model: model.inner(x), nnx.Intermediate, init=zeros)(model)[0]

    gradients = nnx.grad(loss, argnums=1)(model, zeros)
    variables = LinenPerturbed().init(jax.random.key(0), x)
    of_linen = jax.grad(lambda variables: LinenPerturbed().apply(variables, x))(variables)["perturbations"]
    for key, found in {"inner/hidden": gradients, "hidden": of_linen}.items():
        outputs = intermediate_outputs(found)
        assert list(outputs) == [key]
        np.testing.assert_array_equal(outputs[key], jnp.full((5, 4), 3.0))


def test_patterns_and_statistics() -> None:
    _, sown = nnx.capture(Network(), nnx.Intermediate)(batch(0))
    statistics = {"max": jnp.max, "rms": lambda x: jnp.sqrt(jnp.mean(x**2))}
    outputs = intermediate_outputs(sown, ["1/attention", "high"], statistics)
    assert list(outputs) == [
        f"{key}/{name}" for key in ("blocks/1/attention/weights", "norms/high") for name in ("max", "rms")
    ]
    weights = intermediate_outputs(sown)["blocks/1/attention/weights"]
    assert outputs["blocks/1/attention/weights/max"] == weights.max()
    assert outputs["blocks/1/attention/weights/rms"] == jnp.sqrt(jnp.mean(weights**2))


def test_what_cannot_work_says_so() -> None:
    model = Network()
    result = nnx.capture(model, nnx.Intermediate)(batch(0))
    with pytest.raises(NoetherError, match=r"intermediate_outputs got tuple; expected the State that nnx.capture"):
        intermediate_outputs(result)  # type: ignore[arg-type]
    with pytest.raises(NoetherError, match=r"got Network; expected"):
        intermediate_outputs(model)
    with pytest.raises(NoetherError, match=r"'norm/high' is in no .* there are .* Did you mean 'norms/high'\?"):
        intermediate_outputs(result[1], ["blocks", "norm/high"])
    with pytest.raises(NoetherError, match=r"string 'norms'; write a list: \['norms'\]"):
        intermediate_outputs(result[1], "norms")
    with pytest.raises(UpdateOutputError, match=r"two intermediates have the key 'pair/0'; rename"):
        intermediate_outputs({"pair": {"__call__": ((1.0, 2.0),), "0": {"__call__": (3.0,)}}})


def test_the_docstrings_examples_run() -> None:
    failed, tried = doctest.testmod(noether_jax.flax)
    assert tried
    assert not failed


def test_a_missing_flax_is_explained() -> None:
    script = "import sys; sys.modules['flax'] = None; import noether_jax; import noether_jax.flax"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr
    assert "noether_jax.flax needs flax" in done.stderr
    assert "pip install '.[jax]'" in done.stderr
