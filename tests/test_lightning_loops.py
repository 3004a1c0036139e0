from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from noether_core import read_run
from noether_torch.lightning import TrackOutputs
from tests.lightning_cases import CONFIGS, Books, expected, make_trainer
from tests.lightning_shapes import SHAPES, Shape

pytestmark = [
    # one process on two cores: Lightning advises more workers; it is told of lengths that are none, on purpose
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*`__len__` (could be inaccurate|defined)"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*Length of IterableDataset"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*requested to overfit"),
]


def fit(shape: Shape, path: Path, configs: Any = CONFIGS) -> tuple[Books, TrackOutputs]:
    module = Books(**shape.module)
    track = TrackOutputs(configs, path / "run", **shape.track)
    training = make_trainer(path, track, **shape.trainer)
    if shape.raises is None:
        training.fit(module, shape.data())
    else:
        with pytest.raises(shape.raises):
            training.fit(module, shape.data())
    return module, track


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_the_run_has_what_the_books_have(shape: Shape, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, track = fit(shape, tmp_path)
    run = read_run(tmp_path / "run")
    assert run.problems == []
    assert list(run.entries) == expected(module.books, shape.epochs)
    # and the books have what the table says
    assert len(module.books) == shape.batches
    assert sum(batch.steps > 0 for batch in module.books) == shape.updates
    ends = [(entry["epoch"], entry["update"], entry["sample"]) for entry in run.entries if "loss/mean/E1" in entry]
    table = [(epoch, *at) for epoch, at in enumerate(zip(shape.ends, shape.samples, strict=True), start=1)]
    assert ends[: len(table)] == table
    assert track.run is not None
    assert (track.run.counter.epoch, track.run.counter.update) == (len(table), shape.updates)
