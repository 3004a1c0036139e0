"""Every shape of loop that people write with Accelerate: epochs, updates, samples and means, against books kept apart.

The rows of docs/loops_accelerate.md are these shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin
from test_transformers_loops import Growing, without_fives
from torch import nn
from torch.utils.data import DataLoader
from trainer_cases import CONFIGS, Books, SizedStream, Stream, numbers, row

from noether_core import MetricEarlyStopCallbackConfig, NoetherError, ScheduleError, read_run
from noether_torch.accelerate import Run

DOCS = Path(__file__).parent.parent / "docs" / "loops_accelerate.md"


class Loop:
    """Train on numbers as Accelerate's guide does; the run is told nothing that `tell` does not say."""

    def __init__(
        self,
        path: Path,
        data: Any,
        pass_size: int = 26,
        *,
        accumulate: Any = 1,
        models: int = 1,
        tell: str = "",
        prepare: bool = True,
        collate: Any = None,
        stop: int = 10**6,
        configs: Any = CONFIGS,
        accelerator: dict[str, Any] | None = None,
        arguments: dict[str, Any] | None = None,
        **loader: Any,
    ) -> None:
        steps = {"gradient_accumulation_steps": accumulate}
        if isinstance(accumulate, GradientAccumulationPlugin):
            steps = {"gradient_accumulation_plugin": accumulate}
        self.accelerator = Accelerator(cpu=True, **steps, **(accelerator or {}))
        self.books = Books(pass_size)
        self.tell, self.stop = tell, stop
        loader = loader or {"batch_size": 4}
        self.loader = DataLoader(data, collate_fn=collate, **loader)
        if prepare:
            self.loader = self.accelerator.prepare(self.loader)
        self.models, self.optimizers = [], []
        for _ in range(models):
            model = nn.Linear(1, 1)
            optimizer = torch.optim.SGD(model.parameters(), 1e-6)
            if not self.models:
                optimizer.register_step_post_hook(lambda *_: self.books.happened.append("update"))
            made = self.accelerator.prepare(model, optimizer)
            self.models.append(made[0])
            self.optimizers.append(made[1])
        self.run = Run(path, configs, accelerator=self.accelerator, **(arguments or {}))

    def step(self, batch: dict[str, Any]) -> None:
        with self.accelerator.accumulate(*self.models):
            self.books.happened.append(batch["v"].tolist())
            for model, optimizer in zip(self.models, self.optimizers, strict=True):
                self.accelerator.backward(model(batch["v"][:, None]).mean())
                optimizer.step()
                optimizer.zero_grad()
            v = self.accelerator.gather(batch["v"]).sum()
            self.run.step({"v": v}, samples=len(batch["v"]) if "samples" in self.tell else None)

    def train(self, epochs: int = 3, done: int = 0) -> None:
        for _ in range(epochs):
            skipped = min(done, len(self.loader)) if done else 0
            done -= skipped
            for batch in self.accelerator.skip_first_batches(self.loader, skipped) if skipped else self.loader:
                self.step(batch)
                if self.run.is_finished or self.batches == self.stop:
                    return
            if "epochs" in self.tell:
                self.run.end_epoch()

    @property
    def batches(self) -> int:
        return sum(isinstance(event, list) for event in self.books.happened)


# name: the samples of a whole pass, and what else the loop has
SHAPES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "26 samples in batches of 4": (numbers(), 26, {}),
    "the same, 2 batches to an update": (numbers(), 26, {"accumulate": 2}),
    "the same, 3 batches to an update": (numbers(), 26, {"accumulate": 3}),
    "the same, 8 batches to an update": (numbers(), 26, {"accumulate": 8}),
    "the same, and `run.end_epoch()` after each pass": (numbers(), 26, {"accumulate": 3, "tell": "epochs"}),
    "`sync_with_dataloader=False`, 4 batches to an update": (
        numbers(),
        26,
        {"accumulate": GradientAccumulationPlugin(num_steps=4, sync_with_dataloader=False)},
    ),
    "shuffled, 2 workers": (numbers(), 26, {"batch_size": 4, "shuffle": True, "num_workers": 2}),
    "`drop_last`": (numbers(), 24, {"batch_size": 4, "drop_last": True}),
    "`drop_last`, 4 batches to an update": (numbers(), 24, {"batch_size": 4, "drop_last": True, "accumulate": 4}),
    "`split_batches`, `even_batches`": (
        numbers(),
        26,
        {"accelerator": {"dataloader_config": DataLoaderConfiguration(split_batches=True, even_batches=True)}},
    ),
    "a batch sampler, `samples=` given": (numbers(), 26, {"batch_sampler": Growing(), "tell": "samples"}),
    "a collate function that drops 6, `samples=` given": (
        numbers(),
        20,
        {"collate": without_fives, "tell": "samples", "accumulate": 2},
    ),
    "a loader that is not prepared, `samples=` and `end_epoch`": (
        numbers(),
        26,
        {"prepare": False, "tell": "samples epochs"},
    ),
    "`updates_per_epoch=4`, `effective_batch_size=8`, 28 samples": (
        numbers(28),
        28,
        {"accumulate": 2, "arguments": {"updates_per_epoch": 4, "effective_batch_size": 8}},
    ),
    "two models and optimizers": (numbers(), 26, {"models": 2, "accumulate": 2}),
    "a sized stream": (SizedStream(26), 26, {}),
    "a stream with 22 samples that says 28": (SizedStream(22, 28), 22, {"accumulate": 4}),
    "a stream without length": (Stream(26), 26, {"accumulate": 3}),
    "left at batch 10, in an epoch's middle": (numbers(), 26, {"stop": 10}),
    "left at batch 9, in an update's middle": (numbers(), 26, {"stop": 9, "accumulate": 3}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_loop_is_counted_as_it_ran(name: str, tmp_path: Path) -> None:
    data, pass_size, given = SHAPES[name]
    loop = Loop(tmp_path, data, pass_size, **given)
    with loop.run:
        loop.train()
    run = read_run(tmp_path)
    assert run.problems == []
    assert run.entries == loop.books.entries()
    assert row(name, run.entries) in DOCS.read_text(encoding="utf-8")


def test_a_loop_stops_early(tmp_path: Path) -> None:
    stop = MetricEarlyStopCallbackConfig(
        every_n_epochs=1, source_metric_key="v/mean/E1", higher_is_better=True, patience=1
    )
    loop = Loop(tmp_path, numbers(), configs=[*CONFIGS, stop])
    with loop.run:
        loop.train(9)
    assert read_run(tmp_path).entries == loop.books.entries()
    assert loop.run.counter.epoch == 2


COUNT_SAMPLES = [{"every_n_samples": 10, "keys": ["v"]}, {"kind": "ThroughputCallback", "every_n_updates": 2}]


@pytest.mark.parametrize("config", COUNT_SAMPLES, ids=["interval", "throughput"])
def test_samples_that_are_not_known_are_an_error_if_something_counts_them(
    config: dict[str, Any], tmp_path: Path
) -> None:
    ways: list[tuple[dict[str, Any], str]] = [
        ({"batch_sampler": Growing()}, "Growing may give any number"),
        ({"collate": without_fives}, "without_fives may put any number"),
        ({"prepare": False}, "prepared no dataloader"),
    ]
    for at, (given, why) in enumerate(ways):
        loop = Loop(tmp_path / str(at), numbers(), configs=[*CONFIGS, config], **given)
        with loop.run:
            with pytest.raises(ScheduleError, match=rf"{why}.*samples=len\(batch\)"):
                loop.train()
            loop.books.happened.clear()
            loop.tell = "samples"
            loop.train(1)
        assert loop.run.counter.sample == (20 if "collate" in given else 26)


def test_a_loader_that_another_loop_left_is_no_business_of_this_one(tmp_path: Path) -> None:
    left = Loop(tmp_path / "left", numbers(), stop=7)
    with left.run:
        left.train()
    assert left.accelerator.gradient_state.end_of_dataloader
    loop = Loop(tmp_path / "run", numbers(), prepare=False, tell="samples epochs")
    with loop.run:
        loop.train()
    assert read_run(tmp_path / "run").entries == loop.books.entries()


def test_a_step_that_fails_has_no_samples(tmp_path: Path) -> None:
    loop = Loop(tmp_path, numbers(), accumulate=2)
    with loop.run:
        for at, batch in enumerate(loop.loader):
            if at == 2:
                with pytest.raises(NoetherError):
                    loop.run.step({"other": 1.0})
            loop.step(batch)
    assert read_run(tmp_path).entries == loop.books.entries()


@pytest.mark.parametrize("place", ["before the step", "after it", "after the run's"])
def test_the_rate_that_an_update_used_is_logged(place: str, tmp_path: Path) -> None:
    rate = {"kind": "LearningRateCallback", "every_n_updates": 1}
    loop = Loop(tmp_path, numbers(), configs=[*CONFIGS, rate])
    (optimizer,) = loop.optimizers
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer.optimizer, 0.5)
    used = []
    with loop.run:
        for batch in loop.loader:
            if place == "before the step":
                optimizer.param_groups[0]["lr"] *= 0.5
            loop.accelerator.backward(loop.models[0](batch["v"][:, None]).mean())
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if place == "after it":
                scheduler.step()
            loop.run.step({"v": batch["v"].sum()})
            if place == "after the run's":
                scheduler.step()
    assert read_run(tmp_path).series["optim/lr/U1"].value.tolist() == used
    assert len(set(used)) == 7
    assert not optimizer.optimizer._optimizer_step_pre_hooks
    with (
        pytest.raises(NoetherError, match="prepared 2 optimizers"),
        Loop(tmp_path / "two", numbers(), configs=[rate], models=2).run,
    ):
        pass


# ---------------------------------------------------------------------- checkpoints


def cases() -> Iterator[tuple[str, Any, int]]:
    for steps in (1, 2, 3):
        for at in (1, 3, 6, 7, 8, 12, 14):
            yield "map", steps, at


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize(("steps", "at"), [(steps, at) for _, steps, at in cases()])
def test_a_state_goes_on_from_anywhere(steps: int, at: int, when: str, tmp_path: Path) -> None:
    """Save in the middle of intervals, accumulations and at epochs' ends; load it elsewhere; do as without."""
    whole = Loop(tmp_path / "whole", numbers(), accumulate=steps)
    with whole.run:
        whole.train()
    first = Loop(tmp_path / "cut", numbers(), accumulate=steps, stop=at)
    with first.run:
        first.train()
        first.accelerator.save_state(str(tmp_path / "state"))
        first.stop, first.tell = at + 4, ""
        first.train()  # and what is after it is superseded
    torch.load(tmp_path / "state" / "custom_checkpoint_0.pkl", weights_only=True)
    second = Loop(tmp_path / "cut", numbers(), accumulate=steps)
    if when == "before":
        second.accelerator.load_state(str(tmp_path / "state"))
    with second.run:
        if when == "inside":
            second.train(1)
            second.accelerator.load_state(str(tmp_path / "state"))
        second.train(3, done=at)
    assert read_run(tmp_path / "cut").entries == whole.books.entries()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("place", ["before", "inside", "after", "before and after", "only"])
def test_a_load_logs_nothing(place: str, steps: int, tmp_path: Path) -> None:
    """Load the best state, as people do at the end, and expect the log to be as it was up to it."""
    first = Loop(tmp_path / "first", numbers(), accumulate=steps, stop=8)
    with first.run:
        first.train()
        first.accelerator.save_state(str(tmp_path / "state"))
        first.stop = 12
        first.train()
        entries = len(first.run.log_writer.log_entries)
    loop = first if place == "after" else Loop(tmp_path / "run", numbers(), accumulate=steps)
    before = read_run(tmp_path / "first").entries
    if "before" in place:
        loop.accelerator.load_state(str(tmp_path / "state"))
    with nullcontext() if place == "after" else loop.run:
        if place == "inside":
            loop.accelerator.load_state(str(tmp_path / "state"))
    if "after" in place or place == "only":
        loop.accelerator.load_state(str(tmp_path / "state"))
    assert read_run(tmp_path / "first").entries == before
    assert len(before) >= entries
    assert loop.run.counter.update == {1: 8, 3: 3}[steps]
    if place != "after":
        assert read_run(tmp_path / "run").entries == []


def test_the_best_state_loaded_at_the_end_takes_back_what_came_after_it(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", numbers(), stop=8)
    with loop.run:
        loop.train()
        loop.accelerator.save_state(str(tmp_path / "best"))
        best = loop.run.log_writer.log_entries[:]
        loop.stop = 12
        loop.train()
        loop.accelerator.load_state(str(tmp_path / "best"))
        loop.accelerator.save_state(str(tmp_path / "again"))
    found = read_run(tmp_path / "run").entries
    assert [entry["update"] for entry in found][: len(best)] == [entry["update"] for entry in best]
    again = torch.load(tmp_path / "again" / "custom_checkpoint_0.pkl", weights_only=True)
    first = torch.load(tmp_path / "best" / "custom_checkpoint_0.pkl", weights_only=True)
    assert again["iteration"] == first["iteration"]
    assert again["callbacks"].keys() == first["callbacks"].keys()


# ---------------------------------------------------------------------- evaluation


def test_an_evaluation_comes_through(tmp_path: Path) -> None:
    best = {"kind": "BestMetricCallback", "every_n_epochs": 1, "source_metric_key": "eval/v", "higher_is_better": False}
    loop = Loop(tmp_path, numbers(), configs=[*CONFIGS, best], accumulate=3)
    held: Any = loop.accelerator.prepare(DataLoader(numbers(10), 4))  # type: ignore[arg-type]
    with loop.run:
        for _ in range(2):
            loop.train(1)
            with loop.run.evaluate():
                for batch in held:
                    loop.run.step({"v": loop.accelerator.gather_for_metrics(batch["v"]).sum()})
                loop.run.log({"own": 0.5})
    entries = read_run(tmp_path).entries
    evaluated = [entry for entry in entries if "eval/own" in entry]
    assert [(entry["epoch"], entry["update"], entry["sample"], entry["eval/v"]) for entry in evaluated] == [
        (1, 3, 26, 15.0),
        (2, 6, 52, 15.0),
    ]
    assert [entry["eval/v/at_best/eval/v"] for entry in evaluated if "eval/v/at_best/eval/v" in entry] == [15.0]
    trained = [{key: value for key, value in entry.items() if "eval" not in key} for entry in entries]
    assert trained == loop.books.entries()
