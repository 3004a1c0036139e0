"""Measure what a step costs while the disk stalls: `python -m benchmarks.stalled_disk 60` stalls it for 60 seconds.

Every step logs ten keys; every tenth reduces and saves an array too, and is counted apart. Each write and fsync of the run
waits until the stall is over. A step waits for other programs of a busy machine as well: compare it with the steps before the
stall, and with the thread's own work. A step's waiting is what it takes beside the thread's own work. Exits with 1 if, while
the disk stalls, the 99th percentile of waiting is 1 ms or more, or that of steps that log.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from noether_core import read_run
from noether_torch import Run

SAVED = 10  # updates
CALLBACKS = [
    {"every_n_updates": 1, "patterns": ["key/"]},
    {"every_n_updates": SAVED, "keys": ["field"], "reduce": "last", "log_output": False, "save_output": True},
]
MOST = 0.001  # seconds, of the 99th percentile
PAUSE = 0.001  # seconds between two steps: what else a training does


def main(seconds: float) -> int:
    """Train for a quarter of the time before the stall and after it, and print what steps took in each part."""
    most = MOST
    flows = threading.Event()
    for name in ("write", "fsync"):
        setattr(os, name, _waiting(getattr(os, name), flows))
    parts = {"before": 0.25 * seconds, "stalled": seconds, "after": 0.25 * seconds}
    with tempfile.TemporaryDirectory() as path:
        with warnings.catch_warnings(), Run(path, CALLBACKS, processes=1) as run:
            warnings.simplefilter("ignore")
            for part, length in parts.items():
                flows.clear() if part == "stalled" else flows.set()
                steps = _train(run, length)
                _print(part, steps)
                if part == "stalled":
                    waiting = float(np.quantile([step.wall - step.work for step in steps], 0.99))
                    logging = float(np.quantile([step.wall for step in steps if not step.saves], 0.99))
                    print(
                        f"stalled: {len(steps)} steps, p99 of waiting {1e6 * waiting:.0f} us, of logging {1e6 * logging:.0f} us"
                    )
                    most = max(waiting, logging)
            flows.set()
        missing = [problem.partition(": ")[2] for problem in read_run(path).problems]
        print(f"{run.counter.update} updates, {len(read_run(path).entries)} entries; {missing or 'nothing is missing'}")
    return 0 if most < MOST else 1


def _waiting(call: Callable[..., Any], flows: threading.Event) -> Callable[..., Any]:
    def wait(*arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            flows.wait()
        return call(*arguments)

    return wait


class Step(NamedTuple):
    """Hold what a step took: seconds, and seconds of the training thread's own work."""

    wall: float
    work: float
    saves: bool


def _train(run: Run, seconds: float) -> list[Step]:
    steps = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        update = run.counter.update
        outputs = {**{f"key/{number}": update / 3 for number in range(10)}, "field": np.full(1000, update)}
        begun, worked = time.perf_counter(), time.thread_time()
        run.step(outputs)
        taken = time.perf_counter() - begun, time.thread_time() - worked
        steps.append(Step(*taken, saves=run.counter.update % SAVED == 0))
        time.sleep(PAUSE)
    return steps


def _print(part: str, steps: list[Step]) -> None:
    for what, saves in (("log", False), ("log and save", True)):
        times = 1e6 * np.array([(step.wall, step.work) for step in steps if step.saves is saves])
        wall, work = np.quantile(times, [0.5, 0.99, 1], axis=0).T
        print(
            f"{part}: {len(times)} steps that {what}: median {wall[0]:.0f}, p99 {wall[1]:.0f}, most {wall[2]:.0f} us; the"
            f" thread's own work: median {work[0]:.0f}, p99 {work[1]:.0f}, most {work[2]:.0f} us"
        )


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
