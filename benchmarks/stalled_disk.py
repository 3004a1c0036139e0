"""Measure what a step costs while the disk stalls: `python -m benchmarks.stalled_disk 60` stalls it for 60 seconds.

Every step logs ten keys, every tenth saves an array; each write and fsync of the run waits until the stall is over.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from noether_core import read_run
from noether_torch import Run

CALLBACKS = [
    {"every_n_updates": 1, "patterns": ["key/"]},
    {"every_n_updates": 10, "keys": ["field"], "reduce": "last", "log_output": False, "save_output": True},
]
PAUSE = 0.001  # seconds between two steps: what else a training does


def main(seconds: float) -> None:
    """Train for a quarter of the time before the stall and after it, and print what steps took in each part."""
    flows = threading.Event()
    for name in ("write", "fsync"):
        setattr(os, name, _waiting(getattr(os, name), flows))
    parts = {"before": 0.25 * seconds, "stalled": seconds, "after": 0.25 * seconds}
    with tempfile.TemporaryDirectory() as path:
        with warnings.catch_warnings(), Run(path, CALLBACKS, processes=1) as run:
            warnings.simplefilter("ignore")
            for part, length in parts.items():
                flows.clear() if part == "stalled" else flows.set()
                _print(part, _train(run, length))
            flows.set()
        missing = [problem.partition(": ")[2] for problem in read_run(path).problems]
        print(f"{run.counter.update} updates, {len(read_run(path).entries)} entries; {missing or 'nothing is missing'}")


def _waiting(call: Callable[..., Any], flows: threading.Event) -> Callable[..., Any]:
    def wait(*arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            flows.wait()
        return call(*arguments)

    return wait


def _train(run: Run, seconds: float) -> list[float]:
    times = []
    end = time.monotonic() + seconds
    while (begun := time.perf_counter()) and time.monotonic() < end:
        update = run.counter.update
        run.step({**{f"key/{number}": update / 3 for number in range(10)}, "field": np.full(1000, update)})
        times.append(time.perf_counter() - begun)
        time.sleep(PAUSE)
    return times


def _print(part: str, times: list[float]) -> None:
    found = [1e6 * value for value in np.quantile(times, [0.5, 0.99, 0.999, 1])]
    print(
        f"{part}: {len(times)} steps; median {found[0]:.0f}, p99 {found[1]:.0f}, p99.9 {found[2]:.0f}, most {found[3]:.0f} us"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
