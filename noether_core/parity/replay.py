"""Replay a recording of update outputs through any front-end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from noether_core.callbacks.record_outputs import read_recording
from noether_core.run import Run


def replay(path: str | Path, run: Run) -> None:
    """Feed a recording through a new run's front-end, as arrays of its framework.

    Raises:
        FileNotFoundError, RunFormatError: if the file is no recording; the run is then not begun.
        HookOrderError: if the run was used before.
    """
    recording = read_recording(path)
    with run:
        for outputs in recording:
            converted = outputs and {
                key: run.backend.from_numpy(value) if isinstance(value, np.ndarray) else value
                for key, value in outputs.items()
            }
            run.step(update_outputs=converted)
