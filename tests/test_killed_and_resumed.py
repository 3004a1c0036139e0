"""A training that is killed, or ends, at any moment, and goes on from its last checkpoint, is the uninterrupted training."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noether_core import read_run
from noether_torch import Run

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 10, "keys": ["loss"], "reduce": ["mean", "std"], "save_output": True},
    {
        "every_n_updates": 3,
        "keys": ["loss"],
        "reduce": "stack",
        "log_output": False,
        "save_output": True,
        "id": "stack",
    },
    {"every_n_epochs": 2, "keys": ["loss"], "id": "epochs"},
    {
        "name": "BestMetricCallback",
        "every_n_updates": 10,
        "source_metric_key": "loss/mean/U10",
        "higher_is_better": False,
    },
]
UPDATES = 64
CALLS = ("write", "pwrite", "fsync", "replace", "rename")  # of `os`, before and within which a process is killed
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def train(path: Path, end: int, saves: Callable[[], bool]) -> None:
    """Go on from the last checkpoint, if there is one, until this update."""
    state = Path(f"{path}.state")
    with Run(path, CONFIGS, updates_per_epoch=7, accumulation_steps=2) as run:
        if state.exists():
            run.load_state(state)
        while run.counter.update < end:
            at = run.counter.update * 2 + run.accumulated
            run.step({"loss": random.Random(at).uniform(-1, 1)})
            if not run.accumulated and run.counter.update % 9 == 0:
                with run.evaluate():
                    run.step({"loss": float(run.counter.update)})
                run.log({"own": run.counter.update})
                run.save_state(state)  # what was logged at this update is not logged again
            elif saves() and run.counter.update % 9:
                run.save_state(state)


def kill_in_a_call(number: int) -> None:
    """Kill this process at so many calls from here on; within a write when half of it is written."""
    left = iter(range(number, -1, -1))
    write = os.write

    def killing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def of_the_system(*arguments: Any, **named: Any) -> Any:
            if next(left, 1) == 0:
                if name == "write":
                    write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return of_the_system

    for name in CALLS:
        setattr(os, name, killing(name, getattr(os, name)))


def part(path: Path, rng: random.Random) -> None:
    """Train in a process of its own, which ends in some way before the training is over, or at its end."""
    way, seed = rng.choice(["killed", "in a call", "in a call", "end", "exception"]), rng.random()
    delay, number, end = rng.uniform(0, 0.06), rng.randrange(120), rng.randrange(1, UPDATES)
    process = os.fork()
    if process == 0:
        try:
            saves = random.Random(seed)
            if way == "in a call":
                kill_in_a_call(number)
            if way == "exception":
                os._exit(fail(path, end, saves))
            train(path, end if way == "end" else UPDATES, lambda: saves.random() < 0.1)
        finally:
            os._exit(0)
    if way == "killed":
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def fail(path: Path, end: int, saves: random.Random) -> int:
    steps = 0

    def raising() -> bool:
        nonlocal steps
        steps += 1
        if steps == end:
            raise ZeroDivisionError
        return saves.random() < 0.1

    try:
        train(path, UPDATES, raising)
    except ZeroDivisionError:
        return 0
    return 1


def contents(path: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    read = read_run(path)
    return read.entries, {
        f"{file.interval}/{file.iteration}": {name: array.tolist() for name, array in file.load().items()}
        for file in read.arrays
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path, UPDATES, lambda: False)
    assert read_run(path).superseded == 0
    return contents(path)


@pytest.mark.sweep(12)
@pytest.mark.parametrize("seed", range(200))
def test_a_training_that_is_killed_and_resumed_is_the_uninterrupted_one(seed: int, whole: Any, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "run"
    for _ in range(rng.randint(1, 5)):
        part(path, rng)
    train(path, UPDATES, lambda: False)
    assert contents(path) == whole
