"""Write what a process logs to a run directory: of its start, and of each time it goes on from somewhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noether_core.emit.start_log import StartLog
from noether_core.emit.starts import Origin


class RunLog:
    """Append entries to a run directory.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._start = StartLog(directory)
        self._earlier: list[tuple[StartLog, int]] = []  # and up to which update what they wrote stands
        self._is_provisional = False

    @property
    def origin(self) -> Origin | None:
        """Return what the newest entries go on from; None where that is not known."""
        return self._start.origin

    def begin(self, origin: Origin, update: int) -> None:
        """Go on from an update: what is appended next begins a file of its own, with a record."""
        self._is_provisional = False
        if self._start.is_open:
            self._start.close()
            self._earlier = [(log, min(most, update)) for log, most in [*self._earlier, (self._start, update)]]
        self._start = StartLog(self._directory, origin.in_directory(self._directory))

    def begin_provisional(self) -> None:
        """Take what comes from here on as of intervals that are not over."""
        self._is_provisional = True

    def carry_since(self, update: int) -> None:
        """Note that the intervals under way turn out to have every step since an update, that of an earlier start."""
        self._start.carry_since(update)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry; see `StartLog.append`."""
        self._start.append(entry, is_provisional=self._is_provisional)

    def note_arrays(self, path: Path) -> None:
        """Write that an array file is saved, if it is one of the run directory's."""
        if path.is_relative_to(self._directory):
            self._start.note_arrays(path, is_provisional=self._is_provisional)

    def values(self, key: str) -> Iterator[Any]:
        """Yield every value that was written under a key and stands, in order; raises what `StartLog.values` does."""
        for log, most in [*self._earlier, (self._start, math.inf)]:
            yield from log.values(key, most)

    def close(self) -> None:
        """Make the lines durable and close the files."""
        self._start.close()
