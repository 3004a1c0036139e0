from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

from noether_core import MissingKeyError, NoetherError, UpdateOutputError, read_run
from noether_core.emit.capsule import read_capsule
from noether_torch import Run
from noether_torch.transformers import TrackOutputs, record

SAMPLES, BATCH_SIZE = 26, 4  # 7 batches an epoch, the last one of 2
CONFIGS = [
    {"every_n_updates": 3, "keys": ["fit", "size"], "patterns": ["half"]},
    {"every_n_epochs": 1, "keys": ["fit"], "reduce": ["mean", "last", "count"]},
    {"every_n_samples": 10, "keys": ["size"], "reduce": "std"},
    {"every_n_epochs": 1, "id": "w", "keys": ["weight"], "reduce": "last", "log_output": False, "save_output": True},
]

# PyTorch's loader says that there is no accelerator to pin memory for
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        predicted = self.layer(x)[:, 0]
        return {"loss": functional.mse_loss(predicted, labels), "predicted": predicted}


def samples() -> list[dict[str, Tensor]]:
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": row.sum()} for row in x]


class Tracked(Trainer):
    seen: list[dict[str, Any]]
    fails_at = -1

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        fit, size = outputs["loss"], model.layer.weight.square().sum()
        if model.training and len(self.seen) == self.fails_at:
            raise ZeroDivisionError("on purpose")
        values = {"fit": fit, "size": size, "half": outputs["predicted"].bfloat16(), "weight": model.layer.weight}
        if model.training:
            self.seen.append({name: value.detach().clone() for name, value in values.items()})
        record(self, values)
        loss = fit + 0.1 * size
        return (loss, outputs) if return_outputs else loss


def trainer(path: Path, *callbacks: TrainerCallback, accumulate: int = 1, kind: type = Tracked, **given: Any) -> Any:
    arguments = TrainingArguments(
        str(path / "output"),
        **{
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            "per_device_train_batch_size": BATCH_SIZE,
            "gradient_accumulation_steps": accumulate,
            "num_train_epochs": 3,
            "learning_rate": 0.1,
            "dataloader_pin_memory": False,
            **given,
        },
    )
    made = kind(Model(), arguments, train_dataset=samples(), eval_dataset=samples()[:5], callbacks=list(callbacks))
    made.seen = []
    return made


def contents(path: Path) -> tuple[Any, Any]:
    run = read_run(path)
    assert run.problems == []
    arrays = {
        (file.interval, str(file.iteration)): {name: values.tobytes() for name, values in file.load().items()}
        for file in run.arrays
    }
    return run.entries, arrays


def plain(path: Path, seen: list[dict[str, Any]], accumulate: int) -> tuple[Any, Any]:
    """Return what a loop of one's own tracks of the same outputs; an epoch's last batch has 2 samples."""
    arguments = {"updates_per_epoch": -(-7 // accumulate), "effective_batch_size": BATCH_SIZE * accumulate}
    with Run(path, CONFIGS, accumulation_steps=accumulate, **arguments) as run:
        for at, outputs in enumerate(seen):
            batch = at % 7 + 1
            run.step(outputs, samples=2 if batch == 7 else 4, ends_update=batch % accumulate == 0 or batch == 7)
    return contents(path)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
def test_a_training_gives_the_numbers_of_a_plain_loop(accumulate: int, tmp_path: Path) -> None:
    training = trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), accumulate=accumulate)
    training.train()
    assert len(training.seen) == 21
    assert contents(tmp_path / "run") == plain(tmp_path / "plain", training.seen, accumulate)
    assert read_run(tmp_path / "run").entries[-1]["update"] == training.state.global_step


def test_an_evaluation_leaves_training_alone(tmp_path: Path) -> None:
    arguments = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    training = trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), accumulate=2, **arguments)
    training.train()
    training.evaluate()
    assert any("eval_loss" in entry for entry in training.state.log_history)
    entries, arrays = contents(tmp_path / "run")
    own = [{key: value for key, value in entry.items() if not key.startswith("eval/")} for entry in entries]
    units = {"epoch", "update", "sample"}
    trained = {place: saved for place, saved in arrays.items() if not place[0].endswith("eval")}
    assert ([entry for entry in own if entry.keys() > units], trained) == plain(tmp_path / "plain", training.seen, 2)


class Listener(TrainerCallback):
    def __init__(self) -> None:
        self.logged: dict[int, dict[str, Any]] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
        self.logged.setdefault(state.global_step, {}).update(logs)


def test_the_trainers_own_log_gets_the_numbers(tmp_path: Path) -> None:
    listener = Listener()
    training = trainer(tmp_path, listener, TrackOutputs(CONFIGS), logging_strategy="steps", logging_steps=3)
    training.train()
    run = read_run(tmp_path / "output" / "noether")  # where path=None puts the run
    assert [entry["update"] for entry in run.entries][:3] == [3, 5, 6]
    for entry in run.entries:
        numbers = {key: value for key, value in entry.items() if key not in ("epoch", "update", "sample")}
        assert numbers.items() <= listener.logged[entry["update"]].items()
        history: dict[str, Any] = {}  # an update that logs at its end and at the training's has two
        for logs in training.state.log_history:
            history.update(logs if logs["step"] == entry["update"] else {})
        assert numbers.items() <= history.items()
    assert all("loss" in listener.logged[update] for update in (3, 6, 9))  # and the trainer still logs its own


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("at", "accumulate", "restore"), [(1, 1, False), (4, 2, True), (5, 2, False), (7, 1, True), (7, 1, False)]
)
def test_a_run_resumed_in_mid_interval_gives_the_uninterrupted_numbers(
    at: int, accumulate: int, restore: bool, tmp_path: Path
) -> None:
    arguments = {
        "accumulate": accumulate,
        "save_strategy": "steps",
        "save_steps": at,
        "restore_callback_states_from_checkpoint": restore,
    }
    whole = trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "whole"), accumulate=accumulate)
    whole.train()
    first = trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "cut"), **arguments)
    first.fails_at = at * accumulate + 1
    with pytest.raises(ZeroDivisionError):
        first.train()
    second = trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "cut"), **arguments)
    second.train(resume_from_checkpoint=str(tmp_path / "output" / f"checkpoint-{at}"))
    assert 0 < len(second.seen) < 21
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    state = json.loads((tmp_path / "output" / f"checkpoint-{at}" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["TrackOutputs"]["run"]["iteration"]["update"] == at


def test_training_twice_starts_anew(tmp_path: Path) -> None:
    training = trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), max_steps=4)
    training.train()
    training.seen.clear()
    training.train()
    assert contents(tmp_path / "run") == plain(tmp_path / "plain", training.seen, 1)


def test_the_callback_starts_at_the_step_of_a_checkpoint_without_its_state(tmp_path: Path) -> None:
    config = {"every_n_updates": 2, "keys": ["fit"]}

    class Bare(Tracked):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
            return Trainer.compute_loss(self, model, inputs, *arguments, **named)

    arguments = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, kind=Bare, max_steps=3, **arguments).train()
    resumed = trainer(tmp_path, TrackOutputs([config], tmp_path / "run"), max_steps=7, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-3"))
    assert [(entry["epoch"], entry["update"]) for entry in read_run(tmp_path / "run").entries] == [
        (0, 4),
        (0, 6),
        (1, 7),
    ]


def test_values_are_taken_when_they_are_recorded(tmp_path: Path) -> None:
    config = {"every_n_updates": 1, "keys": ["weight"]}
    training = trainer(tmp_path, TrackOutputs([config], tmp_path / "run"), max_steps=2)
    training.train()  # the optimizer changes the weight in place afterwards
    means = [point.value for point in read_run(tmp_path / "run").series["weight/U1"]]
    assert means == [outputs["weight"].double().mean().float().item() for outputs in training.seen]


class Wrong(Tracked):
    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        loss = super().compute_loss(*arguments, **named)
        record(self, self.more)
        return loss


def test_a_training_that_fails_has_the_newest_values(tmp_path: Path) -> None:
    callback = TrackOutputs(CONFIGS, tmp_path / "run", flight_recorder=3)
    failing = trainer(tmp_path, callback)
    failing.fails_at = 5
    with pytest.raises(ZeroDivisionError) as caught:
        failing.train()
    assert callback.run is not None
    path = callback.run.flight_recorder.write(caught.value)  # which the process's end does
    assert path is not None
    assert {each.key: len(each.values) for each in read_capsule(path).values}["fit"] == 3
    again = TrackOutputs(**callback.state()["args"])
    assert again.state()["args"] == callback.state()["args"]
    with pytest.raises(NoetherError, match="TrackOutputs got flight_recorder=-1"):
        TrackOutputs(CONFIGS, flight_recorder=-1)


def test_what_cannot_work_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match=r"without TrackOutputs.*callbacks=\[TrackOutputs"):
        trainer(tmp_path).train()
    with pytest.raises(ValidationError, match="every_n_updates"):
        TrackOutputs([{"keys": ["fit"]}])
    with pytest.raises(MissingKeyError, match="Did you mean 'fit'"):
        trainer(tmp_path, TrackOutputs([{"every_n_updates": 1, "keys": ["fitt"]}])).train()
    wrong = trainer(tmp_path, TrackOutputs(CONFIGS), kind=Wrong)
    wrong.more = {"fit": 1.0}
    with pytest.raises(UpdateOutputError, match="'fit' was recorded twice"):
        wrong.train()
    wrong.more = [1.0]
    with pytest.raises(UpdateOutputError, match="expected a dict"):
        wrong.train()
    wrong.more = {"other": 1.0}
    wrong.train()


def test_a_missing_transformers_is_explained() -> None:
    script = "import sys; sys.modules['transformers'] = None; import noether_torch; import noether_torch.transformers"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr
    assert "pip install '.[transformers]'" in done.stderr
