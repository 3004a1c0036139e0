"""Trackers: views of a run's entries elsewhere. The run directory's JSONL is the truth; a tracker never changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from noether_core.errors import NoetherError, suggest


class Tracker(Protocol):
    """Take log entries: dicts with `epoch`, `update` and `sample`, then the values."""

    def log(self, entry: Mapping[str, Any]) -> None:
        """Take one entry."""

    def close(self) -> None:
        """Write what is still held."""


def make_trackers(trackers: Sequence[Tracker | str], run_path: Path) -> list[Tracker]:
    """Return trackers, those given by name made for the run: `console`, `tensorboard`.

    Raises:
        NoetherError: for an unknown name or an object without `log` and `close`.
    """
    if isinstance(trackers, str):
        raise NoetherError(f"trackers is the string {trackers!r}; write a list: trackers=[{trackers!r}]")
    return [_make(tracker, run_path) for tracker in trackers]


def _make(tracker: Tracker | str, run_path: Path) -> Tracker:
    if tracker == "console":
        from noether_core.emit.trackers.console import ConsoleTracker

        return ConsoleTracker()
    if tracker == "tensorboard":
        from noether_core.emit.trackers.tensorboard import TensorBoardTracker

        return TensorBoardTracker(run_path / "tensorboard")
    if isinstance(tracker, str):
        hint = suggest(tracker, ["console", "tensorboard"])
        raise NoetherError(f"unknown tracker {tracker!r}; the names known here are 'console' and 'tensorboard'.{hint}")
    if not (callable(getattr(tracker, "log", None)) and callable(getattr(tracker, "close", None))):
        raise NoetherError(f"tracker {tracker!r} has no log and close methods; give a name or an object with both")
    return tracker
