"""Every kind of callback works in a `Trainer`, one and several `TrackOutputs`, copied or not, and its own log stays its own."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_cases import CONFIGS, Books, Counting, Model, SizedStream, counting, mean, numbers
from transformers import TrainerCallback

from noether_core import NoetherError, NonFiniteError, read_run
from noether_torch.transformers import TrackOutputs, record

EVERY = {"every_n_updates": 1, "keys": ["v"]}

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


def points(path: Path, key: str) -> list[tuple[int, Any]]:
    series = read_run(path).series
    return list(zip(series[key].update.tolist(), series[key].value.tolist(), strict=True)) if key in series else []


# ---------------------------------------------------------------------- every kind of callback


@pytest.mark.parametrize("unit", ["updates", "epochs"])
def test_a_training_stops_early(unit: str, tmp_path: Path) -> None:
    """Stop once two intervals in a row have no better mean: the second pass has the first one's values."""
    key = {"updates": "v/U1", "epochs": "v/E1"}[unit]
    config = {f"every_n_{unit}": 1, "keys": ["v"]}
    stop = {
        "kind": "MetricEarlyStopCallback",
        f"every_n_{unit}": 1,
        "source_metric_key": key,
        "higher_is_better": True,
        "patience": 2,
    }
    training = counting(tmp_path, SizedStream(26), TrackOutputs([config, stop], tmp_path / "run"), num_train_epochs=9)
    training.train()
    # the sums of a pass's batches: 6, 22, 38, 54, 70, 86, 49; then again
    assert training.state.global_step == {"updates": 8, "epochs": 21}[unit]
    assert len(points(tmp_path / "run", key)) == {"updates": 8, "epochs": 3}[unit]


def test_losses_are_recorded(tmp_path: Path) -> None:
    class Losses(Counting):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
            loss = super().compute_loss(model, inputs, *arguments, **named)
            record(self, losses={"a": inputs["v"].max(), "b": {"c": loss}})
            return loss

    configs = [*CONFIGS, {"kind": "OnlineLossCallback", "every_n_updates": 2}]
    training = counting(
        tmp_path, numbers(), TrackOutputs(configs, tmp_path / "run"), kind=Losses, gradient_accumulation_steps=2
    )
    training.train()
    batches = [event for event in training.books.happened if isinstance(event, list)]
    tops = [max(batch) for batch in batches]
    expected = [mean([*tops[7 * epoch : 7 * epoch + 4]]) for epoch in range(3)]
    assert [value for _, value in points(tmp_path / "run", "loss/online/a/U2")][::2] == expected
    assert len(points(tmp_path / "run", "loss/online/b/c/U2")) == 6
    bad = counting(tmp_path, numbers(), TrackOutputs(configs, tmp_path / "bad"), kind=Losses)
    bad.model.weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteError):
        bad.train()


class Rates(TrainerCallback):
    """Change the rate at one of the trainer's events; note what each step used by a look of its own."""

    def __init__(self, event: str) -> None:
        self.used: list[float] = []
        setattr(self, event, self._change)

    def _change(self, *_: Any, optimizer: Any, **named: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = random.Random(len(self.used) * 31 + 7).random()


EVENTS = ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log", "on_epoch_begin"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_rate_that_an_update_used_is_logged(steps: int, event: str, first: bool, tmp_path: Path) -> None:
    """Whoever changes it, whenever, in front of us or behind, besides the trainer's own scheduler."""
    rates = Rates(event)
    configs = [EVERY, {"kind": "LearningRateCallback", "every_n_updates": 1}]
    outputs = TrackOutputs(configs, tmp_path / "run")
    callbacks = [rates, outputs] if first else [outputs, rates]
    training = counting(tmp_path, numbers(), *callbacks, gradient_accumulation_steps=steps)
    optimizer: Any = training.optimizer
    plain = optimizer.step

    def step(*arguments: Any, **named: Any) -> Any:
        rates.used.append(optimizer.param_groups[0]["lr"])
        return plain(*arguments, **named)

    optimizer.step = step
    training.train()
    assert [value for _, value in points(tmp_path / "run", "optim/lr/U1")] == rates.used
    assert len(set(rates.used)) > 1
    assert not optimizer._optimizer_step_pre_hooks  # nothing of ours is left behind


def test_rates_of_several_groups_go_by_their_names(tmp_path: Path) -> None:
    configs = [{"kind": "LearningRateCallback", "every_n_updates": 7}]
    training = counting(tmp_path, numbers(), TrackOutputs(configs, tmp_path / "run"), num_train_epochs=1)
    training.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5, "name": "bias"})
    training.train()
    assert {key for key in read_run(tmp_path / "run").series if "lr" in key} == {"optim/lr/0/U7", "optim/lr/bias/U7"}


def test_throughput_and_progress_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    configs = [
        {"kind": "ThroughputCallback", "every_n_updates": 7},
        {"kind": "ProgressCallback", "every_n_epochs": 1},
        {"kind": "LearningRateCallback", "every_n_updates": 7, "key": "lr"},
    ]

    class WithRate(Counting):
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            record(self, {"lr": 0.25})
            return super().compute_loss(*arguments, **named)

    counting(tmp_path, numbers(), TrackOutputs(configs, tmp_path / "run"), kind=WithRate).train()
    rates = points(tmp_path / "run", "profiling/samples_per_second/U7")
    per_update = dict(points(tmp_path / "run", "profiling/updates_per_second/U7"))
    assert [rate / per_update[update] for update, rate in rates] == pytest.approx([26 / 7] * 3)
    assert "E3_U21_S78 of" in caplog.text
    assert [value for _, value in points(tmp_path / "run", "optim/lr/U7")] == [0.25] * 3


def test_what_cannot_work_is_refused_at_construction(tmp_path: Path) -> None:
    rate = {"kind": "LearningRateCallback", "every_n_updates": 1, "key": "lr"}
    save = {"every_n_updates": 1, "keys": ["v"], "save_output": True}
    outputs = TrackOutputs([EVERY], tmp_path / "run")
    counting(tmp_path, numbers(), outputs, max_steps=1).train()
    assert outputs.run is not None
    with pytest.raises(NoetherError, match="both key and source"):
        TrackOutputs([{**rate, "source": lambda _: 0.1}])
    with pytest.raises(NoetherError, match="would write the same files"):
        TrackOutputs([save, save])
    with pytest.raises(NoetherError, match="callback object TrackAdditionalOutputsCallback"):
        TrackOutputs([outputs.run.callbacks[0]])
    with pytest.raises(NoetherError, match="got 3 as its keys"):
        TrackOutputs(3)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- several receivers


@pytest.mark.sweep(2)
@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_each_of_several_gets_what_is_recorded(count: int, restore: bool, tmp_path: Path) -> None:
    """Hold each to what it gives alone, cut off and gone on from a checkpoint in the middle of all their intervals."""
    configs = [[{"every_n_updates": every, "keys": ["v"], "reduce": ["mean", "count"]}] for every in (5, 6, 7)[:count]]
    arguments: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 2,
        "restore_callback_states_from_checkpoint": restore,
    }

    def receivers(path: Path) -> list[TrackOutputs]:
        return [TrackOutputs(each, path / str(at)) for at, each in enumerate(configs)]

    alone = tmp_path / "alone"
    for at, each in enumerate(configs):
        counting(alone / f"of{at}", SizedStream(26), TrackOutputs(each, alone / str(at))).train()
    first = counting(tmp_path, SizedStream(26), *receivers(tmp_path), **arguments)
    first.fails_at = {9: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        first.train()
    state = json.loads((tmp_path / "output" / "checkpoint-8" / "trainer_state.json").read_text())
    assert len(state["stateful_callbacks"]["TrackOutputs"]) == count  # and not those of all checkpoints before
    counting(tmp_path, SizedStream(26), *receivers(tmp_path), **arguments).train(resume_from_checkpoint=True)
    for at in range(count):
        assert read_run(tmp_path / str(at)).entries == read_run(alone / str(at)).entries


def test_several_without_a_path_have_directories_of_their_own(tmp_path: Path) -> None:
    training = counting(tmp_path, numbers(), TrackOutputs([EVERY]), TrackOutputs(CONFIGS), max_steps=4)
    training.train()
    assert len(points(tmp_path / "output" / "noether", "v/U1")) == 4
    assert read_run(tmp_path / "output" / "noether_2").entries == training.books.entries()
    training.books.happened.clear()
    training.train()
    assert read_run(tmp_path / "output" / "noether_2").entries == training.books.entries()


def test_two_of_one_path_are_refused(tmp_path: Path) -> None:
    two = [TrackOutputs([EVERY], tmp_path / "run"), TrackOutputs([EVERY], tmp_path / "run")]
    with pytest.raises(NoetherError, match="two TrackOutputs would write the run directory"):
        counting(tmp_path, numbers(), *two).train()


def test_one_that_comes_in_the_middle_of_a_training_says_so(tmp_path: Path) -> None:
    class Adds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            training.add_callback(TrackOutputs([EVERY], tmp_path / "late"))

    training = counting(tmp_path, numbers(), TrackOutputs(CONFIGS, tmp_path / "run"), Adds())
    with pytest.raises(NoetherError, match=r"give it to the trainer before train\(\)"):
        training.train()


# ---------------------------------------------------------------------- copies, and what is the user's


class Copies(TrainerCallback):
    """Copy all there is in the middle of a training."""

    def __init__(self, *copied: Any) -> None:
        self.copied = copied
        self.copies: list[Any] = []

    def on_substep_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self.copies += [copy.deepcopy(each) for each in self.copied]
        self.copies += [pickle.loads(pickle.dumps(each)) for each in self.copied]  # our own bytes


def test_a_callback_is_copied_and_pickled_at_any_time(tmp_path: Path) -> None:
    configs = [*CONFIGS, {"kind": "LearningRateCallback", "every_n_updates": 1}]
    outputs = TrackOutputs(configs, tmp_path / "run")
    copies = Copies(outputs)
    training = counting(tmp_path, numbers(), outputs, copies, gradient_accumulation_steps=2)
    copies.on_substep_end(None, None, None)
    training.train()
    copies.on_substep_end(None, None, None)
    assert read_run(tmp_path / "run").entries[0].keys() >= {"v/U1", "optim/lr/U1"}
    for each in (copies.copies[0], copies.copies[1], copies.copies[3], copies.copies[-1]):
        other = counting(tmp_path / "other", numbers(), each, gradient_accumulation_steps=2)
        other.train()  # into the same directory
        assert [entry["v/U1"] for entry in read_run(tmp_path / "run").entries] == [
            entry["v/U1"] for entry in other.books.entries()
        ]
        assert points(tmp_path / "run", "optim/lr/U1")


def test_what_is_the_users_is_as_it_was(tmp_path: Path) -> None:
    configs = [*CONFIGS, {"kind": "LearningRateCallback", "every_n_updates": 1}]

    class Saves(Copies):
        def on_substep_end(self, args: Any, state: Any, control: Any, model: Any = None, **named: Any) -> None:
            torch.save(model, tmp_path / "model.pt")
            self.copies.append(copy.deepcopy((model, training.optimizer.optimizer)))
            pickle.dumps((model, training.optimizer.optimizer))

    training = counting(
        tmp_path, numbers(), TrackOutputs(configs, tmp_path / "run"), Saves(), gradient_accumulation_steps=2
    )
    before = (dict(vars(training)), set(vars(training.model)), set(vars(Counting)))
    training.train()
    assert before[0].keys() <= vars(training).keys()
    assert "compute_loss" not in vars(training)
    assert "log" not in vars(training)
    assert set(vars(training.model)) - before[1] <= {"_is_accelerate_prepared"}
    assert set(vars(Counting)) == before[2]
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert isinstance(loaded, Model)
    assert read_run(tmp_path / "run").entries[0]["v/U1"] == training.books.entries()[0]["v/U1"]


# ---------------------------------------------------------------------- the trainer's log


class Averages(Counting):
    """Average what is logged between two calls of `log`, as people do, and start anew."""

    def log(self, logs: dict[str, Any], *arguments: Any, **named: Any) -> None:
        seen = self.__dict__.setdefault("windows", [])
        seen.append((self.state.global_step, sorted(logs)))
        super().log(logs, *arguments, **named)


class Reporter(TrainerCallback):
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
        assert named.keys() >= {"model", "optimizer", "lr_scheduler", "train_dataloader"}
        self.logged.append((state.global_step, dict(logs)))
        logs.clear()  # what others do with theirs is no business of the next one


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_an_overridden_log_sees_its_own_calls_only(strategy: str, tmp_path: Path) -> None:
    arguments = {"logging_strategy": strategy, "logging_steps": 2, "eval_strategy": "epoch", "eval_dataset": numbers(6)}
    without = counting(tmp_path, numbers(), Reporter(), kind=Averages, **arguments)
    nothing = {"every_n_updates": 10**6, "patterns": ["none"], "missing": "skip"}
    without.callback_handler.callbacks.append(TrackOutputs([nothing]))
    without.train()
    reporter = Reporter()
    training = counting(
        tmp_path, numbers(), reporter, TrackOutputs(CONFIGS, tmp_path / "run"), kind=Averages, **arguments
    )
    training.train()
    assert training.windows == without.windows
    entries = read_run(tmp_path / "run").entries
    for place in (reporter.logged, [(entry["step"], entry) for entry in training.state.log_history]):
        for key in ("v/U1", "v/U2", "v/mean/E1"):
            found = [(step, logs[key]) for step, logs in place if key in logs]
            assert found == [(entry["update"], entry[key]) for entry in entries if key in entry]
    assert all("epoch" in logs for _, logs in reporter.logged)


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = counting(
        tmp_path, numbers(), TrackOutputs(CONFIGS, tmp_path / "run"), report_to=["tensorboard"], num_train_epochs=1
    )
    training.train()
    file = next((tmp_path / "output").glob("runs/**/events*"))
    events = EventAccumulator(str(file.parent))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/v/U1")] == points(tmp_path / "run", "v/U1")


def test_the_books_can_be_wrong() -> None:
    books = Books(4, [[1.0, 2.0], "update", [3.0, 4.0], "update"])
    assert [entry["epoch"] for entry in books.entries()] == [0, 1]
    assert books.entries()[1]["v/mean/E1"] == 5.0
