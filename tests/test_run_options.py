"""A trainer's callback hands the options of `Run` on to its run, and refuses others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trainer_cases import SizedStream, counting

from noether_core import NoetherError, read_run
from noether_torch import lightning, transformers
from tests.lightning_cases import Books, loader, make_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
]
OPTIONS: Any = {"time_limit": 7.0, "durability": "flush"}


def in_lightning(path: Path, track: Any) -> None:
    make_trainer(path, track, max_epochs=1).fit(Books(), loader())


def in_transformers(path: Path, track: Any) -> None:
    counting(path, SizedStream(26), track, num_train_epochs=1).train()


both = pytest.mark.parametrize(
    ("kind", "key", "train"),
    [(lightning.TrackOutputs, "loss", in_lightning), (transformers.TrackOutputs, "v", in_transformers)],
    ids=["lightning", "transformers"],
)


@both
def test_options_reach_the_run(kind: Any, key: str, train: Any, tmp_path: Path) -> None:
    track = kind([{"every_n_updates": 1, "keys": [key]}], tmp_path / "run", **OPTIONS)
    train(tmp_path, track)
    assert track.run.log_writer.disk.durability == "flush"
    assert read_run(tmp_path / "run").problems == []


def test_a_trainers_state_has_the_options() -> None:
    track = transformers.TrackOutputs([{"every_n_updates": 1, "keys": ["v"]}], **OPTIONS)
    again = transformers.TrackOutputs(**track.state()["args"])
    assert again.state()["args"] == track.state()["args"]
    assert OPTIONS.items() <= again.state()["args"].items()


@both
def test_others_are_refused(kind: Any, key: str, train: Any) -> None:
    configs = [{"every_n_updates": 1, "keys": [key]}]
    with pytest.raises(TypeError, match=r"unexpected argument 'durabilty'\. Did you mean 'durability'"):
        kind(configs, durabilty="flush")
    with pytest.raises(NoetherError, match="got durability='always'; expected 'interval' or 'flush'"):
        kind(configs, durability="always")
    with pytest.raises(NoetherError, match="got time_limit=0; expected seconds"):
        kind(configs, time_limit=0)
