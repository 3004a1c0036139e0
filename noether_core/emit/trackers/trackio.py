"""Write entries to a local trackio store: https://github.com/gradio-app/trackio. Nothing leaves this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from noether_core.dependencies import require
from noether_core.emit.trackers.process import ProcessTracker
from noether_core.errors import NoetherError


class TrackioTracker(ProcessTracker):
    """Log to a trackio run; `epoch` and `sample` are metrics beside the others.

    `TRACKIO_DIR=<directory> trackio show` shows it: trackio keeps its SQLite store there. See `ProcessTracker` for restarts.

    Raises:
        MissingDependencyError: if trackio is not installed.
    """

    kind: ClassVar[str] = "trackio"

    def __init__(self, directory: str | Path, *, project: str = "noether", name: str | None = None) -> None:
        require("the trackio tracker", "trackio")
        super().__init__(directory, name, {"project": project})


class Tool:
    """Take the entries, in the child process, whose one trackio store this is."""

    def __init__(self, directory: str, name: str, run_id: str | None, project: str) -> None:
        os.environ.update(TRACKIO_DIR=directory, TRACKIO_STORAGE_MODE="sqlite", HF_HUB_OFFLINE="1")
        self._caught = warnings.catch_warnings(record=True)
        self._complaints: list[warnings.WarningMessage] = self._caught.__enter__() or []
        import trackio

        self.id = run_id or name
        self._run: Any = trackio.init(
            project, name=self.id, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False
        )

    def log(self, entry: Mapping[str, Any]) -> None:
        """Take one entry."""
        self._run.log({key: value for key, value in entry.items() if key != "update"}, step=entry["update"])

    def close(self) -> None:
        """Finish; raises what trackio only warns about, that it could not store something."""
        self._run.finish()
        lost = [str(each.message) for each in self._complaints if "Reserved keys renamed" not in str(each.message)]
        if lost:
            raise NoetherError(f"trackio warned {len(lost)} times, first: {lost[0]}")
