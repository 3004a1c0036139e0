"""A training that stops and starts again from an older checkpoint, three times over, reads back as its newest attempt."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import noether_jax
import noether_torch
from noether_core import read_run

FRONT_ENDS = {"jax": noether_jax, "torch": noether_torch}
CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 1, "keys": ["loss"], "save_output": True},
    {"every_n_updates": 3, "keys": ["loss"], "reduce": {"": ["mean", "last"]}, "id": "three"},
]
ATTEMPTS = 4
Values = dict[int, float]  # of each update, in one line of descent


class Checkpoint(NamedTuple):
    """Hold where a state was saved, and what had been done then: the values, and which attempt gave each."""

    path: Path
    update: int
    values: Values
    attempts: dict[int, int]


class StopError(Exception):
    """End a loop."""


@pytest.mark.sweep(4)
@pytest.mark.parametrize("framework", FRONT_ENDS)
@pytest.mark.parametrize("seed", range(100))
def test_each_key_is_there_once_an_update_from_the_newest_attempt(seed: int, framework: str, tmp_path: Path) -> None:
    rng = random.Random(seed)
    checkpoints: list[Checkpoint] = []
    logged: dict[tuple[int, int], float] = {}  # by attempt and update: all that was ever logged
    values: Values = {}
    attempts: dict[int, int] = {}
    for attempt in range(1, ATTEMPTS + 1):
        run = FRONT_ENDS[framework].Run(tmp_path / "run", CONFIGS).__enter__()
        update, values, attempts = 0, {}, {}
        if checkpoints:
            newest = max(checkpoint.update for checkpoint in checkpoints)
            older = [each for each in checkpoints if each.update < newest] or checkpoints
            checkpoint = rng.choice(older)
            run.load_state(checkpoint.path)
            update, values, attempts = checkpoint.update, {**checkpoint.values}, {**checkpoint.attempts}
        last = 3 * rng.randint(update // 3 + 1, update // 3 + 5) + (rng.randint(0, 2) if attempt < ATTEMPTS else 0)
        for at in range(update + 1, last + 1):
            value = float(np.float32(rng.uniform(-1, 1)))
            run.step({"loss": value})
            logged[attempt, at] = values[at] = value
            attempts[at] = attempt
            if rng.random() < 0.4 and at < last:
                state = tmp_path / f"state-{attempt}-{at}"
                run.save_state(state)
                checkpoints.append(Checkpoint(state, at, dict(values), dict(attempts)))
        ended = (StopError, StopError(), None) if rng.random() < 0.5 else (None, None, None)
        run.__exit__(*ended)
    check(tmp_path / "run", values, attempts, logged)


def check(path: Path, values: Values, attempts: dict[int, int], logged: dict[tuple[int, int], float]) -> None:
    read = read_run(path)
    assert read.problems == []
    last = max(values)
    assert [entry["update"] for entry in read.entries] == [*range(1, last + 1)]
    assert [entry["loss/U1"] for entry in read.entries] == [values[at] for at in range(1, last + 1)]
    for key, series in read.series.items():  # each key once an update
        assert series.update.tolist() == [*range(1, last + 1)] if key == "loss/U1" else [*range(3, last + 1, 3)]
    ends = [*range(3, last + 1, 3)]
    assert read.series["loss/last/U3"].value.tolist() == [values[at] for at in ends]
    means = [(values[at - 2] + values[at - 1] + values[at]) / 3 for at in ends]
    np.testing.assert_allclose(read.series["loss/mean/U3"].value, means, rtol=1e-6)
    assert [(file.iteration.update, float(file.load()["loss"])) for file in read.arrays] == [*sorted(values.items())]
    # the older rows are kept, and listed as superseded by what stands: with their attempt's value
    kept = {
        (number, entry["update"]): entry["loss/U1"] for number, entry in read.iter_superseded() if "loss/U1" in entry
    }
    stand = {(attempts[at], at) for at in values}
    assert kept == {place: value for place, value in logged.items() if place not in stand}
    assert read.superseded >= len(kept)
    older = sorted(
        (file.iteration.update or 0, float(file.load()["loss"]))
        for file in read.superseded_arrays
        if "superseded" in file.path.parts or file not in read.arrays
    )
    assert older == sorted((at, value) for (_, at), value in kept.items())
