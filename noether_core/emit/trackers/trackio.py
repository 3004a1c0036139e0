"""Write entries to a local trackio store: https://github.com/gradio-app/trackio. Nothing leaves this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from noether_core.emit.trackers import require
from noether_core.emit.trackers.continuation import Continuation
from noether_core.emit.trackers.process import ProcessTracker
from noether_core.emit.trackers.values import storable
from noether_core.errors import NoetherError


class TrackioTracker(ProcessTracker):
    """Log to a trackio run: the update is its step; `epoch` and `sample` are metrics beside the others.

    `TRACKIO_DIR=<directory> trackio show` shows it. A restart that goes on where the run stopped continues it; one that begins
    earlier is a second run, `<name>-2`. Numbers are kept as binary64; an int beyond 64 bits is rounded to that.

    Args:
        directory: where trackio keeps its SQLite store.
        project: the trackio project.
        name: the run's name; by default the directory's.

    Raises:
        MissingDependencyError: if trackio is not installed.
    """

    kind: ClassVar[str] = "trackio"

    def __init__(self, directory: str | Path, *, project: str = "noether", name: str | None = None) -> None:
        require("trackio", "trackio")
        super().__init__(directory, {"project": project, "name": name or Path(directory).resolve().name})


def open_tool(directory: str, project: str, name: str) -> _Tool:
    """Return what takes the entries; for the child process, whose one trackio store this is."""
    os.environ["TRACKIO_DIR"] = directory
    os.environ["TRACKIO_STORAGE_MODE"] = "sqlite"
    os.environ["HF_HUB_OFFLINE"] = "1"
    return _Tool(Path(directory), project, name)


class _Tool:
    def __init__(self, directory: Path, project: str, name: str) -> None:
        self._project = project
        self._name = name
        self._continuation = Continuation(directory / "noether.json")
        self._run: Any = None
        self._caught = warnings.catch_warnings(record=True)
        self._complaints: list[warnings.WarningMessage] = self._caught.__enter__() or []

    def _open(self, update: int) -> Any:
        import trackio

        if not self._continuation.follows(update):
            number = self._continuation.number + 1
            self._continuation.begin(self._name if number == 1 else f"{self._name}-{number}")
        return trackio.init(
            self._project,
            name=self._continuation.id,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, entry: Mapping[str, Any]) -> None:
        update = entry["update"]
        if self._run is None:
            self._run = self._open(update)
        self._continuation.note(update)
        metrics = {key: storable(value) for key, value in entry.items() if key != "update"}
        self._run.log(metrics, step=update)

    def close(self) -> None:
        """Finish; raises what trackio only warns about, that it could not store something."""
        if self._run is not None:
            self._run.finish()
        lost = [str(each.message) for each in self._complaints if "Reserved keys renamed" not in str(each.message)]
        if lost:
            raise NoetherError(f"trackio warned {len(lost)} times, first: {lost[0]}")
