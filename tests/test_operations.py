"""A step of PyTorch's costs a handful of operations, however many values it has; the rest is done for many steps at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from noether_torch import Run


class Counting(TorchDispatchMode):
    """Count the operations that work on values; a view, and reading a number that is on the host, do not."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and function is not torch.ops.aten._local_scalar_dense.default:
            self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def operations(values: list[torch.Tensor], directory: Path, *, reduce: list[str], steps: int) -> Counter[str]:
    """Return the operations of some steps in the middle of an interval."""
    outputs = {f"loss/{at}": value for at, value in enumerate(values)}
    with Run(directory, [{"every_n_updates": 10_000, "patterns": ["loss/"], "reduce": reduce}]) as run:
        run.step(outputs)
        with Counting() as counting:
            for _ in range(steps):
                run.step(outputs)
    return counting.counts


@pytest.mark.parametrize("num_keys", [1, 100])
@pytest.mark.parametrize(("shape", "most"), [((), 0), ((3, 4), 1)], ids=str)
def test_a_step_stacks_its_values(num_keys: int, shape: tuple[int, ...], most: int, tmp_path: Path) -> None:
    counts = operations([torch.ones(shape)] * num_keys, tmp_path, reduce=["mean", "std", "min"], steps=1)
    assert counts.total() <= most, counts


@pytest.mark.parametrize("shape", [(), (3, 4)], ids=str)
def test_the_rest_is_done_once_for_many_steps(shape: tuple[int, ...], tmp_path: Path) -> None:
    counts = operations([torch.ones(shape)] * 10, tmp_path, reduce=["mean", "std", "min"], steps=512)
    assert counts.total() <= 512 * 10, counts  # a step that reduced its own values would make a hundred and more


def test_a_large_array_is_read_a_few_times(tmp_path: Path) -> None:
    field = torch.ones(1025)
    assert operations([field], tmp_path, reduce=["mean"], steps=1).total() <= 1
    assert operations([field], tmp_path, reduce=["mean", "min"], steps=1).total() <= 4
    assert operations([field], tmp_path, reduce=["mean", "min", "std"], steps=1).total() <= 8
