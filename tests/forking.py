"""Fork as programs do, and train a little in either process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noether_torch import Run

CONFIG: dict[str, Any] = {"every_n_updates": 2, "keys": ["x"], "save_output": True}


def step(run: Run, steps: int) -> None:
    for _ in range(steps):
        run.step({"x": float(run.counter.update)})


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def in_child(body: Callable[[], None]) -> int:
    """Fork, let the child leave as a program does, with its exit handlers, and return its status."""
    process = os.fork()
    if process == 0:
        try:
            body()
            sys.stdout.flush()
        except BaseException:
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
