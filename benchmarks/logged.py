"""Measure how a log writer's memory grows over logged updates, in a process of its own.

`python -m benchmarks.logged 1000000 10` logs 10 keys at each of a million updates to a temporary run directory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from noether_core import LogWriter, UpdateCounter

_MARKS = 10


def logged(updates: int = 10**6, keys: int = 10) -> list[tuple[int, int]]:
    """Return the resident set, in bytes, at ten updates on the way: `[(update, bytes), ...]`.

    Args:
        updates: how many there are; each is flushed.
        keys: how many numbers each logs.
    """
    command = [sys.executable, "-m", "benchmarks.logged", str(updates), str(keys)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [(int(update), int(size)) for update, size in rows]


def _main(updates: int, keys: int) -> None:
    names = [f"key_{at}/U1" for at in range(keys)]
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as directory:
        counter = UpdateCounter()
        writer = LogWriter(directory, update_counter=counter)
        for update in range(1, updates + 1):
            counter.next_update()
            writer.add_scalars({name: update / (at + 3) for at, name in enumerate(names)})
            writer.flush()
            if update % max(1, updates // _MARKS) == 0:
                print(update, process.memory_info().rss, flush=True)
        writer.close()


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
