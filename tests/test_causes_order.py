"""Find the activation that was computed first, of two trainings in JAX, whose compiled functions sort activations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from noether_core.parity.between_runs import compare_trainings
from noether_core.parity.divergence import MemoryTraining

Array = np.ndarray[Any, Any]


def relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def training(
    label: str, bend: Callable[[Array], Array] = relu, scale: float = 1.0, framework: str = "jax"
) -> MemoryTraining:
    """Compute stem, middle, a sum of both, and out, which names put in the order add, middle, out, stem."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(6, 5)).astype(np.float32)
    params = {f"{name}.weight": generator.normal(size=(5, 5)).astype(np.float32) for name in ("stem", "middle", "out")}
    stem = np.float32(scale) * (x @ params["stem.weight"].T)
    middle = bend(stem) @ params["middle.weight"].T
    add = middle + stem
    acts = {"add": add, "middle": middle, "out": relu(add) @ params["out.weight"].T, "stem": stem}
    if framework == "torch":
        acts = {name: acts[name] for name in ("stem", "middle", "add", "out")}
    arrays = {"data/x": x, **{f"param/{name}": value for name, value in params.items()}}
    return MemoryTraining(label, framework, {1: arrays | {f"act/{name}": value for name, value in acts.items()}})


@pytest.mark.parametrize(
    ("wrong", "key", "cause"),
    [
        ({"scale": 1.5}, "act/stem", "forward-other"),
        ({"bend": np.tanh}, "act/middle", "activation-function"),
    ],
)
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_first_is_what_no_other_difference_explains(
    wrong: dict[str, Any], key: str, cause: str, framework: str
) -> None:
    found = compare_trainings(training("right"), training("wrong", **wrong, framework=framework))
    assert found.first is not None
    assert found.first.key == key
    assert key in found.sentence
    assert cause in [each.id for each in found.causes]
    said = [warning for warning in found.warnings if "sorted by name" in warning]
    assert [key in warning for warning in said] == [True] * (framework == "jax")


def test_where_inputs_tell_nothing_the_order_of_names_is_said_to_be_one() -> None:
    right, wrong = training("right"), training("wrong", scale=1.5)
    for each in (right, wrong):
        each.arrays[1] = {key: value for key, value in each.arrays[1].items() if not key.startswith("param/")}
        each.arrays[1]["act/add"] = np.sin(each.arrays[1]["act/add"]) * np.float32(2)
    found = compare_trainings(right, wrong)
    assert found.first is not None
    assert found.first.key == "act/add"
    assert any("act/add is named first by its name alone" in warning for warning in found.warnings)


def test_a_module_returns_after_what_it_holds_and_numbers_count() -> None:
    generator = np.random.default_rng(0)
    acts = {f"act/layers.{name}": generator.normal(size=(4, 3)) for name in ("10", "2", "2.norm")}
    a = MemoryTraining("a", "jax", {1: acts})
    b = MemoryTraining("b", "jax", {1: {key: 2 * value for key, value in acts.items()}})
    found = compare_trainings(a, b)
    assert found.first is not None
    assert found.first.key == "act/layers.2.norm"
