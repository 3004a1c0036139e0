"""Measure the memory of a process that logs every update: `python -m benchmarks.long_log 1000000 10` (updates, keys)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch

from noether_torch import Run

MARKS = 10


def sizes(updates: int, keys: int) -> list[int]:
    """Return the resident bytes of a process after a tenth of the updates, two tenths, and so on; the first before any."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.long_log", str(updates), str(keys)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def _main() -> None:
    updates, keys = map(int, sys.argv[1:])
    process = psutil.Process()
    outputs = {f"key_{at}": torch.tensor(float(at)) for at in range(keys)}
    with (
        tempfile.TemporaryDirectory() as directory,
        Run(directory, [{"every_n_updates": 1, "keys": list(outputs)}]) as run,
    ):
        print(process.memory_info().rss)
        for _ in range(MARKS):
            for _ in range(updates // MARKS):
                run.step(outputs)
            print(process.memory_info().rss, flush=True)


if __name__ == "__main__":
    _main()
