"""Measure reading a large run back: time and peak memory of `read_run` and of `show`, each in a process of its own.

`python -m benchmarks.reading` writes 1,000 keys × 10,000 updates (330 MB) to a temporary directory; `--quick` a twentieth.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.inspect.show import show_run

STATUS = Path("/proc/self/status")  # Linux's; `resource` would count what the parent process had, too


class Reading(NamedTuple):
    """Hold what reading a run cost.

    Attributes:
        work: `read_run`, or `show` (which reads too).
        seconds: of it, without importing.
        peak: the process's greatest resident set, in bytes.
    """

    work: str
    seconds: float
    peak: int


def write(path: Path, keys: int, updates: int) -> None:
    """Log so many random numbers as a run does."""
    source = np.random.default_rng(0)
    names = [f"layer_{at}/mean/U1" for at in range(keys)]
    counter = UpdateCounter(effective_batch_size=32)
    writer = LogWriter(path, update_counter=counter)
    for _ in range(updates):
        counter.add_samples(32)
        counter.next_update()
        writer.add_scalars(dict(zip(names, source.normal(size=keys).tolist(), strict=True)))
        writer.flush()
    writer.close()


def measure(keys: int = 1_000, updates: int = 10_000) -> list[Reading]:
    """Write a run, and measure what reading and showing it cost."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), keys, updates)
        return [_in_its_own_process(work, directory) for work in ("read_run", "show")]


def _in_its_own_process(work: str, directory: str) -> Reading:
    command = [sys.executable, "-m", "benchmarks.reading", work, directory]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return Reading(work, float(seconds), int(peak))


def _read(work: str, directory: str) -> None:
    begin = time.perf_counter()
    run = read_run(directory)
    if work == "show":
        Console(file=io.StringIO(), width=160).print(show_run(run))
    seconds = time.perf_counter() - begin
    (peak,) = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    print(seconds, 1024 * int(peak))


def _main(arguments: list[str]) -> None:
    if len(arguments) == 2:
        _read(*arguments)
        return
    keys, updates = (1_000, 500) if arguments == ["--quick"] else (1_000, 10_000)
    table = Table("work", "seconds", "peak MB", title=f"{keys:,} keys × {updates:,} updates")
    for each in measure(keys, updates):
        table.add_row(each.work, f"{each.seconds:.1f}", f"{each.peak / 1e6:.0f}")
    Console().print(table)


if __name__ == "__main__":
    _main(sys.argv[1:])
