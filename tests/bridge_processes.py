"""Run a script of the tests in some numbers of processes at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noether_core import read_run

TESTS = Path(__file__).parent


def free_port() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return str(bound.getsockname()[1])


def run_together(script: str, folder: Path, counts: Sequence[int], timeout: float = 200) -> None:
    """Run it in so many processes for each of `counts`, with their number, how many, a port and the folder as arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), *sys.path])}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    processes = []
    try:
        for count in counts:
            (folder / str(count)).mkdir()
            port = free_port()
            for rank in range(count):
                with (folder / f"{count}_{rank}.txt").open("w") as out:
                    command = [sys.executable, str(TESTS / script), str(rank), str(count), port, str(folder)]
                    processes.append(
                        subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=TESTS.parent)
                    )
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * len(processes), "\n".join(path.read_text()[-3000:] for path in folder.glob("*.txt"))


def logged(path: Path, without: Sequence[str] = ()) -> dict[str, tuple[list[int], list[int], list[int], list[Any]]]:
    """Return all that a run logged, where and what, but for some keys."""
    return {
        key: (points.epoch.tolist(), points.update.tolist(), points.sample.tolist(), points.value.tolist())
        for key, points in read_run(path).series.items()
        if key not in without
    }
