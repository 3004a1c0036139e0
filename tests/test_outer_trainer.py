"""What an outer trainer may decide in the run's place: where it starts, and where updates and epochs end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from noether_core import ScheduleError, read_run
from noether_torch import Run
from noether_torch.state import as_arrays, as_json, as_tensors
from noether_torch.trainer_run import TrainerRun

CONFIG = {"every_n_updates": 1, "keys": ["loss"], "reduce": ["count", "last"]}


def test_updates_end_early_or_late_where_they_are_said_to(tmp_path: Path) -> None:
    ends = [True, False, True, False, False, False, True]
    with Run(tmp_path, [CONFIG], accumulation_steps=2) as run:
        for step, ends_update in enumerate(ends):
            run.step({"loss": step}, ends_update=ends_update)
    series = read_run(tmp_path).series
    assert [point.value for point in series["loss/count/U1"]] == [1, 2, 4]
    assert [point.value for point in series["loss/last/U1"]] == [0, 2, 6]


def test_epochs_end_where_they_are_said_to(tmp_path: Path) -> None:
    epochs = {"every_n_epochs": 1, "keys": ["loss"], "reduce": "count"}
    with Run(tmp_path, [epochs], updates_per_epoch=2) as run:
        for ends_epoch in (True, False, False, True):
            run.step({"loss": 1.0}, ends_epoch=ends_epoch)
    assert [(point.epoch, point.value) for point in read_run(tmp_path).series["loss/count/E1"]] == [(1, 1), (2, 3)]


def test_a_run_starts_where_others_left_off(tmp_path: Path) -> None:
    arguments = {"updates_per_epoch": 4, "effective_batch_size": 8, "start": {"update": 6}, "end": {"update": 8}}
    with Run(tmp_path, [{"every_n_updates": 4, "keys": ["loss"], "reduce": "count"}], **arguments) as run:
        while not run.is_finished:
            run.step({"loss": 1.0})
    assert read_run(tmp_path).entries == [{"epoch": 2, "update": 8, "sample": 64, "loss/count/U4": 2}]


def test_a_start_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"start=\{'step': 3\}; expected one of \{'epoch': n\}"):
        Run(tmp_path, [CONFIG], start={"step": 3})


@pytest.mark.parametrize("convert", [as_tensors, as_json])
@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint16", "uint32", "int64", "uint64", "float16", "float64"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_a_state_comes_back_to_the_bit(convert: object, dtype: str, shape: tuple[int, ...]) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (*shape, np.dtype(dtype).itemsize)).astype("uint8")
    array = np.frombuffer(bits.tobytes(), dtype).reshape(shape)
    state = {"a": {"b": array}, "list": [1, "two", None], "number": np.int64(3)}
    back = as_arrays(convert(state))  # type: ignore[operator]
    assert (back["a"]["b"].dtype, back["a"]["b"].shape, back["a"]["b"].tobytes()) == (dtype, shape, array.tobytes())
    assert back["list"] == [1, "two", None]
    assert (back["number"], type(back["number"])) == (3, int)


def test_tensors_of_a_state_share_nothing_with_it() -> None:
    array = np.zeros(2)
    tensors = as_tensors({"a": array})
    array[:] = 1
    assert torch.equal(tensors["a"], torch.zeros(2, dtype=torch.float64))


def test_an_entry_has_the_epoch_that_ended_after_it(tmp_path: Path) -> None:
    configs = [{"every_n_updates": 1, "keys": ["loss"]}]
    with TrainerRun(tmp_path, configs) as run:
        for ends_epoch in (False, True, False):
            run.step({"loss": 1.0}, ends_epoch=False)
            if ends_epoch:
                run.end_epoch()
        assert [entry["epoch"] for entry in run.log_writer.log_entries] == [0, 1, 1]
    assert [entry["epoch"] for entry in read_run(tmp_path).entries] == [0, 1, 1]


def test_an_end_is_an_estimate_where_a_trainer_drives(tmp_path: Path) -> None:
    with TrainerRun(tmp_path, [{"every_n_updates": 1, "keys": ["loss"]}], end={"update": 1}) as run:
        for _ in range(3):
            run.step({"loss": 1.0})
    assert read_run(tmp_path).entries[-1]["update"] == 3


def test_what_a_trainer_evaluated_gives_way_to_what_was_tracked_and_logged(tmp_path: Path) -> None:
    with TrainerRun(tmp_path, [{"every_n_updates": 1, "keys": ["loss"]}]) as run:
        run.step({"loss": 1.0})
        with run.evaluate():
            run.step({"loss": 2.0})
            run.log({"mine": 3.0})
            assert run._evaluation is not None
            run._evaluation.give_way({"loss": 9.0, "mine": torch.tensor(9.0), "other": torch.tensor(4.0)})
    entry = read_run(tmp_path).entries[-1]
    assert {key: value for key, value in entry.items() if key.startswith("eval/")} == {
        "eval/loss": 2.0,
        "eval/mine": 3.0,
        "eval/other": 4.0,
    }
