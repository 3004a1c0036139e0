"""Large tensors are summed in pieces: they must not mix what is tracked at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from noether_torch import Run

CALLBACKS = [{"every_n_updates": 1, "keys": ["field"]}]


def means(path: Path, values: list[torch.Tensor]) -> list[float]:
    with Run(path, CALLBACKS) as run:
        for value in values:
            run.step({"field": value})
        return list(run.log_writer.get_all_metric_values("field/U1"))


def test_runs_in_several_threads_do_not_mix(tmp_path: Path) -> None:
    numbers = [float(number) for number in range(4)]
    with ThreadPoolExecutor(len(numbers)) as pool:
        futures = [
            pool.submit(means, tmp_path / str(number), [torch.full((700_000,), number)] * 20) for number in numbers
        ]
    assert [future.result() for future in futures] == [[number] * 20 for number in numbers]


@pytest.mark.parametrize("elements", [10_000, 2**19, 2**19 + 1, 1_500_000])
def test_arrays_of_any_size_and_mode_follow_each_other(elements: int, tmp_path: Path) -> None:
    with Run(tmp_path, CALLBACKS) as run:
        with torch.inference_mode():
            run.step({"field": torch.full((elements,), 3.0)})
        run.step({"field": torch.full((elements,), 4.0, requires_grad=True)})
        run.step({"field": torch.full((elements // 10, 10), 5.0).T})
        run.step({"field": torch.full((elements,), 6.0, dtype=torch.bfloat16)})
        assert run.log_writer.get_all_metric_values("field/U1") == [3.0, 4.0, 5.0, 6.0]
