"""Read a run while it is written: what stands at first, and then the lines that are new, in a memory that does not grow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.emit.columns import Series
from noether_core.emit.jsonl import decode_line, numbered_files
from noether_core.emit.lines import entry_problem
from noether_core.emit.reader import read_run
from noether_core.errors import RunFormatError
from noether_core.inspect.newest import is_run
from noether_core.regular_files import open_regular
from noether_core.schedule import UNITS
from noether_core.silence import SILENT
from noether_core.text import as_float

_POINTS = 512  # of a course
_AT_ONCE = 2**22  # bytes that are read at once

Signature = tuple[tuple[str, int, int], ...]


class GrowingSeries:
    """Hold what a key has come to: its newest value, its extremes, and its course as means of equally many values each.

    Attributes:
        count: how many values there were.
        first, last: the first and the newest of them.
        update: where the newest was logged.
        low, high: the extremes of the numbers; None: there are none.
    """

    def __init__(self) -> None:
        self.count, self.update = 0, -1
        self.first: Any = None
        self.last: Any = None
        self.low: float | int | None = None
        self.high: float | int | None = None
        self._means: list[float] = []
        self._each = 1  # values in a mean
        self._waiting: list[float] = []

    @property
    def course(self) -> Sequence[float]:
        """Return the means, and that of what is not yet as many."""
        return [*self._means, *([float(np.mean(self._waiting))] if self._waiting else [])]

    def add(self, update: int, value: Any) -> None:
        """Take the value of an update that comes after all others."""
        self.count += 1
        self.update, self.last = update, value
        self.first = value if self.count == 1 else self.first
        if not isinstance(value, bool | int | float):
            return
        if value == value:
            self.low = value if self.low is None else min(self.low, value)
            self.high = value if self.high is None else max(self.high, value)
        self._waiting.append(as_float(value))
        if len(self._waiting) == self._each:
            self._take_waiting()

    @SILENT
    def _take_waiting(self) -> None:
        self._means.append(float(np.mean(self._waiting)))
        self._waiting.clear()
        if len(self._means) == 2 * _POINTS:
            halves = np.array(self._means).reshape(-1, 2) / 2
            self._means, self._each = halves.sum(1).tolist(), 2 * self._each

    @classmethod
    def of(cls, series: Series) -> GrowingSeries:
        """Return what a series has come to."""
        made = cls()
        for update, value in zip(series.update.tolist(), series.value.tolist(), strict=True):
            made.add(update, value)
        return made


class GrowingRun:
    """Follow a run directory, which need not exist yet. Not for several threads.

    Attributes:
        series: by key, in the order first logged.
        iteration: the epoch, update and sample of the newest entry.
        written: when that was written, in seconds since 1970; None: there is none.
        starts: how many process starts have logged.
        problems: what of the log is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.series: dict[str, GrowingSeries] = {}
        self.iteration: tuple[int, int, int] = (0, 0, 0)
        self.written: float | None = None
        self.starts = 0
        self.problems: list[str] = []
        self._known: Signature | None = None  # of all files but the one that grows
        self._file: tuple[int, int] | None = None  # which that is
        self._offset = 0

    def poll(self) -> list[dict[str, Any]] | None:
        """Read what is new, and return the entries; None where all was read again, for a start, a merge, or other files."""
        files = numbered_files(self.path / "metrics") if is_run(self.path) else []
        known = _signature(self.path / "metrics", files)
        if not files:
            if not self.series and self.written is None:
                return []
            self._forget()  # it was taken away
            return None
        newest = files[-1]
        try:
            status = newest.stat()
            if known != self._known or (status.st_dev, status.st_ino) != self._file or status.st_size < self._offset:
                self._read_all(newest, status, known, len(files))
                return None
            self.written = status.st_mtime
            return self._read_on(newest) if status.st_size > self._offset else []
        except (OSError, RunFormatError) as error:
            self.problems = [str(error)]
            self._known = None
            return []

    def _read_all(self, newest: Path, status: os.stat_result, known: Signature, starts: int) -> None:
        self._offset = status.st_size - _torn_end(
            newest, status.st_size
        )  # before it is read; what comes twice is known
        run = read_run(self.path)
        self.series = {key: GrowingSeries.of(series) for key, series in run.series.items()}
        if len(run.table.iterations):
            epoch, update, sample = run.table.iterations[-1].tolist()
            self.iteration = (epoch, update, sample)
        self.written, self.starts, self.problems = status.st_mtime, starts, run.problems
        self._known, self._file = known, (status.st_dev, status.st_ino)

    def _read_on(self, newest: Path) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        with open_regular(newest, self.path) as file:
            file.seek(self._offset)
            while data := file.read(_AT_ONCE):
                whole, newline, _ = data.rpartition(b"\n")
                if not newline:
                    break  # the rest of the line is still to come
                self._offset += len(whole) + 1
                file.seek(self._offset)
                for line in whole.split(b"\n"):
                    with contextlib.suppress(RunFormatError):
                        entry = decode_line(line + b"\n")
                        if entry_problem(entry) is None and self._take(entry):
                            entries.append(entry)
        return entries

    def _take(self, entry: dict[str, Any]) -> bool:
        """Take an entry; tell whether anything of it is new."""
        update, is_new = entry["update"], False
        for key, value in entry.items():
            if key not in UNITS:
                series = self.series.setdefault(key, GrowingSeries())
                if update > series.update:
                    series.add(update, value)
                    is_new = True
                elif update == series.update:
                    series.last = value
        if update >= self.iteration[1]:
            self.iteration = (entry["epoch"], update, entry["sample"])
        return is_new


def _signature(metrics: Path, files: Sequence[Path]) -> Signature:
    """Return what tells whether any file has changed but the newest log and the times of its entries."""
    growing = {name for file in files[-1:] for name in (file.name, f"{file.stem}.time.jsonl")}
    found = []
    with contextlib.suppress(OSError), os.scandir(metrics) as entries:
        for each in entries:
            if each.name not in growing and each.name.endswith(".jsonl"):
                status = each.stat(follow_symlinks=False)
                found.append((each.name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def _torn_end(file: Path, size: int) -> int:
    """Return how many bytes follow the last newline."""
    with open_regular(file, file.parent.parent) as opened:
        opened.seek(max(0, size - _AT_ONCE))
        data = opened.read(min(size, _AT_ONCE))
    return len(data) - (data.rfind(b"\n") + 1)
