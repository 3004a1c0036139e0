"""Measure how long two runs of 1,000 keys and 10,000 probed updates take to be read, key by key, and how much memory.

python -m benchmarks.probe_reading [UPDATES]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from noether_core import LogWriter, UpdateCounter
from noether_core.config.loop import ProbeCallbackConfig
from noether_core.probes import ProbeCallback, Probed, read_training

KEYS = tuple(f"{stage}/layers.{at}.weight" for stage in ("param", "grad", "update", "opt") for at in range(250))


class OnHost:
    """Hand back what is on the host already."""

    def to_numpy(self, values: Any) -> Any:
        """Return the values."""
        return values


class Callback(ProbeCallback):
    """Save what was probed, of no framework."""

    backend: Any = OnHost()
    framework = ""


def write(path: Path, updates: int, seed: int) -> None:
    """Write a run."""
    counter = UpdateCounter()
    writer = LogWriter(path, update_counter=counter)
    callback = Callback(ProbeCallbackConfig(every_n_updates=1, arrays=0), log_writer=writer, output_path=path)
    drawn = np.random.default_rng(seed)
    for _ in range(updates):
        reals, sums = drawn.standard_normal((len(KEYS), 5)), drawn.integers(0, 2**31, (len(KEYS), 2)).astype(np.int32)
        probed = Probed(KEYS, ((10, 10),) * len(KEYS), reals, sums, {})
        callback.track_after_accumulation_step(update_counter=counter, update_outputs={"probes": probed})
        counter.next_update()
        callback.track_after_update_step(update_counter=counter)
    callback.after_training(update_counter=counter)
    writer.close()


def read(paths: list[Path]) -> None:
    """Read runs key by key, and say what it took."""
    begun, busy = time.perf_counter(), time.process_time()
    trainings = [read_training(path) for path in paths]
    for key in trainings[0].all_keys:
        norms = [training.statistics_columns(key)[1].norm for training in trainings]
        assert len(norms[0]) == len(norms[1])
    seconds, of_core = time.perf_counter() - begun, time.process_time() - busy
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"read in {seconds:.1f} s, of which one core worked {of_core:.1f} s; at most {memory:.0f} MB of memory")


def main(updates: int) -> None:
    """Write two runs, and read them in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("a", "b")]
        for seed, path in enumerate(paths):
            write(path, updates, seed)
        size = sum(file.stat().st_size for file in paths[0].rglob("*") if file.is_file())
        print(f"{len(KEYS):,} keys at {updates:,} updates: {size / 1e6:.0f} MB a run")
        subprocess.run([sys.executable, "-m", "benchmarks.probe_reading", *map(str, paths)], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        read([Path(path) for path in sys.argv[1:]])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
