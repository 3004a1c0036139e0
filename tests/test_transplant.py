"""Check that transplanting names the part that a planted bug is in, with steps of real frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from benchmarks.porting_bugs.families import FAMILIES
from benchmarks.porting_bugs.record import record
from benchmarks.porting_bugs.steps import step_function
from benchmarks.porting_bugs.truth import Framework
from noether_core.parity.between_runs import transplant
from noether_core.parity.divergence import Comparison, MemoryTraining, compare

MLP = {bug.id: bug for bug in FAMILIES["mlp"].bugs}
# of each part, bugs that show in another place than the part itself
CASES = [
    "mlp-input-scale",
    "mlp-kernel-not-transposed",
    "mlp-tanh-gelu",
    "mlp-gradient-stopped",
    "mlp-epsilon-inside",
    "mlp-amsgrad",
    "mlp-torch-loss-sum",
]
# a parameter that one side alone has, clipping before gradients are summed, and what no single step shows
TRANSFORMER = ["transformer-untied", "transformer-clip-before-averaging", "transformer-clip-epsilon"]


@cache
def recorded(framework: Framework, bug: str | None = None, seed: int = 0) -> MemoryTraining:
    return record("mlp", framework, bug, seed, updates=5)


@pytest.mark.parametrize("name", TRANSFORMER)
def test_the_first_stage_that_a_step_gives_otherwise_is_the_culprit(name: str) -> None:
    bug = {bug.id: bug for bug in FAMILIES["transformer"].bugs}[name]
    a, b = record("transformer", "torch"), record("transformer", "jax", name)
    steps = step_function("transformer", "torch"), step_function("transformer", "jax", name)
    assert transplant(*steps, a, b, compare(a, b)).culprit in bug.culprits


def other(framework: Framework) -> Framework:
    return "torch" if framework == "jax" else "jax"


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", CASES)
def test_the_culprit_is_the_part_with_the_bug(name: str) -> None:
    bug = MLP[name]
    a, b = recorded(other(bug.side)), recorded(bug.side, name)
    found = compare(a, b)
    steps = step_function("mlp", other(bug.side)), step_function("mlp", bug.side, name)
    said = transplant(*steps, a, b, found)
    assert said.culprit in bug.culprits
    assert found.first is not None
    assert said.update == found.first.update
    assert said.sentence.startswith(f"At update {said.update} the culprit is")
    assert said.swaps[0].closes  # its own
    assert [swap.closes for swap in said.swaps[1:]] == [False] * (len(said.swaps) - 2) + [said.culprit != "optimizer"]


def by_norm(limit: float, grads: Mapping[str, Any]) -> dict[str, Any]:
    norm = np.sqrt(sum(float((grad.astype(np.float64) ** 2).sum()) for grad in grads.values()))
    return {name: np.float32(min(1.0, limit / norm)) * grad for name, grad in grads.items()}


class NumpyTraining:
    """Fit a line with clipping and momentum, and with a state that `is_forgetful` ones lose at each second step."""

    def __init__(self, limit: float | None, is_forgetful: bool = False) -> None:
        self.limit, self.is_forgetful = limit, is_forgetful

    def step(self, batch: Any, params: Any, opt_state: Any, buffers: Any, update: int, grads: Any = None) -> Any:
        x, y = batch["x"], batch["y"]
        error = x @ params["w"] - y
        own = {"w": x.T @ error * np.float32(2 / len(x))} if grads is None else grads
        clipped = own if self.limit is None else by_norm(self.limit, own)
        trace = {"w": opt_state.get("trace/w", np.zeros_like(params["w"])) * np.float32(0.9) + clipped["w"]}
        keys = {"act/error": error, "loss/total": np.mean(error**2), "grad/w": own["w"]}
        keys |= {} if self.limit is None else {"clip/w": clipped["w"]}
        return keys | {"update/w": np.float32(-0.01) * trace["w"], "opt/trace/w": trace["w"]}

    def run(self, label: str, seed: int = 0) -> MemoryTraining:
        generator = np.random.default_rng(seed)
        params, state = {"w": generator.normal(size=3).astype(np.float32)}, {}
        arrays = {}
        for update in range(1, 5):
            batch = {"x": generator.normal(size=(8, 3)).astype(np.float32), "y": np.ones(8, np.float32)}
            if self.is_forgetful and update % 2:
                state = {}
            keys = self.step(batch, params, state, {}, update)
            given = {**{f"data/{name}": array for name, array in batch.items()}, "param/w": params["w"]}
            arrays[update] = given | keys
            params, state = {"w": params["w"] + keys["update/w"]}, {"trace/w": keys["opt/trace/w"]}
        return MemoryTraining(label, "", arrays)


@pytest.mark.parametrize(
    ("one", "two", "culprit"),
    [
        (NumpyTraining(0.5), NumpyTraining(0.4), "clip"),
        (NumpyTraining(0.5), NumpyTraining(None), "clip"),
        (NumpyTraining(None), NumpyTraining(0.5), "clip"),
        (NumpyTraining(0.5), NumpyTraining(0.5, is_forgetful=True), "optimizer state"),
    ],
)
def test_clipping_and_what_is_carried_from_step_to_step(one: NumpyTraining, two: NumpyTraining, culprit: str) -> None:
    a, b = one.run("a"), two.run("b")
    said = transplant(one.step, two.step, a, b, compare(a, b))
    assert said.culprit == culprit


def test_where_nothing_differs_there_is_nothing_to_transplant() -> None:
    training = NumpyTraining(0.5)
    a, b = training.run("a"), training.run("b")
    said = transplant(training.step, training.step, a, b, compare(a, b))
    assert (said.culprit, said.swaps) == (None, ())
    assert said.sentence.startswith("There is nothing to transplant: Same through update 4")


def test_a_step_function_that_is_not_the_trainings_is_said_to_be() -> None:
    one, two = NumpyTraining(0.5), NumpyTraining(0.4)
    a, b = one.run("mine"), two.run("theirs")
    said = transplant(NumpyTraining(0.1).step, two.step, a, b, compare(a, b))
    assert said.culprit is None
    assert "its step function does not give what mine recorded" in said.sentence


def test_arrays_that_were_not_kept_are_named() -> None:
    training = NumpyTraining(0.5)
    a, b = training.run("a"), NumpyTraining(0.4).run("b")
    for keys in b.arrays.values():
        del keys["data/x"], keys["data/y"]
    found: Comparison = compare(a, b)
    said = transplant(training.step, training.step, a, b, found)
    assert said.culprit is None
    assert "b has no arrays of data at update 1" in said.sentence


@pytest.mark.parametrize(("stage", "culprit"), [("act", "forward"), ("loss", None)])
def test_a_step_that_does_not_return_what_differs_is_told_of(stage: str, culprit: str | None) -> None:
    training = NumpyTraining(None)
    a, b = training.run("a"), training.run("b")
    key = next(key for key in b.arrays[1] if key.startswith(stage))
    b.arrays[1][key] = 2 * b.arrays[1][key]

    def step(*args: Any, **options: Any) -> Any:
        return {key: value for key, value in training.step(*args, **options).items() if not key.startswith(stage)}

    said = transplant(step, step, a, b, compare(a, b))
    assert said.culprit == culprit
    assert f"b's step function does not return {key if stage == 'loss' else 'it'}" in said.sentence


def test_a_batch_of_the_other_training_keeps_the_dtype_of_ones_own_labels() -> None:
    def step(batch: Mapping[str, Any], params: Mapping[str, Any], *_: Any, grads: Any = None) -> dict[str, Any]:
        assert batch["labels"].dtype == np.int64, "an expected target is int64"
        return {"loss/total": (params["w"] * batch["labels"]).sum()}

    def training(label: str, labels: np.ndarray[Any, Any]) -> MemoryTraining:
        held = {"data/labels": labels, "param/w": np.ones(3)}
        return MemoryTraining(label, label, {1: {**held, "loss/total": np.float64(labels.sum())}})

    a, b = training("jax", np.array([1, 2, 3], np.int32)), training("torch", np.array([1, 2, 4], np.int64))
    said = transplant(
        lambda batch, *rest, **named: step({"labels": batch["labels"].astype(np.int64)}, *rest, **named),
        step,
        a,
        b,
        compare(a, b),
    )
    assert said.culprit == "batch"
