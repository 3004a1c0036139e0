"""What real processes log and save together is what one process would that has all values, to the bit, in both frameworks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import noether_torch
from parity_tests.drawn_trainings import draw, expected, read_result
from parity_tests.processes import Group

FRONT_ENDS = ["torch", "jax"]
DRAWS = {"plain": 10, "keys": 5}  # of a piece; each is a run in both front-ends
FEW = {"plain": 4, "keys": 3}  # without --full
PIECES = {
    2: range(20),
    3: range(15),
    4: range(1, 11),
    8: range(1, 6),
}  # 1,500 runs in all; without --full each first one


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    ("count", "kind", "seed"), [(count, kind, seed) for count in PIECES for kind in DRAWS for seed in PIECES[count]]
)
def test_processes_log_what_one_would(
    count: int,
    kind: str,
    seed: int,
    group_of: Callable[[str, int], Group],
    tmp_path: Path,
    sized: Callable[..., Iterator[Any]],
    full: bool,
) -> None:
    seeds = range(seed * DRAWS[kind], (seed + 1) * DRAWS[kind])[: None if full else FEW[kind]]
    groups = {front_end: group_of(front_end, count) for front_end in FRONT_ENDS}
    for number in seeds:
        for front_end, group in groups.items():
            group.tell_all(seed=number, kind=kind, path=str(tmp_path / f"{front_end}{number}"))
    told = 0
    for number in seeds:
        training = draw(number, kind, count)
        wanted = expected(training, noether_torch.Run, tmp_path / f"one{number}")
        for front_end, group in sized(groups.items(), "runs of processes"):
            answers = group.answers()
            assert not any("error" in answer for answer in answers), (front_end, number, answers)
            assert read_result(tmp_path / f"{front_end}{number}") == wanted, (front_end, number)
            assert not list((tmp_path / f"{front_end}{number}").glob("unmerged/**/*.safetensors"))
            differing = [text for text in answers[0]["told"] if "have different keys" in text]
            assert len(differing) <= len(training.configs), differing
            assert not any("have different keys" in text for answer in answers[1:] for text in answer["told"])
            told += bool(differing)
    print(f"\n{count} processes, {kind}: {len(seeds)} runs in each front-end are one process's, {told} warned of keys")
