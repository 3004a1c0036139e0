"""A training goes on in another number of real processes, or in the other framework, as if nothing had stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import noether_jax
import noether_torch
from parity_tests.drawn_trainings import read_result
from parity_tests.processes import TIME_LIMIT, Group
from parity_tests.restarts import draw_restart, expected_of, run_part

RUNS: dict[str, Any] = {"torch": noether_torch.Run, "jax": noether_jax.Run}


@pytest.fixture(scope="module")
def group_of() -> Iterator[Callable[[str, int], Group]]:
    """Return what gives the processes of a front-end, which are started once."""
    with ExitStack() as stack:
        groups: dict[tuple[str, int], Group] = {}

        def group(front_end: str, count: int) -> Group:
            if (front_end, count) not in groups:
                groups[front_end, count] = stack.enter_context(Group(front_end, count))
            return groups[front_end, count]

        yield group


@pytest.mark.sweep(8)
@pytest.mark.parametrize("seed", range(200))
def test_a_training_goes_on_in_other_processes(
    seed: int, group_of: Callable[[str, int], Group], tmp_path: Path
) -> None:
    restart, path = draw_restart(seed), tmp_path / "run"
    front_ends = [("torch", "torch"), ("jax", "jax"), ("torch", "jax"), ("jax", "torch")][seed % 4]
    for count, front_end, is_second in zip((restart.before, restart.after), front_ends, (False, True), strict=True):
        if count == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_part(RUNS[front_end], seed, path, 0, is_second=is_second, processes=1)
            continue
        source = f"from parity_tests.restarts import run_part\nrun_part(Run, {seed}, {str(path)!r}, index,"
        group_of(front_end, count).values(f"{source} is_second={is_second}, time_limit={TIME_LIMIT})")
    assert read_result(path) == expected_of(restart, noether_torch.Run, tmp_path / "one")
