"""A run goes on from a checkpoint, in either framework, as if it had not stopped."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hook_cases import FRONT_ENDS, NAN, array, each_front_end, every, logged, saved_and_logged

import noether_jax
import noether_torch
from noether_core import read_run
from noether_torch.state import as_arrays

LONG = {
    "every_n_updates": 4,
    "keys": ["loss", "field", "flag"],
    "patterns": ["grad"],
    "reduce": {"loss": ["mean", "last"], "field": ["mean", "last"], "flag": "last"},
    "log_output": False,
    "save_output": True,
    "missing": "skip",
}
LOGGED = [
    {"every_n_updates": 3, "keys": ["loss"], "patterns": ["grad"], "reduce": ["mean", "last"]},
    {"every_n_samples": 50, "keys": ["loss"], "nonfinite": "skip"},
    {"every_n_epochs": 1, "keys": ["loss", "count"], "id": "epochs", "save_output": True},
]


def outputs_of(front_end: Any, at: int) -> dict[str, Any]:
    rng = np.random.default_rng(at)
    outputs = {
        "loss": array(front_end, NAN if at == 9 else rng.normal()),
        "field": array(front_end, rng.normal(size=(2, 3)), ml_dtypes.bfloat16),
        "flag": array(front_end, at % 3 == 0, np.bool_),
        "count": array(front_end, rng.integers(2**50), np.int64),
    }
    if at % 4 == 1:
        del outputs["flag"]
        outputs["grad/w"] = rng.normal()
    return outputs | {f"grad/{at % 2}": array(front_end, rng.normal(), np.float64)}


def new_run(front_end: Any, path: Path) -> Any:
    return front_end.Run(path, [LONG, *LOGGED], updates_per_epoch=5, effective_batch_size=8, accumulation_steps=2)


def plain(state: Any) -> Any:
    """Give back the state as it comes from a JSON file beside a NumPy archive."""
    arrays: list[np.ndarray[Any, Any]] = []

    def out(value: Any) -> Any:
        if isinstance(value, dict):
            assert all(type(name) is str for name in value)
            return {"dict": {name: out(item) for name, item in value.items()}}
        if isinstance(value, list):
            return {"list": [out(item) for item in value]}
        if isinstance(value, torch.Tensor):  # PyTorch's states have them for arrays
            value = value.numpy()
        if isinstance(value, np.ndarray):
            assert type(value) is np.ndarray
            assert not value.dtype.hasobject
            arrays.append(value)
            return {"array": len(arrays) - 1}
        assert value is None or type(value) in (int, float, bool, str), f"{value!r} is no plain value"
        return {"value": value}

    def back(value: Any) -> Any:
        ((kind, held),) = value.items()
        if kind == "dict":
            return {name: back(item) for name, item in held.items()}
        if kind == "list":
            return [back(item) for item in held]
        return read[f"arr_{held}"] if kind == "array" else held

    text = json.dumps(out(state), allow_nan=False)
    archive = io.BytesIO()
    np.savez(archive, *arrays)
    archive.seek(0)
    with np.load(archive, allow_pickle=False) as read:
        return back(json.loads(text))


def uninterrupted(path: Path, steps: int) -> dict[str, bytes]:
    with new_run(noether_jax, path) as run:
        for at in range(steps):
            run.step(outputs_of(noether_jax, at))
    return saved_and_logged([path])


def interrupted(path: Path, cuts: Sequence[int], steps: int, through: Any = lambda state: state) -> dict[str, bytes]:
    """Train to each cut in turn, in JAX, PyTorch, JAX and so on, going on from the state of the one before."""
    state, start, paths = None, 0, []
    for number, stop in enumerate([*cuts, steps]):
        front_end = FRONT_ENDS[number % 2]
        paths.append(path / str(number))
        run = new_run(front_end, paths[-1])
        run.start()
        if state is not None:
            run.load_state_dict(through(state))
        for at in range(start, stop):
            run.step(outputs_of(front_end, at))
        start, state = stop, run.state_dict()
        if stop < steps:
            run.log_writer.close()
        else:
            run.finish()
    return saved_and_logged(paths)


@pytest.mark.parametrize("cuts", [(5, 18), (1, 2), (7, 9), (12, 13), (0, 23)])
def test_a_run_that_goes_on_in_the_other_framework_and_back_writes_the_same(
    cuts: tuple[int, int], tmp_path: Path
) -> None:
    expected = uninterrupted(tmp_path / "whole", 26)
    assert len(expected) == 8
    assert interrupted(tmp_path / "cut", cuts, 26) == expected


def test_the_state_is_plain_and_survives_json_and_a_numpy_archive(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "whole", 26)
    assert interrupted(tmp_path / "cut", (5, 18), 26, through=plain) == expected


@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.int64,
        np.bool_,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e5m2,
    ],
)
@each_front_end
def test_a_last_value_survives_a_numpy_archive(front_end: Any, dtype: Any, tmp_path: Path) -> None:
    config = every(1, reduce="last", log_output=False, save_output=True, missing="skip")
    first = front_end.Run(tmp_path, [config], accumulation_steps=2)
    first.start()
    first.step({"loss": array(front_end, [0, 1, 3], dtype)})
    state = plain(first.state_dict())
    first.log_writer.close()  # and no more: as if it were killed
    with front_end.Run(tmp_path, [config], accumulation_steps=2) as second:
        second.load_state_dict(state)
        second.step({})
    (file,) = read_run(tmp_path).arrays
    found = file.load()["loss"]
    assert (found.dtype, found.tobytes()) == (dtype, np.asarray([0, 1, 3], dtype).tobytes())


def test_a_state_is_the_same_from_both_front_ends(tmp_path: Path) -> None:
    states = []
    for front_end in FRONT_ENDS:
        run = new_run(front_end, tmp_path / front_end.__name__)
        run.start()
        for at in range(5):
            run.step(outputs_of(front_end, at))
        state = run.state_dict()
        del state["start"]  # each has an id
        states.append(state)
        run.log_writer.close()
    np.testing.assert_equal(states[0], states[1])


@each_front_end
def test_a_state_does_not_change_as_training_goes_on(front_end: Any, tmp_path: Path) -> None:
    with new_run(front_end, tmp_path) as run:
        for at in range(3):
            run.step(outputs_of(front_end, at))
        state = run.state_dict()
        kept = copy.deepcopy(state)
        for at in range(3, 12):
            run.step(outputs_of(front_end, at))
        np.testing.assert_equal(as_arrays(state), as_arrays(kept))


@each_front_end
def test_a_pattern_that_matched_before_the_checkpoint_is_not_warned_about(front_end: Any, tmp_path: Path) -> None:
    first = front_end.Run(tmp_path, [every(2, patterns=["loss"])])
    first.start()
    first.step({"loss": 1.0})
    state = first.state_dict()
    first.log_writer.close()  # and no more: as if it were killed
    with front_end.Run(tmp_path, [every(2, patterns=["loss"])]) as second:
        second.load_state_dict(state)
        second.step({"lr": 1.0})
    assert logged(tmp_path, "loss/U2") == [(2, 1.0)]


KINDS = [
    {"every_n_updates": 4, "keys": ["loss"], "reduce": ["mean", "last", "std", "stack", "max"], "save_output": True},
    {"every_n_updates": 4, "keys": ["weighed"], "weight": "loss", "id": "weighed"},
    {"kind": "OnlineLossCallback", "every_n_updates": 4},
    {"kind": "LearningRateCallback", "every_n_updates": 4, "key": "lr"},
    {"kind": "BestMetricCallback", "every_n_updates": 4, "source_metric_key": "loss/mean/U4", "higher_is_better": True},
    {
        "kind": "MetricEarlyStopCallback",
        "every_n_updates": 4,
        "source_metric_key": "loss/mean/U4",
        "higher_is_better": False,
    }
    | {"patience": 3},
    {"kind": "ThroughputCallback", "every_n_updates": 4},
    {"kind": "ProgressCallback", "every_n_updates": 4},
]


def _of_every_kind(run: Any, at: int, dtype: torch.dtype) -> None:
    loss = torch.tensor(float(at % 5), dtype=dtype)
    run.step({"loss": loss, "weighed": torch.tensor([1.0, at]), "lr": 0.1 / (1 + at)}, losses={"a": loss})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e5m2, torch.uint8])
@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_torch_saves_and_loads_every_class_of_state_without_loading_code(
    cut: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    with noether_torch.Run(tmp_path / "whole", KINDS, effective_batch_size=1) as run:
        for at in range(9):
            _of_every_kind(run, at, dtype)
    run = noether_torch.Run(tmp_path / "cut", KINDS, effective_batch_size=1)
    run.start()
    for at in range(cut):
        _of_every_kind(run, at, dtype)
    for callback in run.callbacks:
        torch.save(callback.state_dict(), tmp_path / "callback.pt")
        callback.load_state_dict(torch.load(tmp_path / "callback.pt", weights_only=True))
    torch.save(run.state_dict(), tmp_path / "state.pt")
    run.log_writer.close()  # and no more: as if it were killed
    with noether_torch.Run(tmp_path / "cut", KINDS, effective_batch_size=1) as run:
        run.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for at in range(cut, 9):
            _of_every_kind(run, at, dtype)
    series = [read_run(tmp_path / way).series for way in ("whole", "cut")]
    assert series[0].keys() == series[1].keys()
    for key in series[0]:
        if not key.startswith("profiling/"):
            assert series[0][key].update.tolist() == series[1][key].update.tolist()
            assert repr(series[0][key].value.tolist()) == repr(series[1][key].value.tolist()), key
