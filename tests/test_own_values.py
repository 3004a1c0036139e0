"""Values of the loop's own and evaluations: one obvious place, one entry per update, and training's intervals left alone."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import noether_jax
import noether_torch
from noether_core import BestMetricCallbackConfig, MetricEarlyStopCallbackConfig, NoetherError, NonFiniteError, read_run
from noether_core.errors import DuplicateKeyError, HookOrderError, UpdateOutputError

FRONT_ENDS = [noether_jax, noether_torch]
LOSS = {"every_n_updates": 2, "patterns": ["loss"]}
both = pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda module: module.__name__)


def points(path: Path, key: str) -> list[tuple[int, Any]]:
    series = read_run(path).series
    return list(zip(series[key].update.tolist(), series[key].value.tolist(), strict=True)) if key in series else []


@both
def test_a_value_goes_into_its_updates_entry(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [LOSS]) as run:
        run.log({"lr": 0.5, "note": "warm-up"})
        for update in range(1, 5):
            run.step({"loss": float(update)})
            run.log({"val": {"acc": update / 10}, "classes": ["a", "b"]})
    assert read_run(tmp_path).entries == [
        {"epoch": 0, "update": 0, "sample": 0, "lr": 0.5, "note": "warm-up"},
        {"epoch": 0, "update": 1, "sample": 1, "val/acc": 0.1, "classes": ["a", "b"]},
        {"epoch": 0, "update": 2, "sample": 2, "loss/U2": 1.5, "val/acc": 0.2, "classes": ["a", "b"]},
        {"epoch": 0, "update": 3, "sample": 3, "val/acc": 0.3, "classes": ["a", "b"]},
        {"epoch": 0, "update": 4, "sample": 4, "loss/U2": 3.5, "val/acc": 0.4, "classes": ["a", "b"]},
    ]


@both
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray, torch.tensor])
def test_an_array_of_one_element_is_a_number(front_end: Any, array: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [LOSS]) as run:
        run.log({"acc": array(0.25), "n": array([3])})
        with pytest.raises(NoetherError, match=r"shape \(2,\) is no single number"):
            run.log({"rows": array([0.0, 0.0]), "kept": 1})
    assert read_run(tmp_path).entries == [{"epoch": 0, "update": 0, "sample": 0, "acc": 0.25, "n": 3, "kept": 1}]


@both
def test_before_the_start_and_after_the_end_it_is_an_error(front_end: Any, tmp_path: Path) -> None:
    run = front_end.Run(tmp_path, [LOSS])
    with pytest.raises(HookOrderError, match=r"run\.log was called on a run that is new; write `with run:`"):
        run.log({"a": 1})
    with pytest.raises(HookOrderError, match=r"run\.evaluate was called on a run that is new"), run.evaluate():
        pass
    with run:
        run.step({"loss": 1.0})
        run.step({"loss": 2.0})
    with pytest.raises(HookOrderError, match="finished; make a new Run"):
        run.log({"test/acc": 0.9})
    with pytest.raises(HookOrderError, match="the log is closed"):
        run.log_writer.add_scalar("test/acc", 0.9)
    run.log_writer.flush()
    run.log_writer.close()
    assert read_run(tmp_path).entries == [{"epoch": 0, "update": 2, "sample": 2, "loss/U2": 1.5}]


@both
def test_one_bad_value_costs_no_other(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [LOSS]) as run:
        run.log({"a": 1})
        with pytest.raises(DuplicateKeyError, match="'a' is logged twice"):
            run.log({"a": 2, "b": 3})
        with pytest.raises(NoetherError, match="epoch"):
            run.log({"epoch": 2, "c": 4})
        with pytest.raises(UpdateOutputError, match="expected a dict"):
            run.log(0.5)
        with pytest.raises(NoetherError, match="JSON cannot hold"):
            run.log({"object": object(), "d": 5})
    assert read_run(tmp_path).entries == [{"epoch": 0, "update": 0, "sample": 0, "a": 1, "b": 3, "c": 4, "d": 5}]


class Books:
    """Do what a loop does, and keep by hand what its log must have."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._update = self._in_epoch = 0
        self._losses: list[float] = []
        self.entries: dict[int, dict[str, Any]] = {}

    def _note(self, values: dict[str, Any]) -> None:
        self.entries.setdefault(self._update, {}).update(values)

    def step(self, number: int) -> None:
        self._run.step({"loss": float(number)})
        self._update += 1
        self._in_epoch += 1
        self._losses.append(number)
        if self._update % 2 == 0:
            self.end_interval()

    def log(self, number: int) -> None:
        self._run.log({f"own{number}": number})
        self._note({f"own{number}": number})

    def evaluate(self, number: int) -> None:
        with self._run.evaluate(f"eval{number}"):
            self._run.step([{"loss": 1.0}, {"loss": 3.0}])
            self._run.log({"x": number})
        self._note({f"eval{number}/loss": 2.0, f"eval{number}/loss/count": 2, f"eval{number}/x": number})

    def end_epoch(self, _: int = 0) -> None:
        self._run.end_epoch()
        self.end_epoch_books()

    def end_epoch_books(self) -> None:
        if self._in_epoch:
            self._note({"loss/count/E1": self._in_epoch})
        self._in_epoch = 0

    def end_interval(self) -> None:
        if self._losses:
            self._note({"loss/U2": sum(self._losses) / len(self._losses)})
        self._losses = []


@both
@settings(max_examples=30)
@given(actions=st.lists(st.sampled_from(["step", "log", "evaluate", "end_epoch"]), min_size=1, max_size=14))
def test_whenever_it_is_logged_it_is_there_and_training_is_as_without(front_end: Any, actions: list[str]) -> None:
    """Hold any order of steps, logs, evaluations and epochs' ends to books that are kept by hand."""
    epochs = {"every_n_epochs": 1, "keys": ["loss"], "reduce": "count"}
    with TemporaryDirectory() as path:
        with front_end.Run(path, [LOSS, epochs], updates_per_epoch=10**6) as run:
            books = Books(run)
            for number, action in enumerate(actions):
                getattr(books, action)(number)
        books.end_interval()
        books.end_epoch_books()
        read = read_run(path)
    assert read.problems == []
    assert {
        entry["update"]: {key: value for key, value in entry.items() if key not in {"epoch", "update", "sample"}}
        for entry in read.entries
    } == books.entries


# ---------------------------------------------------------------------- evaluations


@both
def test_an_evaluation_pools_all_its_steps(front_end: Any, tmp_path: Path) -> None:
    configs = [
        {"every_n_updates": 3, "keys": ["loss", "grad"], "reduce": ["mean", "max"], "save_output": True},
        {"every_n_updates": 2, "patterns": ["loss"]},
        {"kind": "OnlineLossCallback", "every_n_updates": 3},
    ]
    with front_end.Run(tmp_path, configs) as run:
        run.step({"loss": 1.0, "grad": 1.0}, losses=1.0)
        with run.evaluate():
            run.step({"loss": np.array([1.0, 2.0])}, losses=4.0)  # no gradient: it is no error
            run.step({"loss": np.array([6.0])}, losses=8.0)
        with run.evaluate("test"):
            run.log({"rows": 7})
        run.step([{"loss": 2.0, "grad": 1.0}, {"loss": 6.0, "grad": 1.0}], losses=1.0)
    run_read = read_run(tmp_path)
    assert run_read.entries[0] == {
        "epoch": 0,
        "update": 1,
        "sample": 1,
        "eval/loss/mean": 3.0,
        "eval/loss/max": 6.0,
        "eval/loss": 3.0,
        "eval/loss/online/total": 6.0,
        "test/rows": 7,
    }
    assert points(tmp_path, "loss/mean/U3") == [(3, 3.0)]
    assert points(tmp_path, "loss/online/total/U3") == [(3, 1.0)]
    assert [(file.interval, file.iteration.update) for file in run_read.arrays] == [("U3", 3), ("eval", 1)]
    assert {name: float(array) for name, array in run_read.arrays[1].load().items()} == {
        "loss/mean": 3.0,
        "loss/max": 6.0,
    }


@both
def test_an_evaluation_that_fails_logs_nothing_of_it_and_training_goes_on(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [LOSS]) as run:
        run.step({"loss": 1.0})
        with pytest.raises(ZeroDivisionError), run.evaluate():
            run.step({"loss": 1 / (run.step({"loss": 100.0}) or 0)})
        with pytest.raises(UpdateOutputError), run.evaluate():
            run.step({"loss": "text"})
        with run.evaluate(), pytest.raises(HookOrderError, match="within run"), run.evaluate():
            pass
        run.step({"loss": 2.0})
    assert read_run(tmp_path).entries == [{"epoch": 0, "update": 2, "sample": 2, "loss/U2": 1.5}]


@both
@pytest.mark.parametrize("prefix", ["", "../x", "U10", "a/b", 3, None, "."])
def test_a_prefix_is_a_name(front_end: Any, prefix: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [LOSS]) as run, pytest.raises(NoetherError, match="prefix="), run.evaluate(prefix):
        pass


@both
def test_what_is_not_finite_is_said_of_the_evaluation(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [{**LOSS, "nonfinite": "raise"}]) as run:
        with (
            pytest.raises(NonFiniteError, match=r"evaluation at E0_U0_S0.*'loss': 1 of 2 values, first in step 2"),
            run.evaluate(),
        ):
            run.step([{"loss": 1.0}, {"loss": float("nan")}])
        run.step([{"loss": 1.0}, {"loss": 1.0}])
    assert points(tmp_path, "loss/U2") == [(2, 1.0)]
    assert points(tmp_path, "eval/loss/nonfinite") == [(0, 1)]


# ---------------------------------------------------------------------- the callbacks that watch a metric


@both
@pytest.mark.parametrize("by_log", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_best_and_early_stop_see_it_whatever_the_order(
    front_end: Any, by_log: bool, first: bool, tmp_path: Path
) -> None:
    watch = [
        BestMetricCallbackConfig(every_n_updates=2, source_metric_key="eval/acc", higher_is_better=True),
        MetricEarlyStopCallbackConfig(
            every_n_updates=2, source_metric_key="eval/acc", higher_is_better=True, patience=2
        ),
    ]
    accuracies = [0.5, 0.7, 0.6, 0.65, 0.9]
    with front_end.Run(tmp_path, [*watch, LOSS] if first else [LOSS, *watch]) as run:
        while not run.is_finished:
            run.step([{"loss": 1.0}, {"loss": 1.0}])
            accuracy = accuracies[run.counter.update // 2 - 1]
            if by_log:
                run.log({"eval/acc": accuracy})
            else:
                with run.evaluate():
                    run.log({"acc": accuracy})
    assert run.counter.update == 8  # two in a row were no better than 0.7
    assert points(tmp_path, "eval/acc/at_best/eval/acc") == [(2, 0.5), (4, 0.7)]


@both
def test_an_evaluation_off_the_interval_counts_and_a_log_there_does_not(front_end: Any, tmp_path: Path) -> None:
    watch = BestMetricCallbackConfig(every_n_updates=10, source_metric_key="eval/acc", higher_is_better=True)
    with front_end.Run(tmp_path, [watch]) as run:
        run.step({"loss": 1.0})
        run.log({"eval/acc": 0.5})
        run.step({"loss": 1.0})
        with run.evaluate():
            run.log({"acc": 0.4})
    assert [key for key in read_run(tmp_path).series if "at_best" in key] == ["eval/acc/at_best/eval/acc"]
    assert points(tmp_path, "eval/acc/at_best/eval/acc") == [(2, 0.4)]


@both
@pytest.mark.parametrize("comes", [False, True])
def test_a_metric_that_never_comes_is_said_once(
    front_end: Any, comes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = BestMetricCallbackConfig(every_n_updates=1, source_metric_key="eval/acc", higher_is_better=True)
    with caplog.at_level(logging.WARNING), front_end.Run(tmp_path, [watch]) as run:
        for _ in range(3):
            run.step({"loss": 1.0})
            if comes:
                run.log({"eval/acc": 0.5})
    assert len(caplog.messages) == (0 if comes else 1)


# ---------------------------------------------------------------------- the stacked outputs of several steps


@both
@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_stacked_steps_are_as_many_steps(front_end: Any, is_own: bool, accumulation_steps: int, tmp_path: Path) -> None:
    array = front_end.Run.backend.from_numpy if is_own else np.asarray
    rng = np.random.default_rng(0)
    losses, fields = rng.normal(size=12).astype(np.float32), rng.normal(size=(12, 5)).astype(np.float32)
    config = {
        "every_n_updates": 2,
        "patterns": [""],
        "reduce": ["mean", "std", "last"],
        "save_output": True,
        "log_output": False,
    }
    for way in ("stacked", "one by one"):
        with front_end.Run(tmp_path / way, [config], accumulation_steps=accumulation_steps) as run:
            if way == "stacked":
                run.step({"loss": array(losses), "of": {"field": array(fields)}, "lr": 0.5}, steps=12)
            else:
                for loss, field in zip(losses, fields, strict=True):
                    run.step({"loss": array(loss), "of": {"field": array(field)}, "lr": 0.5})
            with run.evaluate():
                run.step({"loss": array(losses)}, steps=12)
    files = [
        {file.path.relative_to(tmp_path / way): file.path.read_bytes() for file in read_run(tmp_path / way).arrays}
        for way in ("stacked", "one by one")
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 12 // accumulation_steps // 2 + 1


@both
@pytest.mark.parametrize(
    ("outputs", "steps", "message"),
    [
        ({"loss": np.zeros(3)}, 4, r"'loss' has shape \(3,\), and steps=4 expects a leading axis of 4 steps"),
        ({"loss": np.zeros(())}, 1, r"'loss' has shape \(\), and steps=1"),
        ({"loss": np.zeros(3)}, 0, "steps=0; expected an int of at least 1"),
        ([{"loss": 1.0}], 1, "update_outputs is list"),
    ],
)
def test_what_is_not_stacked_is_refused(front_end: Any, outputs: Any, steps: int, message: str, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [LOSS]) as run:
        with pytest.raises(UpdateOutputError, match=message):
            run.step(outputs, steps=steps)
        assert run.counter.update == 0


# ---------------------------------------------------------------------- samples


@both
def test_samples_are_what_each_step_had_and_a_refused_step_had_none(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [LOSS], effective_batch_size=8, accumulation_steps=2) as run:
        run.step([{"loss": 1.0}] * 2)
        run.step({"loss": 1.0}, samples=4)
        with pytest.raises(UpdateOutputError):
            run.step({"loss": "text"}, samples=100, times={"data": 1.0})
        with pytest.raises(ValueError, match="samples=-1"):
            run.step({"loss": 1.0}, samples=-1)
        run.step({"loss": 1.0}, samples=3)
        assert str(run.counter.cur_iteration) == "E0_U2_S15"
        run.step({"loss": 1.0}, samples=4)
        state = run.state_dict()
    with front_end.Run(tmp_path, [LOSS], effective_batch_size=8, accumulation_steps=2) as run:
        run.load_state_dict(state)
        run.step({"loss": 1.0}, samples=1)
        assert str(run.counter.cur_iteration) == "E0_U3_S20"
