"""Write what one process start logs: its record, its entries, and beside them when each was written."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noether_core.emit.jsonl import LineFile
from noether_core.emit.lines import iter_lines
from noether_core.emit.starts import Origin
from noether_core.errors import RunFormatError

MOST_TIMES, TIMES_WAIT = 64, 1.0  # how many times wait to be written, and for how many seconds


class StartLog:
    """Append entries to `metrics/<n>.jsonl` of a run directory. Nothing is there before the first one.

    An entry is with the operating system when `append` returns, its time at most a second later.

    Args:
        directory: the run directory.
        origin: what the start goes on from, of which `starts/<n>.json` is written; None: it leaves no record.
    """

    def __init__(self, directory: Path, origin: Origin | None = None) -> None:
        self._directory = directory
        self.origin = origin
        self._saved: set[Path] = set()
        self._times: list[
            tuple[int, float]
        ] = []  # of updates, written together: a line for each costs as much as its entry
        self._written_at = -math.inf
        self._number = 0
        self._has_entries = False
        self._beside = LineFile(directory / "metrics", ".time.jsonl")
        self._entries = LineFile(directory / "metrics")  # its number is that of what lies beside it

    @property
    def is_open(self) -> bool:
        """Tell whether anything was written."""
        return self._number > 0

    def _open(self) -> None:
        self._beside.open()
        assert self._beside.path is not None
        number = int(self._beside.path.name.partition(".")[0])
        self._entries.path = self._beside.path.with_name(f"{number}.jsonl")
        if self.origin is not None:
            self.origin.write(self._directory, number)
        self._number = number

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry, and when that was.

        Raises:
            OSError: if the entry is not written whole; it may be given again.
        """
        if not self.is_open:
            self._open()
        self._has_entries = True
        self._entries.append_once(entry)
        now = time.time()
        self._times.append((entry["update"], now))
        if len(self._times) >= MOST_TIMES or now - self._written_at >= TIMES_WAIT:
            self._write_times(now)

    def _write_times(self, now: float) -> None:
        times, self._times, self._written_at = self._times, [], now
        with contextlib.suppress(OSError):  # that a time is not known costs no entry
            if times:
                self._beside.append({"times": [[update, round(written, 6)] for update, written in times]})

    def note_arrays(self, path: Path) -> None:
        """Write that this start saves an array file, and set aside the one that another start saved there."""
        if not self.is_open:
            self._open()
        name = path.relative_to(self._directory)
        if path.exists() and name not in self._saved:
            aside = self._directory / "superseded" / str(self._number) / name
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.replace(aside)
        self._saved.add(name)
        self._beside.append({"arrays": name.as_posix()})

    def values(self, key: str, most: float) -> Iterator[Any]:
        """Yield every value written under a key up to an update, in order.

        Raises:
            OSError, RunFormatError: if the file is gone or damaged.
        """
        if self._entries.path is None or not self._has_entries:
            return
        problems: list[str] = []
        for entry in iter_lines(self._entries.path, problems):
            if key in entry and entry["update"] <= most:
                yield entry[key]
        if len(problems) > self._entries.torn:
            raise RunFormatError(f"{problems[0]}; the values of {key!r} there are lost, read the others with read_run")

    def close(self) -> None:
        """Make the lines durable and close the files."""
        self._write_times(math.inf)
        self._entries.close()
        self._beside.close()
