"""Loops with random features, of a `Trainer` and of Accelerate, against the books."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import GradientAccumulationPlugin
from test_accelerate_loops import Loop
from trainer_cases import CONFIGS, Books, SizedStream, Stream, counting, numbers
from transformers import TrainerCallback

from noether_core import read_run
from noether_torch.transformers import TrackOutputs

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


class EndEpochs(TrainerCallback):
    """End each epoch after so many updates."""

    def __init__(self, most: int) -> None:
        self.most, self.updates = most, 0

    def on_epoch_begin(self, *_: Any, **named: Any) -> None:
        self.updates = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> Any:
        self.updates += 1
        control.should_epoch_stop |= self.updates == self.most
        return control


def a_data_set(draw: random.Random, batch: int) -> tuple[str, Any, int]:
    """Return what kind it is, itself, and the samples of a pass."""
    kind = draw.choice(["map", "stream", "wrong length", "no length"])
    size = draw.randint(batch, 40)
    if kind == "map":
        return kind, numbers(size), size
    if kind == "stream":
        return kind, SizedStream(size), size
    if kind == "wrong length":
        says = draw.randint(batch, 50)
        return kind, SizedStream(size, says), min(size, -(-says // batch) * batch)
    return kind, Stream(size), size


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(40))
def test_a_random_training_is_counted_as_it_ran(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    batch, steps = draw.randint(1, 6), draw.randint(1, 4)
    kind, data, size = a_data_set(draw, batch)
    if kind == "no length" and size < steps * batch:  # the trainer would pass through it for ever
        size = data.size = steps * batch
    given: dict[str, Any] = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
    if kind == "no length" or draw.random() < 0.3:
        given["max_steps"] = draw.randint(1, 25)
    else:
        given["num_train_epochs"] = draw.choice([1, 2, 3, 1.4])
    if kind == "map" and draw.random() < 0.5:
        given["dataloader_drop_last"] = True
        size -= size % batch
    callbacks: list[Any] = []
    if draw.random() < 0.3:
        most = draw.randint(1, 4)
        callbacks.append(EndEpochs(most))
        size = min(size, most * steps * batch)
    outputs = TrackOutputs(CONFIGS, tmp_path / "run")
    callbacks.insert(draw.randint(0, len(callbacks)), outputs)
    training = counting(tmp_path, data, *callbacks, books=Books(size), **given)
    training.train()
    if "update" not in training.books.happened:  # a stream that is too short for one
        assert [entry["update"] for entry in read_run(tmp_path / "run").entries] == [0]
        return
    assert read_run(tmp_path / "run").entries == training.books.entries(), (kind, given)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(40))
def test_a_random_loop_is_counted_as_it_ran(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    batch, steps = draw.randint(1, 6), draw.randint(1, 4)
    kind, data, size = a_data_set(draw, batch)
    if kind == "wrong length":
        data, size = SizedStream(data.size, data.says), data.size
    given: dict[str, Any] = {"batch_size": batch, "accumulate": steps, "models": draw.randint(1, 2)}
    if kind == "map" and draw.random() < 0.5:
        given["drop_last"] = True
        size -= size % batch
    if draw.random() < 0.3:
        given["accumulate"] = GradientAccumulationPlugin(num_steps=steps, sync_with_dataloader=False)
    given["tell"] = draw.choice(["", "samples", "epochs", "samples epochs"])
    if draw.random() < 0.3:
        given["stop"] = draw.randint(steps, 30)
    loop = Loop(tmp_path / "run", data, size, **given)
    with loop.run:
        loop.train()
    if "update" in loop.books.happened:
        assert read_run(tmp_path / "run").entries == loop.books.entries(), (kind, given)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(20))
def test_a_random_training_goes_on_from_where_it_was_cut_off(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    batch, steps, size = draw.randint(1, 6), draw.randint(1, 4), draw.randint(12, 40)
    data = draw.choice([numbers(size), SizedStream(size)])
    given: dict[str, Any] = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
    whole = counting(tmp_path / "whole", data, TrackOutputs(CONFIGS, tmp_path / "whole"), books=Books(size), **given)
    whole.train()
    batches = sum(isinstance(event, list) for event in whole.books.happened)
    given |= {"save_strategy": "steps", "save_steps": draw.randint(1, 2)}
    path = tmp_path / "cut"
    cuts = sorted(draw.sample(range(2 * steps, batches), min(2, batches - 2 * steps)))
    for at in cuts:
        training = counting(path, data, TrackOutputs(CONFIGS, path / "run"), books=Books(size), **given)
        before = 0 if at == cuts[0] else batches  # the second is cut off after what is left of it by half
        training.fails_at = {at if not before else (batches - cuts[0]) // 2: KeyboardInterrupt()}
        with pytest.raises(KeyboardInterrupt):
            training.train(resume_from_checkpoint=bool(before) or None)
    last = counting(path, data, TrackOutputs(CONFIGS, path / "run"), books=Books(size), **given)
    last.train(resume_from_checkpoint=True)
    assert read_run(path / "run").entries == whole.books.entries(), given
