"""The norms and learning rates of an optimizer, as `record_optimizer` tracks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_cases import INJECTED, PARAMS, SCHEDULE, gradients

from noether_core import read_run
from noether_jax import Run, track_outputs
from noether_jax.optax import record_optimizer

LABELS = {"encoder": "slow", "decoder": {"w": "fast", "b": "slow"}}


def recorded_numbers(optimizer: Any, params: Any, grads: Any, **arguments: Any) -> dict[str, float]:
    config = {"every_n_updates": 1, "patterns": ["norm", "learning_rate"]}
    recorder = record_optimizer(optimizer, config, **arguments)
    _, state = jax.jit(recorder.update)(grads, recorder.init(params), params)
    values = track_outputs(config).compute(optax.tree.get(state, "recorded"))
    assert all(value.dtype == np.float32 for value in values.values())
    return {key: value.item() for key, value in values.items()}


GROUPS = [
    ("top-level keys", None, {"encoder": 3, "decoder": 6}),
    ("labels", LABELS, {"slow": 5, "fast": 4}),
    ("a prefix", {"encoder": "one", "decoder": "two"}, {"one": 3, "two": 6}),
    ("a function", lambda tree: jax.tree.map(lambda array: array.ndim, tree), {"1": 5, "2": 4}),
]


@pytest.mark.parametrize(("what", "groups", "sizes"), GROUPS, ids=[case[0] for case in GROUPS])
def test_norms_are_by_group(what: str, groups: Any, sizes: dict[str, int]) -> None:
    found = recorded_numbers(optax.sgd(0.5), PARAMS, gradients(1), groups=groups)
    assert found.pop("param_norm") == np.sqrt(np.float32(7))
    for group, size in sizes.items():
        assert found.pop(f"grad_norm/{group}") == np.float32(2 * np.sqrt(size))
        assert found.pop(f"update_norm/{group}") == np.sqrt(np.float32(size))
        found.pop(f"param_norm/{group}")
    assert found == {"grad_norm": 6.0, "update_norm": 3.0}


def test_norms_are_summed_in_float32_at_least() -> None:
    params = {
        "half": jnp.full(300, 300, jnp.float16),
        "brain": jnp.full(1000, 0.1, jnp.bfloat16),
        "z": jnp.array([3 + 4j]),
    }
    found = recorded_numbers(optax.sgd(0.0), params, params)
    brain = float(jnp.bfloat16(0.1)) * np.sqrt(1000)
    np.testing.assert_allclose(found["grad_norm/half"], 300 * np.sqrt(300), rtol=1e-6)
    np.testing.assert_allclose(found["grad_norm/brain"], brain, rtol=1e-6)
    assert found["grad_norm/z"] == 5.0
    np.testing.assert_allclose(found["param_norm"], np.sqrt(300**3 + brain**2 + 25), rtol=1e-6)
    with jax.enable_x64(True):
        wide = {"w": jnp.full(3, 1e30), "steps": jnp.int32(7), "none": None}
        found = recorded_numbers(optax.identity(), wide, wide)
    assert found["param_norm"] == np.float32(np.sqrt(3) * 1e30)  # whose square no float32 holds
    assert "param_norm/steps" not in found
    assert recorded_numbers(optax.sgd(1.0), jnp.float32(3), jnp.float32(4)) == {
        "grad_norm": 4.0,
        "update_norm": 4.0,
        "param_norm": 3.0,
    }


PARTED = {"slow": INJECTED(0.5), "fast": INJECTED(SCHEDULE)}
RATES = [
    ("injected", INJECTED(0.5), None, {"learning_rate": [0.5, 0.5]}),
    ("an injected schedule", INJECTED(SCHEDULE), None, {"learning_rate": [1.0, 0.75]}),
    ("a schedule", optax.adam(SCHEDULE), SCHEDULE, {"learning_rate": [1.0, 0.75]}),
    ("a number", optax.adam(0.25), 0.25, {"learning_rate": [0.25, 0.25]}),
    (
        "two in a chain",
        optax.chain(INJECTED(0.5), INJECTED(2.0)),
        None,
        {"learning_rate/0": [0.5] * 2, "learning_rate/1": [2.0] * 2},
    ),
    (
        "by group",
        optax.multi_transform(PARTED, LABELS),
        None,
        {"learning_rate/slow": [0.5, 0.5], "learning_rate/fast": [1.0, 0.75]},
    ),
    ("none", optax.adam(0.5), None, {}),
]


@pytest.mark.parametrize(("what", "optimizer", "given", "wanted"), RATES, ids=[case[0] for case in RATES])
def test_the_learning_rate_is_the_one_used(
    what: str, optimizer: Any, given: Any, wanted: dict[str, list[float]]
) -> None:
    config = {"every_n_updates": 1, "patterns": ["learning_rate", "grad_norm"], "reduce": "last"}
    recorder = record_optimizer(optimizer, config, learning_rate=given)
    state, update = recorder.init(PARAMS), jax.jit(recorder.update)
    found: dict[str, list[float]] = {}
    for number in range(2):
        _, state = update(gradients(number), state, PARAMS)
        for key, value in track_outputs(config).compute(optax.tree.get(state, "recorded")).items():
            found.setdefault(key, []).append(value.item())
    assert {key: values for key, values in found.items() if "rate" in key} == wanted


def test_around_multi_steps_an_update_has_one_update_norm(tmp_path: Path) -> None:
    keys = ["loss", "grad_norm", "update_norm", "learning_rate"]
    config = [{"every_n_updates": 2, "keys": keys, "reduce": ["mean", "count"]}]
    with Run(tmp_path, config, accumulation_steps=2) as run:
        accumulated = optax.MultiSteps(INJECTED(SCHEDULE), 2).gradient_transformation()
        optimizer = record_optimizer(accumulated, run, {"loss": jnp.float32(0)})
        state, step = optimizer.init(PARAMS), jax.jit(optimizer.update)
        for number in range(4):
            _, state = step(gradients(number), state, PARAMS, update_outputs={"loss": jnp.float32(number)})
            state = run.step(state)
    (entry,) = read_run(tmp_path).entries
    found = {key: (entry[f"{key}/mean/U2"], entry[f"{key}/count/U2"]) for key in keys}
    assert found == {
        "loss": (1.5, 4),
        "grad_norm": (7.5, 4),  # of 3, 6, 9 and 12
        "update_norm": (pytest.approx((4.5 + 0.75 * 10.5) / 2), 2),
        "learning_rate": (0.875, 2),
    }
