"""Keep what each process of a training has of an interval on disk until all of them have pooled it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noether_core.emit.state_file import write_state
from noether_core.schedule import UNITS, TrainingIteration

_ATTEMPTS = 20


def save_unmerged(
    path: Path, iteration: TrainingIteration, index: int, count: int, parts: Mapping[int, Mapping[str, Any]]
) -> None:
    """Save what a process has."""
    state = {
        "iteration": {unit: getattr(iteration, unit) for unit in UNITS},
        "index": index,
        "count": count,
        "callbacks": {str(number): part for number, part in parts.items()},
    }
    for _ in range(_ATTEMPTS):
        try:
            write_state(_file(path, iteration, index, count), state, is_durable=False)
            return
        except FileNotFoundError:  # another process removed the directory, which was empty
            continue
    write_state(_file(path, iteration, index, count), state, is_durable=False)


def discard_unmerged(path: Path, iteration: TrainingIteration, index: int, count: int) -> None:
    """Forget what a process had, which is pooled."""
    file = _file(path, iteration, index, count)
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the others' files
        file.parent.rmdir()
        file.parent.parent.rmdir()


def _file(path: Path, iteration: TrainingIteration, index: int, count: int) -> Path:
    return path / "unmerged" / str(iteration) / f"{index}-of-{count}.safetensors"
