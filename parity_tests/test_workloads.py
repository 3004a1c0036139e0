"""Train the examples' workloads for an epoch in each framework, and replay what was recorded through both front-ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import noether_jax
import noether_torch
from examples.airfoil import data as airfoil_data
from examples.airfoil import train_jax as airfoil_jax
from examples.airfoil import train_torch as airfoil_torch
from examples.digits import data as digits_data
from examples.digits import train_jax as digits_jax
from examples.digits import train_torch as digits_torch
from noether_core import read_run
from noether_core.parity import differing_files, read_recording, replay
from noether_core.run import Run

FRONTENDS: dict[str, type[Run]] = {"jax": noether_jax.Run, "torch": noether_torch.Run}
MODULES: dict[tuple[str, str], ModuleType] = {
    ("digits", "jax"): digits_jax,
    ("digits", "torch"): digits_torch,
    ("airfoil", "jax"): airfoil_jax,
    ("airfoil", "torch"): airfoil_torch,
}
DATA: dict[str, ModuleType] = {"digits": digits_data, "airfoil": airfoil_data}
OTHER_SPLITS = {"updates_per_epoch": 5, "effective_batch_size": 50, "accumulation_steps": 3}

workloads = pytest.mark.parametrize("workload", DATA)
origins = pytest.mark.parametrize("origin", FRONTENDS)


@dataclass(frozen=True)
class Trained:
    """Hold where a training's run and recording are."""

    path: Path
    recording: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that trains a workload in a framework, once, for an epoch."""

    @cache
    def train(workload: str, framework: str) -> Trained:
        root = tmp_path_factory.mktemp(f"{workload}_{framework}")
        MODULES[workload, framework].train(root / "run", epochs=1, record=root / "outputs.safetensors")
        return Trained(root / "run", root / "outputs.safetensors")

    return train


def settings(workload: str) -> dict[str, int]:
    """Return the arguments of the trainings' own runs."""
    data = DATA[workload]
    return {
        "updates_per_epoch": data.UPDATES_PER_EPOCH,
        "effective_batch_size": data.EFFECTIVE_BATCH_SIZE,
        "accumulation_steps": data.ACCUMULATION_STEPS,
    }


def callbacks(workload: str) -> Path:
    return Path(str(MODULES[workload, "jax"].CALLBACKS))


# ------------------------------------------------------------------ the same outputs through both front-ends


@workloads
@origins
def test_both_front_ends_write_what_the_training_wrote(
    trained: Any, tmp_path: Path, workload: str, origin: str
) -> None:
    training = trained(workload, origin)
    for name, run_class in FRONTENDS.items():
        again = tmp_path / f"{name}.safetensors"
        replay(training.recording, run_class(tmp_path / name, callbacks(workload), **settings(workload), record=again))
        assert differing_files(training.path, tmp_path / name) == ([], {"digits": 2, "airfoil": 3}[workload])
        assert again.read_bytes() == training.recording.read_bytes()
    series = read_run(tmp_path / "jax").series
    assert sum(len(points) for points in series.values()) >= 30
    assert all(np.isfinite(points.value).all() for points in series.values())


@workloads
def test_both_front_ends_agree_however_the_steps_are_split(trained: Any, tmp_path: Path, workload: str) -> None:
    """Other epochs, samples and accumulation steps, so other intervals.

    The last one ends early, for the digits in an update's middle, where `last` has nothing to save.
    """
    training = trained(workload, "jax")
    for name, run_class in FRONTENDS.items():
        replay(training.recording, run_class(tmp_path / name, callbacks(workload), **OTHER_SPLITS))
    files = {"digits": 1 + 2, "airfoil": 1 + 2 * 4}[workload]
    assert differing_files(tmp_path / "jax", tmp_path / "torch") == ([], files)
    series, trained_series = read_run(tmp_path / "jax").series, read_run(training.path).series
    assert series.keys() == trained_series.keys()
    assert list(series["loss/E1"]) != list(trained_series["loss/E1"])


ALL = ["mean", "sum", "min", "max", "std", "var", "count"]


@workloads
def test_both_front_ends_agree_on_every_reduction_of_every_output(trained: Any, tmp_path: Path, workload: str) -> None:
    training = trained(workload, "jax")
    configs = [
        {"every_n_updates": 4, "patterns": [""], "reduce": ALL, "save_output": True},
        {"every_n_epochs": 1, "patterns": [""], "reduce": ["last", "stack"], "log_output": False, "save_output": True},
        {
            "every_n_updates": 7,
            "patterns": ["loss"],
            "weight": "gradient_norm",
            "reduce": ["mean", "std"],
            "id": "weighted",
        },
    ]
    for name, run_class in FRONTENDS.items():
        replay(training.recording, run_class(tmp_path / name, configs, **settings(workload)))
    differing, compared = differing_files(tmp_path / "jax", tmp_path / "torch")
    assert differing == []
    assert compared == 1 + 6 + 1
    outputs = next(read_recording(training.recording))
    assert outputs is not None
    logged = {key.partition("/mean/U4")[0] for key in read_run(tmp_path / "jax").series if key.endswith("/mean/U4")}
    assert logged == set(outputs)


# ------------------------------------------------------------------ the trainings side by side


@workloads
def test_both_frameworks_start_from_the_same_weights(workload: str) -> None:
    weights = DATA[workload].initial_weights()
    name = {"digits": "DigitNetwork", "airfoil": "Surrogate"}[workload]
    in_jax = nnx.to_pure_dict(nnx.state(getattr(MODULES[workload, "jax"], name)(weights), nnx.Param))
    in_torch = getattr(MODULES[workload, "torch"], name)(weights).state_dict()
    assert len(in_torch) == len(weights) == len(jax.tree.leaves(in_jax))
    for key, weight in weights.items():
        layer, parameter = key.split(".")
        here, there = np.asarray(in_jax[layer][parameter]), in_torch[key.replace("kernel", "weight")].numpy().T
        assert here.dtype == there.dtype == weight.dtype == np.float32
        assert here.tobytes() == np.ascontiguousarray(there).tobytes() == weight.tobytes()


@workloads
def test_the_first_update_s_outputs_agree_closely(trained: Any, workload: str) -> None:
    """Before any weight has changed, the frameworks differ by the rounding of one pass alone: a few float32 ulps."""
    steps = DATA[workload].ACCUMULATION_STEPS
    recordings = [list(read_recording(trained(workload, framework).recording)) for framework in FRONTENDS]
    assert len(recordings[0]) == len(recordings[1]) == steps * DATA[workload].UPDATES_PER_EPOCH
    for in_jax, in_torch in zip(*(recording[:steps] for recording in recordings), strict=True):
        assert in_jax is not None
        assert in_torch is not None
        assert set(in_jax) == set(in_torch)
        for key, value in in_jax.items():
            other = in_torch[key]
            assert (value.dtype, value.shape) == (other.dtype, other.shape)
            if value.dtype.kind == "i":
                assert value.tobytes() == other.tobytes()
            else:
                np.testing.assert_allclose(other, value, rtol=1e-5, atol=2e-6, err_msg=key)


@workloads
def test_after_the_first_update_they_still_do(trained: Any, workload: str) -> None:
    """An optimizer with another learning rate or bias correction would show here; Adam forgives a gradient's scale."""
    steps = DATA[workload].ACCUMULATION_STEPS
    in_jax, in_torch = (
        [step["loss"] for step in read_recording(trained(workload, framework).recording) if step]
        for framework in FRONTENDS
    )
    np.testing.assert_allclose(in_torch[steps : 3 * steps], in_jax[steps : 3 * steps], rtol=1e-4)
    assert np.mean(in_jax[-steps:]) < 0.8 * np.mean(in_jax[:steps])


@workloads
def test_a_training_is_the_same_every_time(trained: Any, tmp_path: Path, workload: str) -> None:
    again = tmp_path / "outputs.safetensors"
    MODULES[workload, "jax"].train(tmp_path / "run", epochs=1, record=again)
    assert again.read_bytes() == trained(workload, "jax").recording.read_bytes()
    assert differing_files(tmp_path / "run", trained(workload, "jax").path)[0] == []
