"""Write the logs of the process starts that one writer goes through, each in files of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from noether_core.emit.disk import CLOSING_PATIENCE, Disk
from noether_core.emit.start_log import StartLog
from noether_core.emit.starts import Origin


class RunLog:
    """Write to a run directory, and read what was written there.

    Args:
        directory: the run directory.
        disk: writes.
        written: is told of each entry when it is in the file.
    """

    def __init__(self, directory: Path, disk: Disk, written: Callable[[Mapping[str, Any]], None]) -> None:
        self.directory = directory
        self._disk = disk
        self._written = written
        self._newest = StartLog(directory, disk, written=written)
        self._earlier: list[tuple[StartLog, int]] = []  # and up to which update what they wrote stands
        self.append = self._newest.append

    def begin(self, origin: Origin, update: int) -> None:
        """Go on from another iteration, in a new file: what was logged after that update is superseded."""
        if self._newest.is_open:
            self._newest.close()
            self._earlier = [(log, min(most, update)) for log, most in [*self._earlier, (self._newest, update)]]
        self._newest = StartLog(self.directory, self._disk, origin, self._written)
        self.append = self._newest.append

    @property
    def start_id(self) -> str | None:
        """Return the id of the start that wrote the newest entries; None if there is none."""
        origin = self._newest.origin
        if origin is None:
            return None
        return origin.id if self._newest.is_open else origin.parent

    def note_arrays(self, path: Path) -> None:
        """Note that an array file is saved now, if it is in the directory, so that a reader knows which start did."""
        if path.is_relative_to(self.directory):
            self._newest.note_arrays(path)

    def values(self, key: str) -> list[Any]:
        """Return every value that was written under a key, in order; raises OSError, RunFormatError."""
        if not self._disk.wait(patience=CLOSING_PATIENCE, insists=True):
            raise OSError(
                f"the disk has not taken what was logged in {self.directory} ({self._disk.trouble or 'it has stalled'}), so"
                f" the values of {key!r} cannot be read back; ask again when it has"
            )
        logs = [*self._earlier, (self._newest, math.inf)]
        return [value for log, most in logs for value in log.values(key, most)]

    def close(self) -> None:
        """Close the files, once all is written."""
        self._newest.close()
