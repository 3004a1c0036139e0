from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noether_core import read_run
from noether_core.cli import app
from noether_core.emit.jsonl import numbered_files

# One process imports the front-end, then forks a training loop for each directory that it reads. A loop writes each
# update's number to the pipe once the update's entry is flushed; the pipe then has "end", written after the loop is dead.
SERVER = """
import os, sys
from noether_torch import Run

CALLBACKS = [
    {"every_n_updates": 1, "patterns": ["key"]},
    {"every_n_updates": 3, "keys": ["key/0"], "save_output": True},
]

def train(path):
    with Run(path, callbacks=CALLBACKS, updates_per_epoch=7, effective_batch_size=2) as run:
        while True:
            update = run.counter.update + 1
            run.step(update_outputs={f"key/{n}": update / (n + 1) for n in range(40)})
            os.write(1, b"%d\\n" % update)

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            train(line.strip())
        finally:
            os._exit(1)
    os.write(1, b"%d\\n" % child)
    _, status = os.waitpid(child, 0)
    os.write(1, b"end %d\\n" % status)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert read(process) == "ready"
        yield process
        process.stdin.close()
        assert process.wait() == 0


def read(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()


def train_and_kill(server: subprocess.Popen[str], path: Path, updates: int, seconds: float) -> int:
    """Start a training loop, kill it some time after so many updates, and return the last that it reported (0: none)."""
    assert server.stdin is not None
    print(path, file=server.stdin, flush=True)
    child = int(read(server))
    for update in range(1, updates + 1):
        assert read(server) == str(update)
    update = updates
    time.sleep(seconds)  # to hit any moment of an update
    os.kill(child, signal.SIGKILL)
    while not (line := read(server)).startswith("end"):
        assert line == str(update + 1)
        update += 1
    assert line == f"end {int(signal.SIGKILL)}"
    return update


def check(path: Path, reported: int) -> None:
    """Check that the run has every update that was reported, at most one more, and nothing that was never logged."""
    run = read_run(path)
    updates = [entry["update"] for entry in run.entries]
    assert updates == list(range(1, len(updates) + 1))
    assert len(updates) in {reported, reported + 1}
    for entry in run.entries:
        update = entry["update"]
        assert (entry["epoch"], entry["sample"]) == (update // 7, 2 * update)
        expected = {f"key/{n}/U1": update / (n + 1) for n in range(40)}
        if update % 3 == 0:
            expected["key/0/U3"] = update - 1.0
        assert {key: value for key, value in entry.items() if "/" in key} == expected
    assert len(run.problems) <= 1
    saved = {file.iteration.update: file.load()["key/0"].item() for file in run.arrays}
    assert {update: update - 1.0 for update in range(3, reported + 1, 3)}.items() <= saved.items()
    assert len(saved) <= (reported + 1) // 3
    shown = CliRunner().invoke(app, ["show", str(path)])
    assert shown.exit_code == 0, shown.output
    assert not reported or "key/39/U1" in shown.output or "key" in shown.output


def test_a_killed_run_has_every_entry_that_was_flushed(
    server: subprocess.Popen[str], tmp_path: Path, full: bool
) -> None:
    for trial in range(200 if full else 20):
        path = tmp_path / str(trial)
        updates = 0 if trial % 5 == 0 else random.randrange(1, 80)
        reported = train_and_kill(server, path, updates, random.uniform(0, 0.01))
        if reported or (path / "config.yaml").exists():
            check(path, reported)
        else:
            assert not (path / "metrics").exists()


def test_a_run_killed_twice_goes_on_from_the_later_start(server: subprocess.Popen[str], tmp_path: Path) -> None:
    first = train_and_kill(server, tmp_path, 30, 0.001)
    check(tmp_path, first)
    second = train_and_kill(server, tmp_path, 10, 0.002)
    assert [path.name for path in numbered_files(tmp_path / "metrics")] == ["1.jsonl", "2.jsonl"]
    run = read_run(tmp_path)
    assert run.superseded in {first, first + 1}
    assert len(run.entries) in {second, second + 1}
