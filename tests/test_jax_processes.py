"""Exchange between real processes of jax.distributed, and what they count of global arrays."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from noether_core.errors import NoetherError
from noether_jax import processes
from noether_jax.backend import BACKEND

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Group:
    def __init__(self, folder, what, count, *more):
        port = free_port()
        self.logs = [folder / f"{index}.log" for index in range(count)]
        self.workers = []
        for index, log in enumerate(self.logs):
            told = [what, str(index), str(count), str(port), *map(str, more)]
            with log.open("w") as out:
                self.workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.jax_workers", *told],
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        cwd=ROOT,
                        env=os.environ | {"PYTHONPATH": str(ROOT)},
                    )
                )

    def said(self, index):
        lines = self.logs[index].read_text().splitlines()
        return [line.removeprefix("SAID ") for line in lines if line.startswith("SAID ")]

    def wait_for(self, index, start, limit=90):
        end = time.monotonic() + limit
        while not any(line.startswith(start) for line in self.said(index)):
            assert time.monotonic() < end, self.told()
            time.sleep(0.05)

    def stop(self, at):
        """Stop a process once all have started: the others wait for the first one's service at that."""
        for index in range(len(self.workers)):
            self.wait_for(index, "ready", 180)
        self.workers[at].send_signal(signal.SIGSTOP)

    def told(self):
        return "\n".join(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in self.logs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.kill()
            worker.wait()


@pytest.mark.parametrize(
    ("what", "count", "more"),
    [
        ("collectives", 3, ()),
        ("global_arrays", 2, (20,)),
        pytest.param("collectives", 2, (), marks=pytest.mark.slow),
        pytest.param("global_arrays", 2, (60,), marks=pytest.mark.slow),
        pytest.param("global_arrays", 3, (20,), marks=pytest.mark.slow),
    ],
)
def test_all_end_well(tmp_path, what, count, more):
    with Group(tmp_path, what, count, *more) as group:
        for index in range(count):
            group.wait_for(index, "done", 180)


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("count", "at"), [(2, 1), (3, 2), (2, 0), (3, 0)])
def test_a_stopped_process_is_named_and_goes_on(tmp_path, count, at):
    rounds = 2
    with Group(tmp_path, "stopped", count, at, rounds) as group:
        others = [index for index in range(count) if index != at]
        group.stop(at)
        for index in others:
            group.wait_for(index, f"missing {rounds - 1}")
        group.workers[at].send_signal(signal.SIGCONT)
        for index in range(count):
            group.wait_for(index, "done")
        verdicts = [
            [line.rpartition(" ")[0] for line in group.said(index) if line[:4] == "miss"] for index in range(count)
        ]
        assert verdicts == [[f"missing {number} ({at},)" for number in range(rounds)]] * count, group.told()
        assert all("went on" in group.said(index) for index in range(count)), group.told()
        said = [group.said(index) for index in range(count)]
        ends = [[line[: line.find(")")] for line in lines if line.startswith(("went", "again"))] for lines in said]
        assert all(end == ends[0] for end in ends), group.told()


def test_a_killed_process_is_named(tmp_path):
    with Group(tmp_path, "stopped", 3, 1, 1) as group:
        group.stop(1)
        group.workers[1].kill()
        for index in (0, 2):
            group.wait_for(index, "missing 0 (1,)")


def test_one_process_needs_no_exchange():
    assert BACKEND.exchange(1.0) is None
    with pytest.raises(NoetherError, match=r"call jax\.distributed\.initialize"):
        processes.process_exchange()
