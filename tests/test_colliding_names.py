"""Names that an optimizer's groups and a model's intermediates have in common: both are tracked, or it is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from noether_core.errors import NoetherError, UpdateOutputError
from noether_jax.flax import intermediate_outputs
from noether_jax.optax import record_optimizer
from noether_jax.optax.norms import norms

NAMES = ["a", "b", "a/b", "b/a", "", "/", "0", "a/"]


def drawn(rng: np.random.Generator, depth: int = 2) -> dict[str, Any]:
    names = [str(name) for name in rng.permutation(NAMES)[: rng.integers(1, 5)]]
    return {
        name: drawn(rng, depth - 1) if depth and rng.integers(2) else jnp.float32(rng.integers(1, 9)) for name in names
    }


def test_each_group_has_a_norm_of_its_own() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        tree = drawn(rng)
        found = norms("grad_norm", tree, None)
        wanted = {
            f"grad_norm/{name}": np.sqrt(sum(float(leaf) ** 2 for leaf in jax.tree.leaves(part)))
            for name, part in tree.items()
        }
        assert len(found) == 1 + len(wanted)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6)


@pytest.mark.parametrize("labels", [(1, "1"), (True, "True"), (1, True), (1.0, 1), (None, "None")])
def test_labels_that_are_written_alike_are_refused(labels: tuple[Any, Any]) -> None:
    params = {"a": jnp.float32(3), "b": jnp.float32(4)}
    groups = dict(zip("ab", labels, strict=True))
    try:
        found = norms("grad_norm", params, groups)
    except NoetherError as error:
        message = str(error)
        assert "written alike" in message or "do not fit" in message
    else:
        assert {name: float(value) for name, value in found.items()} == {
            "grad_norm": 5.0,
            f"grad_norm/{labels[0]}": 3.0,
            f"grad_norm/{labels[1]}": 4.0,
        }


def test_an_output_named_as_an_optimizers_number_is_refused() -> None:
    params = {"a": jnp.float32(3), "a/b": jnp.float32(4)}
    config = {"every_n_updates": 1, "patterns": ["norm"]}
    optimizer = record_optimizer(optax.sgd(0.1), config, {"loss": jnp.float32(0)})
    state = optimizer.init(params)
    for name in ("grad_norm", "grad_norm/a/b", "update_norm/a", "param_norm"):
        with pytest.raises(UpdateOutputError, match=r"update_outputs has .*give these outputs other names"):
            optimizer.update(params, state, params, update_outputs={name: jnp.float32(1)})
    with pytest.raises(UpdateOutputError, match=r"the example has 'grad_norm/a/b'"):
        record_optimizer(optax.sgd(0.1), config, {"grad_norm": {"a": {"b": jnp.float32(0)}}}).init(params)


def test_statistics_of_one_key_are_refused() -> None:
    values = {"a": jnp.ones(2), "a/b": jnp.zeros(2)}
    with pytest.raises(UpdateOutputError, match=r"two statistics have the key 'a/b/max'"):
        intermediate_outputs(values, None, {"max": jnp.max, "b/max": jnp.max})
