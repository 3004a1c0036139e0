"""Nothing of the user's is patched, so that modules and callbacks can be copied at any time; and states come back."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor

from noether_core import NoetherError, read_run
from noether_torch import TrackAdditionalOutputsCallbackConfig
from noether_torch.lightning import TrackOutputs
from tests.lightning_cases import CONFIGS, Batches, Books, expected, in_batches, loader, make_trainer
from tests.test_lightning_callbacks import KINDS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


def copies(thing: Any) -> list[Any]:
    saved = io.BytesIO()
    torch.save(thing, saved)
    saved.seek(0)
    return [copy.deepcopy(thing), pickle.loads(pickle.dumps(thing)), torch.load(saved, weights_only=False)]


class Scale(pl.LightningModule):
    """Return the weight times three as the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Tensor) -> Tensor:
        return self.weight * 3

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.weight], lr=0.01)


class Copies(pl.Callback):
    """Copy the module and the tracking callback at every hook."""

    def __init__(self, track: TrackOutputs) -> None:
        self.track = track
        self.losses: list[float] = []
        self.states: list[Any] = []

    def look(self, pl_module: Scale) -> None:
        before = dict(vars(pl_module))
        for each in copies(pl_module):
            each.weight.data.fill_(3.0)
            self.losses.append(each.training_step(torch.ones(1)).item())
        assert "training_step" not in vars(pl_module)
        assert vars(pl_module).keys() == before.keys()
        for each in copies(self.track):
            assert each.run is None
            self.states.append(each)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.look(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.look(pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.look(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.look(pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.look(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.look(pl_module)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_modules_and_callbacks_are_copied_before_during_and_after(accumulate: int, tmp_path: Path) -> None:
    track = TrackOutputs(KINDS, tmp_path / "run")
    watch = Copies(track)
    module = Scale()
    training = make_trainer(tmp_path, track, watch, max_epochs=1, accumulate_grad_batches=accumulate)
    watch.look(module)
    training.fit(module, loader())
    watch.look(module)
    assert set(watch.losses) == {9.0}  # of the copy's own weight
    assert "output_result_cls" not in vars(training.fit_loop.epoch_loop.automatic_optimization)
    for each in watch.states[:: len(watch.states) // 5]:  # each copy tracks a training of its own
        vars(each)["_path"] = tmp_path / "copy"
        make_trainer(tmp_path, each, max_epochs=1, accumulate_grad_batches=accumulate).fit(Scale(), loader())
        own, other = (read_run(tmp_path / name).series["loss/U1"].value.tolist() for name in ("run", "copy"))
        assert own == other


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.name)
def test_configs_are_copied(config: Any) -> None:
    for each in copies(config):
        assert each == config


class Waits(pl.Callback):
    """Copy the trainer's own outputs as another callback sees them."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append((type(outputs), {name: value.item() for name, value in outputs.items()}))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_other_callbacks_see_does_not_change(accumulate: int, tmp_path: Path) -> None:
    seen = []
    for track in ([], [TrackOutputs(CONFIGS, tmp_path / "run")]):
        others = Waits()
        make_trainer(tmp_path, *track, others, max_epochs=2, accumulate_grad_batches=accumulate).fit(Books(), loader())
        seen.append(others.seen)
    assert seen[0] == seen[1]


def test_a_compiled_module_trains_as_it_is(tmp_path: Path) -> None:
    module = Books()
    compiled = torch.compile(module, backend="eager")
    make_trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), max_epochs=2).fit(compiled, loader())
    assert list(read_run(tmp_path / "run").entries) == expected(module.books, (7, 7))


# ------------------------------------------------------------------ several, and states


def test_several_callbacks_each_have_their_own_run_and_state(tmp_path: Path) -> None:
    def three() -> list[TrackOutputs]:
        return [
            TrackOutputs([{"every_n_updates": 4, "keys": ["loss"], "reduce": "count"}]),
            TrackOutputs(CONFIGS, tmp_path / "second"),
            TrackOutputs([{"every_n_updates": 4, "keys": ["loss"], "reduce": "count"}]),
        ]

    first = make_trainer(tmp_path, *three(), max_steps=10)
    module = Books()
    first.fit(module, Batches(in_batches()))
    first.save_checkpoint(tmp_path / "ten.ckpt")
    state = torch.load(tmp_path / "ten.ckpt", weights_only=True)
    assert [sorted(value["run"]) for value in state["noether_torch.TrackOutputs"].values()] == [
        ["accumulated", "callbacks", "has_outputs", "iteration", "samples", "start", "times"]
    ] * 3
    second = make_trainer(tmp_path, *three(), max_steps=14)
    second.fit(module, Batches(in_batches()), ckpt_path=tmp_path / "ten.ckpt", weights_only=True)
    for name in ("noether", "noether_2"):
        assert [(p.update, p.value) for p in read_run(tmp_path / name).series["loss/count/U4"]] == [
            (4, 4), (8, 4), (12, 4), (14, 2)
        ]  # fmt: skip
    assert read_run(tmp_path / "second").entries[-1]["update"] == 14


def test_two_in_one_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match="give each its own"):
        make_trainer(
            tmp_path,
            TrackOutputs(CONFIGS, tmp_path / "run"),
            TrackOutputs(CONFIGS, tmp_path / "x" / ".." / "run"),
            max_epochs=1,
        ).fit(Books(), loader())


def test_another_config_does_not_take_the_state(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), max_steps=10)
    first.fit(Books(), loader())
    first.save_checkpoint(tmp_path / "ten.ckpt")
    other = make_trainer(tmp_path, TrackOutputs(CONFIGS[:1], tmp_path / "run"), max_steps=14)
    with pytest.raises(NoetherError, match="same config"):
        other.fit(Books(), loader(), ckpt_path=tmp_path / "ten.ckpt", weights_only=True)


@pytest.mark.parametrize("optimizers", [1, 2])
def test_a_checkpoint_without_a_state_says_where_training_is(optimizers: int, tmp_path: Path) -> None:
    """Lightning counts each optimizer's steps; the run counts updates, and pools no two epochs."""
    first = make_trainer(tmp_path, max_epochs=2)
    first.fit(Books(optimizers), loader())
    first.save_checkpoint(tmp_path / "two.ckpt")
    module = Books(optimizers)
    second = make_trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), max_epochs=4)
    second.fit(module, loader(), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    series = read_run(tmp_path / "run").series["loss/count/E1"]
    assert [(p.epoch, p.update, p.value) for p in series] == [(3, 21, 7), (4, 28, 7)]
    assert np.diff(read_run(tmp_path / "run").series["loss/U1"].sample).tolist() == [4] * 5 + [2] + [4] * 6 + [2]


def test_a_rerun_supersedes_and_so_does_a_retry(tmp_path: Path) -> None:
    saved = TrackAdditionalOutputsCallbackConfig(every_n_epochs=1, keys=["loss"], save_output=True, id="saved")
    configs = [*CONFIGS, saved]
    make_trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=3).fit(Books(), loader())

    def fails(model: Books) -> None:
        if len(model.books) == 9:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="memory"):
        make_trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=1).fit(
            Books(does=fails), loader(26, 2)
        )
    module = Books()
    make_trainer(tmp_path, TrackOutputs(configs, tmp_path / "run"), max_epochs=2).fit(module, loader(26, 8))
    run = read_run(tmp_path / "run")
    assert [{k: v for k, v in entry.items() if k != "loss/E1"} for entry in run.entries] == expected(
        module.books, (4, 4)
    )
    assert [file.iteration.update for file in run.arrays] == [4, 8]
    assert [file.load()["loss"].item() for file in run.arrays] == run.series["loss/E1"].value.tolist()


def test_one_callback_serves_one_training_after_another(tmp_path: Path) -> None:
    track = TrackOutputs(CONFIGS, tmp_path / "run")
    for _ in range(2):
        module = Books()
        make_trainer(tmp_path, track, max_epochs=2).fit(module, loader())
        assert list(read_run(tmp_path / "run").entries) == expected(module.books, (7, 7))


# ------------------------------------------------------------------ samples


class Anything(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight * 2

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.weight], lr=0.01)


class AsIs:
    """Yield these batches."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


UNKNOWN = {
    "texts": ["a", "b", "c"],
    "lengths that differ": {"points": torch.ones(5, 3), "graphs": torch.ones(2)},
    "images of their own sizes": [torch.ones(3, 4, 4), torch.ones(1, 5, 5)],
    "a number": torch.ones(()),
    "packed": torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
}
KNOWN = {
    "a pair": ((torch.ones(5, 3), torch.ones(5)), 5),
    "nested": (
        {"x": [torch.ones(4), {"y": torch.ones(4, 2)}], "names": ["a", "b"], "scale": torch.ones(()), "n": 3},
        4,
    ),
    "NumPy": ({"x": np.ones((6, 2))}, 6),
    "a row": (torch.ones(1, 3), 1),
}


def three(batch: Any) -> Any:
    return np.int64(3)


def two_and_a_half(batch: Any) -> Any:
    return 2.5


COUNTS = [{"every_n_samples": 1, "keys": ["loss"]}]


@pytest.mark.parametrize("name", KNOWN)
def test_samples_are_what_the_batch_held(name: str, tmp_path: Path) -> None:
    batch, size = KNOWN[name]
    make_trainer(tmp_path, TrackOutputs(COUNTS, tmp_path / "run"), max_epochs=1).fit(Anything(), AsIs([batch] * 3))
    assert [entry["sample"] for entry in read_run(tmp_path / "run").entries] == [size, 2 * size, 3 * size]


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("counts", [COUNTS, [{"kind": "ThroughputCallback", "every_n_updates": 1}]])
def test_samples_that_cannot_be_known_are_an_error_where_they_count(name: str, counts: Any, tmp_path: Path) -> None:
    batches = AsIs([UNKNOWN[name]] * 3)
    with pytest.raises(NoetherError, match=r"counts samples, but how many this batch held is not known.*batch_size="):
        make_trainer(tmp_path, TrackOutputs(counts, tmp_path / "none"), max_epochs=1).fit(Anything(), batches)
    make_trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), max_epochs=1).fit(Anything(), batches)
    assert [entry["update"] for entry in read_run(tmp_path / "run").entries] == [1, 2, 3]
    for given in (3, three):
        track = TrackOutputs(COUNTS, tmp_path / "given", batch_size=given)
        make_trainer(tmp_path, track, max_epochs=1).fit(Anything(), batches)
        assert [entry["sample"] for entry in read_run(tmp_path / "given").entries] == [3, 6, 9]


def test_a_batch_size_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match="batch_size=0; expected an int of at least 1"):
        TrackOutputs(COUNTS, batch_size=0)
    track = TrackOutputs(COUNTS, tmp_path / "run", batch_size=two_and_a_half)
    with pytest.raises(NoetherError, match=r"returned float 2\.5 for a batch"):
        make_trainer(tmp_path, track, max_epochs=1).fit(Anything(), AsIs([torch.ones(2)]))
