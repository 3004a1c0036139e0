"""Check the porting bugs that the benchmark plants: correct pairs agree, each bug shows first where its truth says."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("jax")
pytest.importorskip("torch")

from benchmarks.porting_bugs.families import BUGS, FAMILIES, WAYS
from benchmarks.porting_bugs.first_change import BOUND, distance, first_change
from benchmarks.porting_bugs.record import FRAMEWORKS, nudged, record, twin
from benchmarks.porting_bugs.steps import step_function
from noether_core.parity.divergence.causes.names import CAUSES
from noether_core.parity.divergence.training import STAGES, MemoryTraining, stage_of

NULL = ("conv1.bias", "conv2.bias", "qkv.bias")
"""Gradients that are zero but for rounding, whole or in part: before a batch norm, and of attention's keys."""


def apart(one: MemoryTraining, other: MemoryTraining, update: int) -> dict[str, float]:
    return {key: distance(one.array(update, key), other.array(update, key)) for key in one.keys(update)}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.sweep(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_correct_pair_computes_the_same_but_for_roundings(family: str, seed: int) -> None:
    torch, jax = (record(family, framework, seed=seed) for framework in FRAMEWORKS)
    assert torch.updates() == jax.updates() == list(range(1, 13))
    for update in torch.updates():
        assert torch.keys(update) == jax.keys(update)
        found = {key: value for key, value in apart(torch, jax, update).items() if not key.endswith(NULL)}
        assert np.median(list(found.values())) < 1e-6
    first = {key: value for key, value in apart(torch, jax, 1).items() if not key.endswith(NULL)}
    assert max(value for key, value in first.items() if stage_of(key) in ("act", "grad", "clip")) < 1e-6
    assert max(value for key, value in first.items() if stage_of(key) in ("loss", "update", "opt")) < 5e-5
    assert all(value == 0 for key, value in first.items() if stage_of(key) in ("data", "param"))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_stages_are_recorded_with_finite_numbers_and_training_goes_on(family: str) -> None:
    training = record(family, "torch")
    stages = {stage_of(key) for key in training.keys(1)}
    assert stages == set(STAGES) - (set() if family == "transformer" else {"clip"})
    for update in training.updates():
        for key in training.keys(update):
            assert np.isfinite(training.array(update, key)).all()
    moved = [distance(training.array(1, key), training.array(12, key)) for key in training.keys(1) if "param/" in key]
    assert min(moved) > 1e-4


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_differs_by_roundings_alone_and_keeps_the_rows_places(family: str, framework: str) -> None:
    base, other = record(family, framework), twin(family, framework, 1)
    found = apart(base, other, 1)
    assert all(value == 0 for key, value in found.items() if key.startswith("data/"))
    assert all(0 < value < 1e-6 for key, value in found.items() if key.startswith("param/"))
    assert 0 < max(value for key, value in found.items() if key.startswith("act/")) < 1e-5


def test_nudging_leaves_zeros_and_moves_the_rest_by_one_float() -> None:
    weights = {"w": np.array([1.0, 0.0, -3.0, 1e-30], np.float32)}
    near = nudged(weights, 1)["w"]
    assert near[1] == 0
    moved = np.abs(near.view(np.int32) - weights["w"].view(np.int32))
    assert moved.tolist() == [1, 0, 1, 1]


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", BUGS)
def test_a_bug_shows_first_where_its_truth_says(name: str) -> None:
    bug = BUGS[name]
    # where clipping adds 1e-6 to a norm of 2.8, gradients differ by 4e-7, and all before is the same to the last bit
    bound = 1e-7 if name == "transformer-clip-epsilon" else BOUND
    found = first_change(record(bug.family, bug.side, name), record(bug.family, bug.side), bound)
    assert found is not None
    update, key, _ = found
    assert (update, stage_of(key)) == (bug.first_update, bug.stage)
    assert bug.has_key(key)


@pytest.mark.parametrize("name", WAYS)
def test_another_way_to_compute_the_same_differs_by_roundings(name: str) -> None:
    way = WAYS[name]
    found = apart(record(way.family, way.side, name), record(way.family, way.side), 1)
    assert 0 < max(value for key, value in found.items() if not key.endswith(NULL)) < 2e-5


def test_there_are_enough_bugs_and_each_has_a_name_of_its_own() -> None:
    assert len(BUGS) == sum(len(family.bugs) for family in FAMILIES.values()) >= 60
    assert len({bug.stage for bug in BUGS.values()}) == len(STAGES)
    assert {bug.side for bug in BUGS.values()} == set(FRAMEWORKS)


def test_truths_speak_of_known_causes_and_stages() -> None:
    for bug in BUGS.values():
        assert bug.causes
        assert set(bug.causes) <= set(CAUSES)
        assert {stage_of(pattern) for pattern in bug.keys} == {bug.stage}
        assert bug.family in FAMILIES


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_gives_what_was_recorded_and_takes_gradients_in_place_of_its_own(family: str, framework: str) -> None:
    training, step = record(family, framework), step_function(family, framework)

    def named(update: int, stage: str) -> dict[str, np.ndarray]:
        keys = [key for key in training.keys(update) if stage_of(key) == stage]
        return {key.partition("/")[2]: training.array(update, key) for key in keys}

    for update in (1, 2, 7):
        before = named(update - 1, "opt")
        buffers = {name: value for name, value in before.items() if "/" not in name and name != "count"}
        state = {name: value for name, value in before.items() if name not in buffers}
        inputs = named(update, "data"), named(update, "param"), state, buffers, update
        computed = step(*inputs)
        assert list(computed) == training.keys(update)
        assert all(np.array_equal(computed[key], training.array(update, key)) for key in computed)
        doubled = {name: 2 * value for name, value in named(update, "grad").items()}
        given = step(*inputs, grads=doubled)
        assert not any(stage_of(key) in ("act", "loss") for key in given)
        assert all(np.array_equal(given[f"grad/{name}"], value) for name, value in doubled.items())
