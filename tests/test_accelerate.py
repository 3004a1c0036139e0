from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from torch import Tensor, nn

from noether_core import NoetherError, UpdateOutputError, read_run
from noether_torch import Run as PlainRun
from noether_torch.accelerate import Run

BATCHES, BATCH_SIZE = 7, 4
CONFIGS = [
    {"every_n_updates": 3, "keys": ["loss"], "patterns": ["part/"]},
    {"every_n_epochs": 1, "keys": ["loss"], "reduce": ["mean", "last", "count"]},
    {"every_n_samples": 10, "patterns": ["part/"], "reduce": "std"},
    {"every_n_epochs": 1, "id": "e", "keys": ["error"], "reduce": "last", "log_output": False, "save_output": True},
    {
        "every_n_epochs": 1,
        "id": "s",
        "keys": ["part/half"],
        "reduce": "stack",
        "log_output": False,
        "save_output": True,
    },
]


class Memory(GeneralTracker):
    name = "memory"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> Any:
        return self

    @on_main_process
    def store_init_configuration(self, values: Any) -> None: ...

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **named: Any) -> None:
        self.logged.append((step, values))


class Loop:
    """A training loop as Accelerate's guide has it."""

    def __init__(self, path: Path, accumulate: int, memory: Memory | None = None) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, log_with=memory)
        if memory is not None:
            self.accelerator.init_trackers("test")
        model = nn.Linear(3, 1)
        generator = torch.Generator().manual_seed(1)
        loader = torch.utils.data.DataLoader(torch.randn(BATCHES * BATCH_SIZE - 2, 3, generator=generator), BATCH_SIZE)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, torch.optim.Adam(model.parameters(), 0.1), loader
        )
        self.run = Run(
            path,
            CONFIGS,
            accelerator=self.accelerator,
            updates_per_epoch=-(-BATCHES // accumulate),
            effective_batch_size=BATCH_SIZE * accumulate,
        )
        self.seen: list[dict[str, Any]] = []

    def step(self, batch: Tensor) -> None:
        with self.accelerator.accumulate(self.model):
            error = self.model(batch) - batch.sum(1, keepdim=True)
            loss = error.square().mean()
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            # the last batch has two samples fewer, so its errors are not stacked with the others'
            outputs = {"loss": loss, "part": {"bias": error.mean(), "half": error[:2].bfloat16()}, "error": error}
            self.run.step(outputs)
        self.seen.append(outputs)

    def train(self, epochs: int, done: int = 0, stop: int = 1000) -> None:
        for epoch in range(epochs):
            loader = self.loader
            skipped = min(max(done - epoch * BATCHES, 0), BATCHES)
            if skipped == BATCHES:
                continue
            for batch in self.accelerator.skip_first_batches(loader, skipped) if skipped else loader:
                self.step(batch)
                if len(self.seen) == stop:
                    return


def contents(path: Path) -> tuple[Any, Any]:
    run = read_run(path)
    assert run.problems == []
    arrays = {
        (file.interval, str(file.iteration)): {name: values.tobytes() for name, values in file.load().items()}
        for file in run.arrays
    }
    return run.entries, arrays


@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
def test_a_loop_gives_the_numbers_of_a_plain_run(accumulate: int, tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", accumulate)
    with loop.run:
        loop.train(2)
    arguments = {"updates_per_epoch": -(-BATCHES // accumulate), "effective_batch_size": BATCH_SIZE * accumulate}
    with PlainRun(tmp_path / "plain", CONFIGS, accumulation_steps=accumulate, **arguments) as plain:
        for at, outputs in enumerate(loop.seen):
            batch = at % BATCHES + 1
            plain.step(outputs, ends_update=batch % accumulate == 0 or batch == BATCHES)
    assert contents(tmp_path / "run") == contents(tmp_path / "plain")
    assert loop.run.counter.epoch == 2


@pytest.mark.parametrize("when", ["before the run starts", "in the run"])
@pytest.mark.parametrize(("at", "accumulate"), [(1, 1), (4, 2), (5, 1), (8, 1), (10, 3)])
def test_a_run_loaded_in_mid_interval_gives_the_uninterrupted_numbers(
    at: int, accumulate: int, when: str, tmp_path: Path
) -> None:
    whole = Loop(tmp_path / "whole", accumulate)
    with whole.run:
        whole.train(3)
    first = Loop(tmp_path / "cut", accumulate)
    first.run.start()
    first.train(3, stop=at)
    first.accelerator.save_state(str(tmp_path / "state"))
    first.run.log_writer.close()  # and no more: as if it were killed
    second = Loop(tmp_path / "cut", accumulate)
    if when == "in the run":
        with second.run:
            second.accelerator.load_state(str(tmp_path / "state"))
            second.train(3, done=at)
    else:
        second.accelerator.load_state(str(tmp_path / "state"))
        with second.run:
            second.train(3, done=at)
    assert len(second.seen) == 3 * BATCHES - at
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_checkpoint_needs_no_unpickling_of_objects(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", 2)
    loop.run.start()
    loop.train(1, stop=3)
    loop.accelerator.save_state(str(tmp_path / "state"))
    state = torch.load(tmp_path / "state" / "custom_checkpoint_0.pkl", weights_only=True)
    assert state["iteration"]["update"] == 1
    assert state["accumulated"] == 1


def test_the_accelerators_trackers_get_the_numbers(tmp_path: Path) -> None:
    memory = Memory()
    loop = Loop(tmp_path / "run", 2, memory)
    with loop.run:
        loop.train(1)
    logged: dict[Any, dict[str, Any]] = {}
    for step, values in memory.logged:
        logged.setdefault(step, {}).update(values)
    units = ("epoch", "update", "sample")
    entries = read_run(tmp_path / "run").entries
    assert logged == {
        entry["update"]: {name: value for name, value in entry.items() if name not in units} for entry in entries
    }


def test_what_cannot_work_says_so(tmp_path: Path) -> None:
    config = {"every_n_updates": 1, "keys": ["loss"]}
    with pytest.raises(NoetherError, match=r"accelerator=None; expected an accelerate\.Accelerator"):
        Run(tmp_path, [config], accelerator=None)
    with pytest.raises(NoetherError, match="gradient_accumulation_steps"):
        Run(tmp_path, [config], accelerator=Accelerator(cpu=True), accumulation_steps=2)
    with pytest.raises(NoetherError, match=r"trackers=\['console'\]"):
        Run(tmp_path, [config], accelerator=Accelerator(cpu=True), trackers="console")
    with Run(tmp_path, [config], accelerator=Accelerator(cpu=True)) as run, pytest.raises(UpdateOutputError):
        run.step({"loss": "high"})
