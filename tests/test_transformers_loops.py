"""Every shape of loop that a `Trainer` runs: epochs, updates, samples and means, against books kept apart from it.

The rows of docs/loops_transformers.md are these shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Sampler
from trainer_cases import CONFIGS, SIZE, Books, Counting, SizedStream, Stream, counting, numbers, row
from transformers import TrainerCallback

from noether_core import ScheduleError, read_run
from noether_torch.transformers import TrackOutputs

DOCS = Path(__file__).parent.parent / "docs" / "loops_transformers.md"

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


class Growing(Sampler[list[int]]):
    """Give batches of 1, 2, 3, … samples."""

    def __iter__(self) -> Iterator[list[int]]:
        at = 0
        for size in range(1, 8):
            yield list(range(at, min(SIZE, at + size)))
            at += size

    def __len__(self) -> int:
        return 7


class Says(Counting):
    says_samples = True


class WithBatchSampler(Says):
    def get_train_dataloader(self) -> Any:
        loader: Any = DataLoader(self.train_dataset, batch_sampler=Growing(), collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


class Bare(Counting):
    """Have a loader that Accelerate knows nothing of."""

    says_samples = True

    def get_train_dataloader(self) -> Any:
        return DataLoader(self.train_dataset, 4, collate_fn=self.data_collator)


def without_fives(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"v": torch.stack([sample["v"] for sample in samples if int(sample["v"]) % 5])}


class ThirdUpdate(TrainerCallback):
    """End each epoch at its third update."""

    def on_epoch_begin(self, *_: Any, **named: Any) -> None:
        self.updates = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> Any:
        self.updates += 1
        control.should_epoch_stop = self.updates == 3
        return control


class StopAtFive(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> Any:
        control.should_training_stop |= state.global_step == 5
        return control


# name: data, the samples of a whole pass, and what else the trainer is given
SHAPES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "26 samples in batches of 4": (numbers(), 26, {}),
    "the same, 2 batches to an update": (numbers(), 26, {"gradient_accumulation_steps": 2}),
    "the same, 3 batches to an update": (numbers(), 26, {"gradient_accumulation_steps": 3}),
    "the same, 8 batches to an update": (numbers(), 26, {"gradient_accumulation_steps": 8}),
    "`dataloader_drop_last`": (numbers(), 24, {"dataloader_drop_last": True}),
    "`dataloader_drop_last`, 4 to an update": (
        numbers(),
        24,
        {"dataloader_drop_last": True, "gradient_accumulation_steps": 4},
    ),
    "2 workers": (numbers(), 26, {"dataloader_num_workers": 2}),
    "`max_steps=10`, in an epoch's middle": (numbers(), 26, {"max_steps": 10}),
    "`max_steps=14`, at an epoch's end": (numbers(), 26, {"max_steps": 14}),
    "`num_train_epochs=1.5`, 2 to an update": (
        numbers(),
        26,
        {"num_train_epochs": 1.5, "gradient_accumulation_steps": 2},
    ),
    "a batch sampler, `samples=` recorded": (numbers(), 26, {"kind": WithBatchSampler}),
    "a collate function that drops 6, `samples=` recorded": (
        numbers(),
        20,
        {"kind": Says, "data_collator": without_fives},
    ),
    "a loader that Accelerate did not prepare": (numbers(), 26, {"kind": Bare, "gradient_accumulation_steps": 2}),
    "a callback ends each epoch at its third update": (numbers(), 12, {"callbacks": [ThirdUpdate()]}),
    "a callback ends training at update 5": (numbers(), 26, {"callbacks": [StopAtFive()]}),
    "a sized stream": (SizedStream(26), 26, {}),
    "a sized stream, 2 workers, `samples=` recorded": (
        SizedStream(26),
        25,
        {"kind": Says, "dataloader_num_workers": 2},
    ),
    "a stream with 24 samples that says 26": (SizedStream(24, 26), 24, {}),
    "a stream with 22 samples that says 28, 2 to an update": (
        SizedStream(22, 28),
        22,
        {"gradient_accumulation_steps": 2},
    ),
    "a stream with 22 samples that says 28, 4 to an update": (
        SizedStream(22, 28),
        22,
        {"gradient_accumulation_steps": 4},
    ),
    "a stream with 32 samples that says 22": (SizedStream(32, 22), 24, {}),
    "a stream without length, `max_steps=18`": (Stream(26), 26, {"max_steps": 18}),
    "the same, 2 to an update": (Stream(26), 26, {"max_steps": 9, "gradient_accumulation_steps": 2}),
    "the same, 3 passes exactly": (Stream(26), 26, {"max_steps": 21}),
    "the same, unprepared": (Stream(26), 26, {"max_steps": 18, "kind": Bare}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_loop_is_counted_as_it_ran(name: str, tmp_path: Path) -> None:
    data, pass_size, given = SHAPES[name]
    given = dict(given)
    training = counting(
        tmp_path,
        data,
        *given.pop("callbacks", []),
        TrackOutputs(CONFIGS, tmp_path / "run"),
        books=Books(pass_size),
        **given,
    )
    training.train()
    run = read_run(tmp_path / "run")
    assert run.problems == []
    assert run.entries == training.books.entries()
    assert run.entries[-1]["update"] == training.state.global_step
    assert row(name, run.entries) in DOCS.read_text(encoding="utf-8")


@pytest.mark.sweep(2)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["map", "stream", "short stream", "no length"])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_loop_that_was_cut_off_goes_on(name: str, steps: int, strategy: str, tmp_path: Path) -> None:
    """Cut it off at every second batch, and go on from the newest checkpoint: in an epoch's middle, and at its end."""
    data, pass_size, more = {
        "map": (numbers(), 26, {}),
        "stream": (SizedStream(26), 26, {}),
        "short stream": (SizedStream(22, 25), 22, {}),
        "no length": (Stream(26), 26, {"max_steps": 21 // steps}),
    }[name]
    arguments = {
        "gradient_accumulation_steps": steps,
        "save_strategy": strategy,
        "save_steps": 2 if steps == 1 else 1,
        **more,
    }
    whole = counting(
        tmp_path / "whole",
        data,
        TrackOutputs(CONFIGS, tmp_path / "whole" / "run"),
        books=Books(pass_size),
        **more,
        gradient_accumulation_steps=steps,
    )
    whole.train()
    assert read_run(tmp_path / "whole" / "run").entries == whole.books.entries()
    # where a length is wrong or there is none, the trainer itself goes on elsewhere after the first pass
    cuts = {"map": (4, 7, 9, 13), "stream": (4, 7, 9, 13), "short stream": (4, 7), "no length": (4,)}[name]
    for at in [at for at in cuts if at > 7 or strategy == "steps"]:
        path = tmp_path / str(at)
        first = counting(path, data, TrackOutputs(CONFIGS, path / "run"), books=Books(pass_size), **arguments)
        first.fails_at = {at: KeyboardInterrupt()}
        with pytest.raises(KeyboardInterrupt):
            first.train()
        second = counting(path, data, TrackOutputs(CONFIGS, path / "run"), books=Books(pass_size), **arguments)
        second.train(resume_from_checkpoint=True)
        assert read_run(path / "run").entries == whole.books.entries(), at


@pytest.mark.sweep(1)
@pytest.mark.parametrize("says", [False, True])
def test_an_attempt_out_of_memory_is_superseded(says: bool, tmp_path: Path) -> None:
    outputs = TrackOutputs(CONFIGS, tmp_path / "run")
    training = counting(
        tmp_path,
        numbers(),
        outputs,
        kind=Says if says else Counting,
        auto_find_batch_size=True,
        gradient_accumulation_steps=2,
    )
    training.fails_at = {9: RuntimeError("CUDA out of memory.")}
    original = training.books.happened
    training.train()
    aborted = 9 + 5  # 9 batches, and the updates that they make
    training.books.happened = original[aborted:]
    assert len(original[aborted]) == 3
    run = read_run(tmp_path / "run")
    assert run.entries == training.books.entries()
    assert run.superseded == 5 + 1  # and what its end gave out of the intervals under way
    assert all(entry["step"] > 0 for entry in training.state.log_history)


def test_a_second_training_into_the_same_directory_supersedes_the_first(tmp_path: Path) -> None:
    counting(tmp_path, numbers(), TrackOutputs(CONFIGS, tmp_path / "run"), max_steps=20).train()
    training = counting(tmp_path, numbers(14), TrackOutputs(CONFIGS, tmp_path / "run"), books=Books(14), max_steps=6)
    training.train()
    assert read_run(tmp_path / "run").entries == training.books.entries()
    training.books.happened.clear()
    training.train()
    assert read_run(tmp_path / "run").entries == training.books.entries()


COUNT_SAMPLES = [
    {"every_n_samples": 10, "keys": ["v"]},
    {"kind": "ThroughputCallback", "every_n_updates": 2},
]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("config", COUNT_SAMPLES, ids=lambda config: str(config)[:20])
@pytest.mark.parametrize("name", ["batch sampler", "collate", "workers"])
def test_samples_that_are_not_known_are_an_error_if_something_counts_them(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    class Silent(WithBatchSampler):
        says_samples = False

    data, given, why = {
        "batch sampler": (numbers(), {"kind": Silent}, "Growing may give any number"),
        "collate": (numbers(), {"data_collator": without_fives}, "without_fives may put any number"),
        "workers": (SizedStream(26), {"dataloader_num_workers": 2}, "SizedStream is iterable"),
    }[name]
    training = counting(tmp_path, data, TrackOutputs([*CONFIGS, config], tmp_path / "run"), **given)
    with pytest.raises(ScheduleError, match=rf"{why}.*samples=len\(inputs\['labels'\]\)"):
        training.train()
    counting(tmp_path, data, TrackOutputs(CONFIGS, tmp_path / "other"), **given).train()


def test_intervals_of_samples_end_where_the_samples_do(tmp_path: Path) -> None:
    config = {"every_n_samples": 10, "keys": ["v"], "reduce": "count"}
    counting(tmp_path, numbers(), TrackOutputs([config], tmp_path / "run"), num_train_epochs=2).train()
    sizes, ends, sample = [4, 4, 4, 4, 4, 4, 2] * 2, [], 0
    for update, size in enumerate(sizes, 1):
        if (sample + size) // 10 > sample // 10:
            ends.append((update, sample + size))
        sample += size
    assert [(each["update"], each["sample"]) for each in read_run(tmp_path / "run").entries] == [*ends, (14, 52)]
