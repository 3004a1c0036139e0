"""Real processes that track other keys, in other orders, and one that tracks none: exact values, and how many have each key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

import noether_torch
from parity_tests.drawn_trainings import Training, draw, expected, interval_ends, read_result
from parity_tests.processes import Group

COUNTS = range(2, 9)
PIECE = 20  # seeds
PIECES = sorted((2 + piece % len(COUNTS), piece) for piece in range(50))  # by how many processes; 1,000 seeds in all


@pytest.mark.parametrize(
    ("count", "piece"),
    [pytest.param(*each, marks=pytest.mark.slow if number else ()) for number, each in enumerate(PIECES)],
)
def test_values_are_exact_and_who_has_which_key_is_said(
    count: int,
    piece: int,
    group_of: Callable[[str, int], Group],
    full: bool,
    tmp_path: Path,
    sized: Callable[..., Iterator[Any]],
) -> None:
    seeds = range(piece * PIECE, piece * PIECE + (PIECE if full else 4))
    places = {seed: (("torch", "jax")[seed % 2], tmp_path / str(seed)) for seed in seeds}
    for seed, (front_end, path) in places.items():
        group_of(front_end, count).tell_all(seed=seed, kind="none", path=str(path))
    for seed in sized(seeds, "seeds"):
        front_end, path = places[seed]
        training = draw(seed, "none", count)
        answers = group_of(front_end, count).answers()
        assert not any("error" in answer for answer in answers), (front_end, seed, answers)
        assert read_result(path) == expected(training, noether_torch.Run, tmp_path / f"one{seed}"), (front_end, seed)
        assert not list(path.glob("unmerged/**/*.safetensors"))
        said = {}
        for text in answers[0]["told"]:
            if "have different keys" in text:
                said |= read_warning(text, count)
        if len(set(training.updates)) == 1:  # one that ends before the others has none at their later intervals' ends
            assert said == lacking(training), (front_end, seed, answers[0]["told"])
        assert not any("have different keys" in text for answer in answers[1:] for text in answer["told"])


def read_warning(text: str, count: int) -> dict[str, list[int]]:
    """Return what a warning says of each key: the processes that lack it, whose number it counts too."""
    found: dict[str, list[int]] = {}
    pattern = r"in (\d+) of them, not in process ([\d, ]+): (('[^']*'(, )?)+)"
    for contributors, processes, keys, *_ in re.findall(pattern, text):
        without = [int(process) for process in processes.split(", ")]
        assert int(contributors) == count - len(without), text
        found |= dict.fromkeys(re.findall(r"'([^']*)'", keys), without)
    assert found, text
    return found


def lacking(training: Training) -> dict[str, list[int]]:
    """Return which processes lack which keys: of each callback at the first end of an interval by which that is so."""
    found: dict[str, list[int]] = {}
    told: set[int] = set()
    ends = sorted(
        (end, at) for at, config in enumerate(training.configs) for end in interval_ends(config, len(training.steps))
    )
    for end, together in groupby(ends, itemgetter(0)):
        before = set(found)
        for _, at in together:
            differing = {} if at in told else _differing(training, training.configs[at], end)
            told |= {at} if differing else set()
            found |= {key: processes for key, processes in differing.items() if key not in before}
    return found


def _differing(training: Training, config: dict[str, Any], end: int) -> dict[str, list[int]]:
    """Return which processes lack which keys of a callback, of those that any had by an update."""
    have: dict[str, set[int]] = {}
    for step in (step for update in training.steps[:end] for step in update):
        for process, outputs in enumerate(step):
            for key in outputs or {}:
                if key in config.get("keys", ()) or any(each in key for each in config.get("patterns", ())):
                    have.setdefault(key, set()).add(process)
    count = range(len(training.updates))
    lacked = {key: [process for process in count if process not in processes] for key, processes in have.items()}
    return {key: processes for key, processes in lacked.items() if processes}
