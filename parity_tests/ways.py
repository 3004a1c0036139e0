"""Every way of running a schedule. Each gives what it logged and saved, read back from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.run import Run
from parity_tests.reference import Outputs, Result, Schedule


def _hooks(run_class: type[Run]) -> Callable[[Schedule, Path], Result]:
    def run_schedule(schedule: Schedule, path: Path) -> Result:
        run = run_class(
            path,
            [tracker.config(number) for number, tracker in enumerate(schedule.trackers)],
            updates_per_epoch=schedule.updates_per_epoch,
            effective_batch_size=schedule.effective_batch_size,
            accumulation_steps=schedule.accumulation_steps,
        )
        with run:
            for update in schedule.steps:
                for outputs in update:
                    run.step(update_outputs=_to_framework(run_class, outputs))
        read = read_run(path)
        assert not read.problems
        files = {f"{file.interval}/{file.iteration}": file.load() for file in read.arrays}
        return Result(read.entries, files)

    return run_schedule


def _to_framework(run_class: type[Run], outputs: Outputs) -> Any:
    """Return outputs with each NumPy array as an array of the framework."""
    if isinstance(outputs, Mapping):
        return {key: _to_framework(run_class, value) for key, value in outputs.items()}
    if isinstance(outputs, np.ndarray) and outputs.dtype not in (np.float64, np.int64):
        return run_class.backend.from_numpy(outputs)
    return outputs  # Python numbers, None, and 64-bit NumPy values, which JAX would narrow


WAYS: dict[str, Callable[[Schedule, Path], Result]] = {
    "jax hooks": _hooks(noether_jax.Run),
    "torch hooks": _hooks(noether_torch.Run),
}
