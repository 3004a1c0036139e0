"""What a `Trainer` evaluates comes through `run.evaluate`, and the callbacks that watch a metric see it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_cases import Counting, counting, numbers
from transformers import TrainerCallback

from noether_core import read_run
from noether_torch.transformers import TrackOutputs, record

EVERY = {"every_n_updates": 1, "keys": ["v"], "reduce": ["mean", "max", "count"]}

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


def points(path: Path, key: str) -> list[tuple[int, Any]]:
    series = read_run(path).series
    return list(zip(series[key].update.tolist(), series[key].value.tolist(), strict=True)) if key in series else []


def logged(training: Counting, key: str) -> list[tuple[int, Any]]:
    """Return what the trainer's own log has."""
    return [(entry["step"], entry[key]) for entry in training.state.log_history if key in entry]


class Labelled(Counting):
    """Evaluate a loss: `label_names` are what the trainer looks for."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        inputs = {"v": inputs["labels"]}
        return super().compute_loss(model, inputs, *arguments, **named)


def labelled(size: int) -> list[dict[str, Any]]:
    return [{"labels": sample["v"]} for sample in numbers(size)]


def training(path: Path, *callbacks: Any, **given: Any) -> Labelled:
    made = counting(
        path,
        labelled(26),
        *callbacks,
        kind=given.pop("kind", Labelled),
        remove_unused_columns=False,
        label_names=["labels"],
        **{"eval_dataset": labelled(10), "per_device_eval_batch_size": 4, "num_train_epochs": 1, **given},
    )
    assert isinstance(made, Labelled)
    return made


BATCHES = [6.0, 22.0, 17.0]  # the sums of the evaluation's


def test_what_is_recorded_in_an_evaluation_is_reduced_over_it(tmp_path: Path) -> None:
    made = training(
        tmp_path, TrackOutputs([EVERY], tmp_path / "run"), eval_strategy="steps", eval_steps=3, eval_on_start=True
    )
    made.train()
    at = [0, 3, 6, 7]  # at the end too
    assert points(tmp_path / "run", "eval/v/mean") == [(update, 15.0) for update in at]
    assert points(tmp_path / "run", "eval/v/max") == [(update, 22.0) for update in at]
    assert points(tmp_path / "run", "eval/v/count") == [(update, 3) for update in at]
    assert points(tmp_path / "run", "eval/loss") == logged(made, "eval_loss")
    assert [update for update, _ in points(tmp_path / "run", "eval/runtime")] == at
    assert len(points(tmp_path / "run", "v/mean/U1")) == 7


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_callbacks_watch_an_evaluation(strategy: str, tmp_path: Path) -> None:
    """Stop, and note the best, where the evaluation's loss stops falling."""
    losses = [5.0, 3.0, 4.0, 3.5, 2.0, 1.0]

    class Falling(Labelled):
        def evaluate(self, *arguments: Any, **named: Any) -> Any:
            self.compute_metrics = lambda _: {"error": losses[self.evaluations]}
            metrics = super().evaluate(*arguments, **named)
            self.evaluations += 1
            return metrics

    watch = {"every_n_updates": 1, "source_metric_key": "eval/error", "higher_is_better": False}
    callbacks = [
        {"kind": "MetricEarlyStopCallback", "patience": 2, **watch},
        {"kind": "BestMetricCallback", **watch},
        EVERY,
    ]
    made = training(
        tmp_path,
        TrackOutputs(callbacks, tmp_path / "run"),
        kind=Falling,
        eval_strategy=strategy,
        eval_steps=2,
        num_train_epochs=6,
    )
    made.evaluations = 0
    made.train()
    every = 2 if strategy == "steps" else 7
    assert made.state.global_step == 4 * every
    assert points(tmp_path / "run", "eval/error") == [(every * (at + 1), loss) for at, loss in enumerate(losses[:4])]
    assert points(tmp_path / "run", "eval/error/at_best/eval/error") == [(every, 5.0), (2 * every, 3.0)]


def test_evaluations_of_several_sets_have_prefixes_of_their_own(tmp_path: Path) -> None:
    sets = {"short": labelled(4), "long": labelled(8)}
    made = training(tmp_path, TrackOutputs([EVERY], tmp_path / "run"), eval_strategy="epoch", eval_dataset=sets)
    made.train()
    assert points(tmp_path / "run", "eval_short/v/max") == [(7, 6.0)]
    assert points(tmp_path / "run", "eval_long/v/max") == [(7, 22.0)]
    assert points(tmp_path / "run", "eval_long/loss") == logged(made, "eval_long_loss")


def test_an_evaluation_after_training_is_of_its_last_update(tmp_path: Path) -> None:
    outputs = TrackOutputs([EVERY, {"every_n_updates": 5, "keys": ["v"]}], tmp_path / "run")
    made = training(tmp_path, outputs)
    made.evaluate()  # before: nothing is there to log to
    made.train()
    before = read_run(tmp_path / "run").entries
    metrics = made.evaluate()
    made.predict(labelled(6))
    made.evaluate(metric_key_prefix="held/out")
    entries = read_run(tmp_path / "run").entries
    assert entries[:-1] == before[:-1]
    assert before[-1].items() <= entries[-1].items()
    assert entries[-1]["eval/v/max"] == entries[-1]["held_out/v/max"] == 22.0
    assert entries[-1]["test/v/count"] == 2
    assert entries[-1]["eval/loss"] == metrics["eval_loss"]
    assert (entries[-1]["epoch"], entries[-1]["update"], entries[-1]["sample"]) == (1, 7, 26)
    assert outputs.run is not None
    assert outputs.run.counter.update == 7


def test_an_evaluation_after_a_resumed_training_keeps_all_that_stands(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    callback = TrackOutputs([EVERY], tmp_path / "run")
    made = training(tmp_path, callback, **arguments)
    made.fails_at = {5: ZeroDivisionError()}
    with pytest.raises(ZeroDivisionError):
        made.train()
    made.evaluate()  # while the training that was cut off is still open
    assert callback.run is not None
    callback.run.log_writer.disk.wait()
    assert points(tmp_path / "run", "eval/v/max") == [(5, 22.0)]
    again = training(tmp_path, TrackOutputs([EVERY], tmp_path / "run"), **arguments)
    again.train(resume_from_checkpoint=True)
    again.evaluate()
    again.evaluate()
    assert [update for update, _ in points(tmp_path / "run", "v/mean/U1")] == list(range(1, 8))
    assert points(tmp_path / "run", "eval/v/max") == [(7, 22.0)]


def test_a_metric_of_the_trainer_and_an_output_of_one_name_are_both_there(tmp_path: Path) -> None:
    class Loss(Labelled):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **named: Any) -> Any:
            loss = model(v=inputs["labels"])["loss"]
            record(self, {"loss": loss.detach() + 1.0})
            return (loss, {"loss": loss}) if return_outputs else loss

    config = {"every_n_updates": 1, "keys": ["loss"]}
    made = training(tmp_path, TrackOutputs([config], tmp_path / "run"), kind=Loss, eval_strategy="epoch")
    made.train()
    ((_, trainers),) = logged(made, "eval_loss")
    assert points(tmp_path / "run", "eval/trainer/loss") == [(7, trainers)]
    assert points(tmp_path / "run", "eval/loss")[0][1] == pytest.approx(trainers + 1, abs=1e-3)


def test_a_second_evaluation_of_one_update_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Twice(Labelled):
        def evaluate(self, *arguments: Any, **named: Any) -> Any:
            super().evaluate(*arguments, **named)
            return super().evaluate(*arguments, **named)

    made = training(tmp_path, TrackOutputs([EVERY], tmp_path / "run"), kind=Twice, eval_strategy="epoch")
    made.train()
    assert points(tmp_path / "run", "eval/v/max") == [(7, 22.0)]
    assert "metric_key_prefix" in caplog.text


def test_a_metric_that_no_log_can_hold_costs_itself_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = training(
        tmp_path,
        TrackOutputs([EVERY], tmp_path / "run"),
        eval_strategy="epoch",
        compute_metrics=lambda _: {"table": np.zeros((2, 2)), "nan": math.nan, "one": np.float32(0.25), "word": "so"},
    )
    made.train()
    (entry,) = [entry for entry in read_run(tmp_path / "run").entries if "eval/loss" in entry]
    assert (entry["eval/one"], entry["eval/word"]) == (0.25, "so")
    assert math.isnan(entry["eval/nan"])
    assert "eval/table" not in entry
    assert "table" in caplog.text


def test_an_evaluation_that_another_callback_calls_before_the_update_has_ended_is_none_of_its(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Evaluate(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if state.global_step == 3:
                made.evaluate()

        on_substep_end = on_step_end

    outputs = TrackOutputs([EVERY], tmp_path / "run")
    made = training(tmp_path, Evaluate(), outputs, gradient_accumulation_steps=2, num_train_epochs=2)
    made.train()
    sums = [sum(event) for event in made.books.happened if isinstance(event, list)]
    assert len(sums) == 14
    counts = points(tmp_path / "run", "v/count/U1")
    assert [count for _, count in counts] == [2, 2, 2, 1] * 2
    assert points(tmp_path / "run", "eval/v/count")[0][1] == 3


def test_an_evaluation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Fails(Labelled):
        def prediction_step(self, *arguments: Any, **named: Any) -> Any:
            self.predictions = getattr(self, "predictions", 0) + 1
            found = super().prediction_step(*arguments, **named)
            if self.predictions == 2:
                raise ZeroDivisionError
            return found

        def evaluate(self, *arguments: Any, **named: Any) -> Any:
            try:
                return super().evaluate(*arguments, **named)
            except ZeroDivisionError:
                return {}

    made = training(tmp_path, TrackOutputs([EVERY], tmp_path / "run"), kind=Fails, eval_strategy="steps", eval_steps=3)
    made.train()
    assert points(tmp_path / "run", "eval/v/count") == [(6, 3), (7, 3)]


class LogsItsOwn(TrainerCallback):
    """Log a value of its own after each update."""

    def __init__(self, track: TrackOutputs) -> None:
        self.track = track

    def on_step_end(self, *_: Any, **named: Any) -> None:
        assert self.track.run is not None
        self.track.run.log({"own": float(self.track.run.counter.update)})


def test_values_of_ones_own_go_into_the_updates_entry_and_are_watched(tmp_path: Path) -> None:
    best = {"kind": "BestMetricCallback", "every_n_updates": 1, "source_metric_key": "own", "higher_is_better": True}
    track = TrackOutputs([EVERY, best], tmp_path / "run")
    training(tmp_path, track, LogsItsOwn(track), max_steps=4).train()
    entries = read_run(tmp_path / "run").entries
    assert [(entry["update"], entry["own"], entry["own/at_best/own"]) for entry in entries if "own" in entry] == [
        (update, float(update), float(update)) for update in range(1, 5)
    ]
    assert all("v/mean/U1" in entry for entry in entries)
