from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from noether_core import read_run
from noether_core.cli import app
from noether_core.emit.disk import MOST_DELAY
from noether_core.emit.jsonl import numbered_files

# One process imports the front-end, then forks a training loop for each order that it reads. A loop writes each update's number
# to the pipe once the update's entry is flushed, and when that was; the pipe then has "end", written after the loop is dead.
SERVER = """
import json, os, signal, sys, time
from noether_torch import Run

CALLBACKS = [
    {"every_n_updates": 1, "patterns": ["key"]},
    {"every_n_updates": 3, "keys": ["key/0"], "save_output": True},
]

def train(path, durability="flush", last=None, pause=0.0, cut=None, state=None):
    if cut is not None:
        die_within_a_write(cut)
    with Run(path, callbacks=CALLBACKS, updates_per_epoch=7, effective_batch_size=2, durability=durability) as run:
        if state is not None and os.path.exists(state):
            run.load_state(state)
        while last is None or run.counter.update < last:
            update = run.counter.update + 1
            run.step(update_outputs={f"key/{n}": update / (n + 1) for n in range(40)})
            os.write(1, b"%d %f\\n" % (update, time.monotonic()))
            if state is not None and update % 4 == 0:
                run.save_state(state)
            time.sleep(pause)

def die_within_a_write(number):
    write, calls = os.write, iter(range(number + 1))
    def cut(descriptor, data):
        if descriptor != 1 and next(calls) == number:
            write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)
    os.write = cut

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        os.write(1, b"%d\\n" % os.getpid())
        try:
            train(**json.loads(line))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    os.write(1, b"end %d\\n" % status)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert read(process) == "ready"
        try:
            yield process
        finally:  # a loop that is left alone dies of its closed pipe
            process.stdin.close()
            process.stdout.close()
            process.kill()


def read(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()


class Reported(NamedTuple):
    """Say what a loop reported before it died.

    Attributes:
        updates: the number of the last update; 0: none.
        safe: of the last one that was flushed longer ago than may be lost.
    """

    updates: int
    safe: int


def train_and_kill(
    server: subprocess.Popen[str],
    path: Path,
    updates: int,
    seconds: float,
    by: signal.Signals = signal.SIGKILL,
    **order: Any,
) -> Reported:
    """Start a training loop and kill it some time after so many updates, unless it dies by itself."""
    assert server.stdin is not None
    print(json.dumps({"path": str(path), **order}), file=server.stdin, flush=True)
    child = int(read(server))
    flushed: list[tuple[int, float]] = []
    ended = None
    while len(flushed) < updates and ended is None:
        ended = take(server, flushed)
    is_killed = ended is None
    if is_killed:
        time.sleep(seconds)  # to hit any moment of an update
        killed_at = time.monotonic()
        os.kill(child, by)
    while ended is None:
        ended = take(server, flushed)
    assert ended == by
    if not is_killed:
        killed_at = flushed[-1][1] if flushed else 0.0
    may_lose = by == signal.SIGKILL and order.get("durability") == "interval"
    safe = [update for update, at in flushed if not may_lose or at <= killed_at - MOST_DELAY]
    return Reported(flushed[-1][0] if flushed else 0, safe[-1] if safe else 0)


def take(server: subprocess.Popen[str], flushed: list[tuple[int, float]]) -> int | None:
    """Take one report; return the loop's status if it has ended."""
    word, number = read(server).split()
    if word == "end":
        return int(number)
    assert not flushed or int(word) == flushed[-1][0] + 1
    flushed.append((int(word), float(number)))
    return None


def train_to_the_end(server: subprocess.Popen[str], path: Path, **order: Any) -> None:
    assert server.stdin is not None
    print(json.dumps({"path": str(path), **order}), file=server.stdin, flush=True)
    read(server)
    while (ended := take(server, [])) is None:
        pass
    assert ended == 0


def check(path: Path, reported: Reported) -> None:
    """Check that the run has every update that may not be lost, none twice, and nothing that was never logged."""
    run = read_run(path)
    updates = [entry["update"] for entry in run.entries]
    assert updates == list(range(1, len(updates) + 1))
    assert reported.safe <= len(updates) <= reported.updates + 1
    for entry in run.entries:
        update = entry["update"]
        assert (entry["epoch"], entry["sample"]) == (update // 7, 2 * update)
        expected = {f"key/{n}/U1": update / (n + 1) for n in range(40)}
        if update % 3 == 0:
            expected["key/0/U3"] = update - 1.0
        assert {key: value for key, value in entry.items() if "/" in key} == expected
    assert len(run.problems) <= 1
    saved = {file.iteration.update: file.load()["key/0"].item() for file in run.arrays}
    assert {update: update - 1.0 for update in range(3, reported.safe + 1, 3)}.items() <= saved.items()
    assert len(saved) <= (reported.updates + 1) // 3
    shown = CliRunner().invoke(app, ["show", str(path)])
    assert shown.exit_code == 0, shown.output
    assert not reported.safe or "key/39/U1" in shown.output or "key" in shown.output


def check_if_begun(path: Path, reported: Reported) -> None:
    if reported.safe or (path / "config.yaml").exists():
        check(path, reported)
    else:
        assert not (path / "metrics").exists()


def test_a_killed_run_has_every_entry_that_was_flushed(
    server: subprocess.Popen[str], tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    for trial in sized(range(200 if full else 15), "kills"):
        path = tmp_path / str(trial)
        updates = 0 if trial % 5 == 0 else random.randrange(1, 80)
        reported = train_and_kill(server, path, updates, random.uniform(0, 0.01))
        assert reported.safe == reported.updates
        check_if_begun(path, reported)


def test_by_default_it_has_what_was_flushed_a_second_before(
    server: subprocess.Popen[str], tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    for trial in sized(range(200 if full else 3), "kills with the default's bound"):
        path = tmp_path / str(trial)
        order = {"durability": "interval", "pause": random.choice([0.001, 0.003, 0.01])}
        reported = train_and_kill(server, path, 100, random.uniform(0, 1.5), **order)
        check_if_begun(path, reported)


@pytest.mark.parametrize("durability", ["flush", "interval"])
def test_a_run_killed_within_a_write_has_what_it_flushed_before(
    server: subprocess.Popen[str], tmp_path: Path, durability: str, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    for trial in sized(range(50 if full else 5), "kills inside a write"):
        path = tmp_path / str(trial)
        order = {"durability": durability, "cut": random.randrange(60), "pause": 0.005}
        reported = train_and_kill(server, path, sys.maxsize, 0, **order)
        check_if_begun(path, reported)
        train_to_the_end(server, path, last=10)
        assert not list(path.rglob("*.tmp"))


def test_a_run_that_is_told_to_terminate_ends_as_one_that_ends_by_itself(
    server: subprocess.Popen[str], tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    for trial in sized(range(200 if full else 10), "SIGTERMs"):
        path = tmp_path / str(trial)
        order = {"durability": "interval", "pause": random.choice([0.0, 0.001])}
        reported = train_and_kill(
            server, path, random.randrange(1, 40), random.uniform(0, 0.01), by=signal.SIGTERM, **order
        )
        run = read_run(path)
        assert run.problems == []
        updates = [entry["update"] for entry in run.entries]
        assert updates in ([*range(1, reported.updates + more + 1)] for more in (0, 1))
        assert "key/0/U3" in run.entries[-1]  # of the interval under way
        assert len(run.arrays) == (len(updates) + 2) // 3


def test_a_killed_run_that_goes_on_from_its_state_is_as_one_that_was_not(
    server: subprocess.Popen[str], tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    def result(path: Path) -> Any:
        run = read_run(path)
        arrays = {file.path.name: file.load()["key/0"].tolist() for file in run.arrays}
        return run.entries, arrays

    train_to_the_end(server, tmp_path / "whole", last=150)
    for trial in sized(range(200 if full else 5), "killed and resumed runs"):
        path = tmp_path / str(trial)
        order: dict[str, Any] = {"state": f"{path}.state", "durability": random.choice(["flush", "interval"])}
        for _ in range(random.choice([1, 1, 2])):
            if trial % 4 == 0:
                train_and_kill(server, path, sys.maxsize, 0, cut=random.randrange(30), **order)
            else:
                train_and_kill(server, path, random.randrange(20), random.uniform(0, 0.01), **order)
        train_to_the_end(server, path, last=150, **order)
        assert result(path) == result(tmp_path / "whole"), trial


def test_a_run_killed_twice_goes_on_from_the_later_start(server: subprocess.Popen[str], tmp_path: Path) -> None:
    first = train_and_kill(server, tmp_path, 30, 0.001)
    check(tmp_path, first)
    second = train_and_kill(server, tmp_path, 10, 0.002)
    assert [path.name for path in numbered_files(tmp_path / "metrics")] == ["1.jsonl", "2.jsonl"]
    run = read_run(tmp_path)
    assert run.superseded in {first.updates, first.updates + 1}
    assert len(run.entries) in {second.updates, second.updates + 1}
