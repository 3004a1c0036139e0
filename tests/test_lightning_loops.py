from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from noether_core import read_run
from noether_torch.lightning import TrackOutputs
from tests.lightning_cases import CONFIGS, Batches, Books, UnsizedBatches, epochs_of, expected, make_trainer, samples
from tests.lightning_shapes import SHAPES, Shape, table

pytestmark = [
    # one process on two cores: Lightning advises more workers; it is told of lengths that are none, on purpose
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*`__len__` (could be inaccurate|defined)"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*Length of IterableDataset"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    # JAX, which other tests load, says so of each worker; the workers do not call it
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called"),
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


def random_shape(rng: np.random.Generator) -> tuple[Any, dict[str, Any], dict[str, Any], int | None]:
    """Return a loader, arguments of the trainer and of the module, and how many batches the trainer knows a pass to have."""
    held = rng.integers(1, 6, rng.integers(1, 8)).tolist()
    batches = list(samples(sum(held)).split(held))
    says = [None, len(held), len(held) + int(rng.integers(1, 3)), max(1, len(held) - 1)][rng.integers(4)]
    data = UnsizedBatches(batches) if says is None else Batches(batches, says)
    passes = int(rng.integers(1, 4))
    end = (
        {"max_epochs": passes}
        if rng.random() < 0.5
        else {"max_steps": int(rng.integers(1, 3 * len(held) + 1)), "max_epochs": 5}
    )
    module: dict[str, Any] = {"skips": tuple(rng.integers(0, 12, rng.integers(0, 3)).tolist())}
    kind = rng.integers(4)
    if kind == 0:
        end["accumulate_grad_batches"] = int(rng.integers(1, 5))
    elif kind == 1:
        schedule = {epoch: int(rng.integers(1, 4)) for epoch in range(3)}
        end["callbacks"] = lambda: [GradientAccumulationScheduler(schedule)]
    elif kind == 2:
        module |= {"optimizers": int(rng.integers(1, 4)), "every": int(rng.integers(1, min(3, len(held)) + 1))}
    known = len(held) if says is None else min(says, len(held))
    return data, end, module, None if says is not None and says > len(held) else known


@pytest.mark.sweep(12)
@pytest.mark.parametrize("seed", range(60))
def test_so_it_has_in_random_shapes(seed: int, tmp_path: Path) -> None:
    data, arguments, of_module, known = random_shape(np.random.default_rng(seed))
    module = Books(**of_module)
    make_trainer(tmp_path, TrackOutputs(CONFIGS, tmp_path / "run"), **arguments).fit(module, data)
    epochs = epochs_of(module.books)
    is_cut = module.trainer.global_step >= arguments.get("max_steps", np.inf) and epochs[-1] != known
    run = read_run(tmp_path / "run")
    assert run.problems == []
    assert list(run.entries) == expected(module.books, epochs[: len(epochs) - is_cut])


def test_the_docs_have_the_table() -> None:
    assert "\n".join(table()) in Path("docs/loops.md").read_text(encoding="utf-8")
