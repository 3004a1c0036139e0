"""Every callback, values of one's own and evaluations in virtual processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import noether_torch
from noether_core import read_run
from noether_core.errors import MissingKeyError, NoetherError, NonFiniteError, ProcessesMissingError
from tests.virtual_processes import FRONT_ENDS, train


def full_configs() -> list[dict[str, Any]]:
    return [
        {"every_n_updates": 3, "keys": ["a"], "reduce": ["mean", "max"]},
        {"every_n_epochs": 1, "patterns": ["b"], "id": "epochs"},
        {"every_n_samples": 20, "keys": ["a", "b/c"], "id": "samples", "reduce": "sum"},
        {"kind": "OnlineLossCallback", "every_n_updates": 1},
        {"kind": "LearningRateCallback", "every_n_updates": 1, "key": "lr"},
        {
            "kind": "BestMetricCallback",
            "every_n_updates": 1,
            "source_metric_key": "loss/online/total/U1",
            "higher_is_better": False,
        },
        {"kind": "ProgressCallback", "every_n_updates": 4},
        {
            "kind": "MetricEarlyStopCallback",
            "every_n_updates": 1,
            "source_metric_key": "loss/online/total/U1",
            "higher_is_better": False,
            "patience": 3,
        },
    ]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("count", [2, 3])
def test_every_callback_logs_what_one_process_would(front_end: Any, count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(count)
    outputs = rng.normal(size=(count, 40, 3)).astype(np.float32)
    losses = rng.normal(size=(count, 40))
    losses[:, 7] -= 9
    stopped: dict[int, int] = {}

    def step(run: Any, process: int, update: int) -> None:
        a, b, _ = outputs[process, update]
        run.step({"a": a, "b": {"c": b}, "lr": np.float32(0.1 * 0.9**update)}, losses=losses[process, update])

    def loop(run: Any, index: int) -> None:
        for update in range(40):
            step(run, index, update)
            if run.is_finished:
                break
        stopped[index] = run.counter.update

    arguments = {"updates_per_epoch": 4, "effective_batch_size": 12}
    found, told = train(tmp_path / "all", count, full_configs(), loop, front_end=front_end, **arguments)
    assert [outcome.error for outcome in found] == [None] * count
    assert not told
    assert len(set(stopped.values())) == 1
    with front_end.Run(tmp_path / "one", full_configs(), processes=1, accumulation_steps=count, **arguments) as run:
        for update in range(40):
            for process in range(count):
                step(run, process, update)
            if run.is_finished:
                break
    assert run.counter.update == stopped[0] < 40
    assert found[0].entries == list(run.log_writer.log_entries)
    assert found[0].entries == list(read_run(tmp_path / "all").entries)
    assert [list(entry) for entry in found[0].entries] == [list(entry) for entry in run.log_writer.log_entries]


def test_the_rate_is_the_rate_and_differing_ones_are_told_of(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(4):
            run.step({"lr": 0.5 if update < 2 else 0.5 + index, "steps": 2**53 + 1, "x": float(index)})

    configs = [
        {"kind": "LearningRateCallback", "every_n_updates": 2, "key": "lr"},
        {"every_n_updates": 2, "keys": ["steps", "x"], "reduce": ["last", "sum"], "replicated": ["steps"]},
    ]
    found, told = train(tmp_path, 3, configs, loop)
    assert [entry["optim/lr/U2"] for entry in found[0].entries] == [0.5, 0.5]
    assert [entry["steps/last/U2"] for entry in found[0].entries] == [2**53 + 1] * 2
    assert [entry["steps/sum/U2"] for entry in found[0].entries] == [2**54 + 2] * 2
    assert [entry["x/sum/U2"] for entry in found[0].entries] == [6.0] * 2
    (message,) = [message for message in told if "replicated" in message]
    assert "'optim/lr'" in message


def test_what_is_replicated_is_of_the_first_process_that_has_values(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(2 if index == 0 else 8):
            run.step({"lr": 0.5**update, "x": 1.0})

    configs = [
        {"kind": "LearningRateCallback", "every_n_updates": 2, "key": "lr"},
        {"every_n_updates": 2, "keys": ["x"], "reduce": ["count", "sum", "last"], "replicated": ["x"]},
    ]
    found, told = train(tmp_path, 3, configs, loop)
    assert [outcome.error for outcome in found] == [None] * 3
    assert [entry["optim/lr/U2"] for entry in found[0].entries] == [0.5, 0.125, 2.0**-5, 2.0**-7]
    assert [(entry["x/count/U2"], entry["x/sum/U2"], entry["x/last/U2"]) for entry in found[0].entries] == [
        (2, 2.0, 1.0)
    ] * 4
    assert not [message for message in told if "replicated" in message]


def test_ints_stay_ints_in_last(tmp_path: Path) -> None:
    values = {
        "same": [2**24 + 1, 2**24 + 1],
        "even": [2**53 + 1, 2**53 + 3],
        "odd": [1, 2],
        "big": [2**64 - 1, 2**64 - 1],
    }

    def loop(run: Any, index: int) -> None:
        run.step(
            {key: np.uint64(pair[index]) if key == "big" else np.int64(pair[index]) for key, pair in values.items()}
        )

    found, _ = train(tmp_path, 2, [{"every_n_updates": 1, "patterns": [""], "reduce": "last"}], loop)
    expected = {"same/U1": 2**24 + 1, "even/U1": 2**53 + 2, "odd/U1": 1.5, "big/U1": 2**64 - 1}
    assert {key: found[0].entries[0][key] for key in expected} == expected


def test_last_and_stack_in_the_file(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(2):
            shape = (2,) if index < 2 else (3,)
            run.step(
                {
                    "x": np.full(2, 10 * update + index, np.int32),
                    "mixed": np.full(shape, index, np.float32),
                    "alike": np.full(2, update, np.float32),
                    "y": np.float32(index),
                }
            )

    configs = [
        {
            "every_n_updates": 2,
            "keys": ["x", "mixed", "alike", "y"],
            "reduce": {"x": ["last", "stack"], "alike": ["last", "stack"], "mixed": ["last"], "y": ["last", "stack"]},
            "replicated": ["alike"],
            "save_output": True,
            "log_output": False,
        }
    ]
    found, _ = train(tmp_path, 3, configs, loop, time_limit=2)  # the others wait at the end for the one that raised
    (error, *_others) = [outcome.error for outcome in found]
    assert "'mixed'" in str(error)
    assert "shape" in str(error)
    arrays = load_file(tmp_path / "update_outputs" / "U2" / "E0_U2_S2.safetensors")
    assert arrays["x/last"].tolist() == [[10, 10], [11, 11], [12, 12]]
    assert arrays["x/stack"][:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert arrays["alike/last"].tolist() == [1, 1]
    assert arrays["alike/stack"].tolist() == [[0, 0], [1, 1]]
    assert arrays["y/last"].tolist() == [0, 1, 2]
    assert arrays["y/stack"].tolist() == [0, 1, 2, 0, 1, 2]
    assert "mixed" not in arrays


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_what_is_not_finite_raises_everywhere_and_names_the_process(front_end: Any, tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(4):
            run.step({"x": np.float32("nan" if (index, update) == (2, 1) else 1)})

    configs = [{"every_n_updates": 4, "keys": ["x"], "nonfinite": "raise"}]
    found, _ = train(tmp_path, 3, configs, loop, front_end=front_end)
    assert {str(outcome.error) for outcome in found} == {str(found[0].error)}
    assert isinstance(found[0].error, NonFiniteError)
    assert "1 NaN, 0 +inf, 0 -inf of 12 values, first at update 2, accumulation step 0, process 2" in str(
        found[0].error
    )


def test_a_missing_key_is_an_error_where_it_is_missing(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        run.step({"y" if index else "x": 1.0})

    found, _ = train(tmp_path, 2, [{"every_n_updates": 1, "keys": ["x"]}], loop, time_limit=0.3)
    assert isinstance(found[1].error, MissingKeyError)
    assert isinstance(found[0].error, ProcessesMissingError)


def test_log_and_evaluate(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for _update in range(2):
            run.step({"x": 1.0})
            run.log({"own": index})
            with run.evaluate("val"):
                for at in range(index + 1):
                    run.step({"x": float(at), **({"y": 1.0} if index else {})})
            if index == 1:
                with run.evaluate("alone", processes=1):
                    run.step({"x": 5.0})

    configs = [{"every_n_updates": 2, "patterns": ["x", "y"], "reduce": ["mean", "count"]}]
    found, told = train(tmp_path, 3, configs, loop)
    assert [outcome.error for outcome in found] == [None] * 3
    for entry in found[0].entries:
        assert entry["own"] == 0
        assert (entry["val/x/count"], entry["val/x/mean"]) == (6, pytest.approx(4 / 6, abs=0))
        assert entry["val/y/count"] == 5
        assert "alone/x/mean" not in entry
    assert found[1].entries[0]["alone/x/count"] == 1
    assert sum("different keys" in message for message in told) == 1
    with noether_torch.Run(tmp_path / "one", configs, processes=1) as run:
        for wrong in (2, 0, True, "all"):
            with pytest.raises(NoetherError, match="expected 1"), run.evaluate("val", processes=wrong):
                pass


def test_an_evaluation_of_what_is_not_finite_names_the_process(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        run.step({"x": 1.0})
        with run.evaluate("val"):
            run.step({"x": float("inf") if index else 1.0})

    found, _ = train(tmp_path, 2, [{"every_n_updates": 2, "keys": ["x"], "nonfinite": "raise"}], loop)
    assert {str(outcome.error) for outcome in found} == {str(found[0].error)}
    assert "process 1" in str(found[0].error)
