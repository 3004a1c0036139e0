"""Write what one process start logs: its record, its entries, and beside them when each was written."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from noether_core.emit.jsonl import LineFile, iter_lines
from noether_core.emit.starts import PROVISIONAL, Origin
from noether_core.errors import RunFormatError

MOST_TIMES, TIMES_WAIT = 64, 1.0  # how many times wait to be written, and for how many seconds


class StartLog:
    """Append entries to `metrics/<n>.jsonl` of a run directory. Nothing is there before the first one.

    An entry is with the operating system when `append` returns, its time at most a second later. What a run's end gives out of
    intervals that are not over goes to `metrics/<n>.provisional.jsonl`.

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
        self._new_since: int | None = None  # to be written
        self._beside = LineFile(directory / "metrics", ".time.jsonl")
        self._entries = LineFile(directory / "metrics")  # its number is that of what lies beside it
        self._provisional = LineFile(directory / "metrics", PROVISIONAL)
        self._written: list[LineFile] = []  # of these two

    @property
    def is_open(self) -> bool:
        """Tell whether anything was written."""
        return self._number > 0

    def _open(self) -> None:
        self._beside.open()
        assert self._beside.path is not None
        self._number = int(self._beside.path.name.partition(".")[0])
        self._entries.path = self._beside.path.with_name(f"{self._number}.jsonl")
        self._provisional.path = self._beside.path.with_name(f"{self._number}{PROVISIONAL}")
        if self.origin is not None:
            self.origin.write(self._directory, self._number)

    def _prepare(self) -> None:
        if not self.is_open:
            self._open()
        elif self._new_since is not None:
            self._beside.append({"since": self._new_since})
        self._new_since = None

    def append(self, entry: Mapping[str, Any], *, is_provisional: bool = False) -> None:
        """Write one entry, and when that was.

        Args:
            entry: what is written.
            is_provisional: whether it is of intervals that are not over.

        Raises:
            OSError: if the entry is not written whole; it may be given again.
        """
        self._prepare()
        lines = self._provisional if is_provisional else self._entries
        if lines not in self._written:
            self._written.append(lines)
        lines.append(entry)
        now = time.time()
        self._times.append((entry["update"], now))
        if len(self._times) >= MOST_TIMES or now - self._written_at >= TIMES_WAIT:
            self._write_times(now)

    def _write_times(self, now: float) -> None:
        times, self._times, self._written_at = self._times, [], now
        with contextlib.suppress(OSError):  # that a time is not known costs no entry
            if times:
                self._beside.append({"times": [[update, round(written, 6)] for update, written in times]})

    def carry_since(self, update: int) -> None:
        """Note that this start turns out to have every step of the intervals under way since an update."""
        if self.origin is not None and update < self.origin.since:
            self.origin = replace(self.origin, since=update)
            self._new_since = update

    def note_arrays(self, path: Path, *, is_provisional: bool = False) -> None:
        """Write that this start saves an array file, and set aside the one that another start saved there."""
        self._prepare()
        name = path.relative_to(self._directory)
        if path.exists() and name not in self._saved:
            aside = self._directory / "superseded" / str(self._number) / name
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.replace(aside)
        self._saved.add(name)
        self._beside.append({"arrays": name.as_posix(), **({"provisional": True} if is_provisional else {})})

    def values(self, key: str, most: float) -> Iterator[Any]:
        """Yield every value written under a key up to an update, in order.

        Raises:
            OSError, RunFormatError: if the file is gone or damaged.
        """
        for lines in self._written:
            assert lines.path is not None
            problems: list[str] = []
            for entry in iter_lines(lines.path, problems):
                if key in entry and entry["update"] <= most:
                    yield entry[key]
            if len(problems) > lines.torn:
                raise RunFormatError(
                    f"{problems[0]}; the values of {key!r} there are lost, read the others with read_run"
                )

    def close(self) -> None:
        """Make the lines durable and close the files."""
        self._write_times(math.inf)
        for lines in (self._entries, self._provisional, self._beside):
            lines.close()
