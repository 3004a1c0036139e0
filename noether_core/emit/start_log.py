"""Write what one process start logs: its record, its entries, and beside them when each was written."""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from noether_core.emit.disk import FILE_COST, LINE_COST, Disk, nothing
from noether_core.emit.disk_thread import Job
from noether_core.emit.files import make_directory
from noether_core.emit.jsonl import LineFile, encode_entry, encode_line, iter_lines
from noether_core.emit.lines import entry_problem
from noether_core.emit.starts import PROVISIONAL, Origin
from noether_core.emit.written import Entry, WrittenEntries
from noether_core.errors import RunFormatError
from noether_core.regular_files import require_no_links

MOST_TIMES, TIMES_WAIT = 64, 1.0  # how many times wait to be written, and for how many seconds
MOST_BESIDE = 4096  # lines with times that wait where the disk takes entries alone; of more the oldest are lost
MOST_SAVED = 200  # names of array files that are kept in mind; one is saved twice, if at all, at one update


Written = Callable[[Mapping[str, Any], int], None]


def _tell_nobody(values: Mapping[str, Any], number: int) -> None: ...


class _Arrays(NamedTuple):
    name: Path
    data: bytes
    is_provisional: bool


class StartLog:
    """Append entries to `metrics/<n>.jsonl` of a run directory. Nothing is there before the first one.

    What a run's end gives out of intervals that are not over goes to `metrics/<n>.provisional.jsonl`. All that is written is
    handed to the disk's thread, on which the private methods of this class run.

    Args:
        directory: the run directory.
        disk: writes.
        lock: is kept alive as long as something of this is to be written.
        origin: what the start goes on from, of which `starts/<n>.json` is written; None: it leaves no record.
        written: is told of each entry, and its number, when it is in the file.
        remake: makes the directory again, on the disk's thread, if somebody has removed it; None: nobody can.
    """

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        lock: object = None,
        origin: Origin | None = None,
        written: Written = _tell_nobody,
        remake: weakref.WeakMethod[Callable[[str], None]] | None = None,
    ) -> None:
        self._directory = directory
        self._disk, self._lock = disk, lock
        self.origin = origin
        self._tell, self._remake = written, remake
        self.is_open = False  # something was handed over
        self._new_since: int | None = None  # to be written
        self._saved: dict[str, None] = {}  # the newest array files of this start
        self._noted: _Arrays | None = None  # that are to be written next
        # of updates, written together: a line for each costs as much as its entry
        self._times: list[tuple[int, float]] = []
        self._written_at = -math.inf
        self._number = 0
        self._is_closed = False
        self._beside_lines: deque[bytes] = deque(maxlen=MOST_BESIDE)  # which the disk did not take
        self._newest = WrittenEntries()
        self._again: deque[bytes] = deque()  # lines that are to be written once more
        self._set_files()
        # methods made once: many wait where a disk stalls
        self._write, self._write_provisional, self._lose = (
            self._write_entries,
            self._write_provisionals,
            self._lose_entry,
        )

    # ------------------------------------------------------------------ the training's thread

    def append(self, entry: Mapping[str, Any], number: int, *, is_provisional: bool = False) -> None:
        """Write one entry, and when that was.

        Args:
            entry: what is written.
            number: of several in a row that have the same number the first is written: a caller who was interrupted cannot
                know whether it was.
            is_provisional: whether it is of intervals that are not over.
        """
        line = encode_entry(entry)
        self._note_news()
        write = self._write_provisional if is_provisional else self._write
        item = Entry(entry, number, line, time.time())
        self._put(Job(write, item, len(line) + LINE_COST, self._lose, is_line=True, number=number))

    def carry_since(self, update: int) -> None:
        """Note that this start turns out to have every step of the intervals under way since an update."""
        if self.origin is not None and update < self.origin.since:
            self.origin = replace(self.origin, since=update)
            self._new_since = update

    def save(self, path: Path, data: bytes, *, is_provisional: bool = False) -> None:
        """Write an array file, after a note that this start does; the one that another start saved there is set aside."""
        self._note_news()
        item = _Arrays(path.relative_to(self._directory), data, is_provisional)
        self._put(Job(self._save, item, len(data) + FILE_COST, self._lose_arrays))

    def close(self) -> None:
        """Make the lines durable and close the files, once all is written."""
        if self.is_open:
            self._disk.hand_over(Job(self._close, None, LINE_COST, nothing))

    def _put(self, job: Job) -> None:
        self.is_open |= self._disk.put(job)

    def _lose_arrays(self, arrays: _Arrays) -> None:
        if self._noted is arrays:
            self._noted = None
        self._disk.missing.add_file(arrays.name.as_posix())

    def _lose_entry(self, entry: Entry) -> None:
        self._disk.missing.add_entry(entry.values["update"])

    def _note_news(self) -> None:
        """Note what turned out since the last line: what a start carries, and, once the disk has caught up, what is missing."""
        if self._new_since is not None:
            if self.is_open:  # else it will be in the record
                self._hand_over({"since": self._new_since})
            self._new_since = None
        if not self._disk.missing.is_marked and self._disk.has_room:
            missing, told = self._disk.missing.unmarked()
            self._hand_over({"missing": missing})
            self.is_open = True
            self._disk.missing.mark(told)

    def _hand_over(self, note: Mapping[str, Any]) -> None:
        line = encode_line(note)
        self._disk.hand_over(Job(self._note, line, len(line) + LINE_COST, nothing, is_line=True))

    # ------------------------------------------------------------------ the disk's thread

    def _set_files(self) -> None:
        metrics = self._directory / "metrics"
        self._beside = LineFile(metrics, ".time.jsonl")
        self._entries = LineFile(metrics)  # its number is that of what lies beside it
        self._provisional = LineFile(metrics, PROVISIONAL)
        self._files: list[LineFile] = []  # of these two, those written

    @property
    def _is_gone(self) -> bool:
        return any(file.is_gone for file in (self._entries, self._provisional, self._beside))

    def _begin_again(self) -> None:
        """Write to new files, for somebody has removed these: first the entries that are kept in mind."""
        remake = None if self._remake is None else self._remake()
        if remake is None:
            return
        remake(str(self._newest))
        for file in (self._entries, self._provisional, self._beside):
            file.forget()
        self._set_files()
        self._number, self._noted = 0, None
        self._saved.clear()
        self._again, self._times = self._newest.lines(), [*self._newest.times(), *self._times]

    def _open(self) -> None:
        if self._is_gone:
            self._begin_again()
        if not self._number:
            self._open_next()
        if self._again:
            if self._entries not in self._files:
                self._files.append(self._entries)
            self._entries.write(self._again)
            self._disk.note_written(self._entries)

    def _open_next(self) -> None:
        self._beside.open()
        assert self._beside.path is not None
        number = int(self._beside.path.name.partition(".")[0])
        self._entries.path = self._beside.path.with_name(f"{number}.jsonl")
        self._provisional.path = self._beside.path.with_name(f"{number}{PROVISIONAL}")
        if self.origin is not None:
            self.origin.write(self._directory, number)
        self._number = number

    def _write_entries(self, entries: deque[Entry]) -> None:
        self._open()  # which may make it anew
        self._write_to(self._entries, entries)

    def _write_provisionals(self, entries: deque[Entry]) -> None:
        self._open()
        self._write_to(self._provisional, entries)

    def _write_to(self, file: LineFile, entries: deque[Entry]) -> None:
        if file not in self._files:
            self._files.append(file)
        lines = deque(entry.line for entry in entries)
        try:
            file.write(lines)
        finally:
            self._disk.note_written(file)
            for entry in [entries.popleft() for _ in range(len(entries) - len(lines))]:
                self._times.append((entry.values["update"], entry.time))
                if file is self._entries:
                    self._newest.add(entry)
                with contextlib.suppress(RuntimeError):  # no thread for a tracker can be started: the interpreter ends
                    self._tell(entry.values, entry.number)
        now = time.monotonic()
        if len(self._times) >= MOST_TIMES or now - self._written_at >= TIMES_WAIT:
            self._written_at = now
            self._write_times()

    def _write_times(self) -> None:
        """Write when entries were written; what the disk does not take of that waits, for it is no reason to stop."""
        times, self._times = self._times, []
        if times:
            self._beside_lines.append(encode_line({"times": [[update, round(time, 6)] for update, time in times]}))
        with contextlib.suppress(OSError):
            self._beside.write(self._beside_lines)
        self._disk.note_written(self._beside)

    def _note(self, lines: deque[bytes]) -> None:
        self._open()
        self._beside.write(self._beside_lines)
        self._beside.write(lines)
        self._disk.note_written(self._beside)

    def _save(self, waiting: deque[_Arrays]) -> None:
        """Write a file only once it is noted which start wrote it: what nobody knows of stands only if all starts do."""
        self._open()
        arrays = waiting[0]
        path = self._directory / arrays.name
        require_no_links(self._directory, path)
        if self._noted is not arrays:
            self._set_aside(arrays.name, path)
            note = {"arrays": arrays.name.as_posix(), **({"provisional": True} if arrays.is_provisional else {})}
            self._note(deque([encode_line(note)]))
            self._noted = arrays
        self._disk.write_now(path, arrays.data)
        self._noted = None
        waiting.popleft()

    def _set_aside(self, name: Path, path: Path) -> None:
        """Keep what another start saved under a name."""
        if name.as_posix() not in self._saved and path.exists():
            aside = self._directory / "superseded" / str(self._number) / name
            make_directory(aside.parent)
            path.replace(aside)
        self._saved[name.as_posix()] = None
        if len(self._saved) > MOST_SAVED:
            del self._saved[next(iter(self._saved))]

    def _close(self, items: deque[None]) -> None:
        if self._is_closed:
            items.clear()
            return
        if self._is_gone:
            self._open()
        self._write_times()
        if not self._disk.missing.is_marked:
            missing, told = self._disk.missing.unmarked()
            self._beside_lines.append(encode_line({"missing": missing}))
            self._disk.missing.mark(told)
        self._beside.write(self._beside_lines)
        for file in (self._entries, self._provisional, self._beside):
            file.close()
        self._is_closed = True
        items.clear()

    # ------------------------------------------------------------------ once it is written

    def entries(self, most: float) -> Iterator[dict[str, Any]]:
        """Yield every entry written up to an update, in order.

        Raises:
            OSError, RunFormatError: if a file is gone or damaged.
        """
        for file in self._files:
            assert file.path is not None
            problems: list[str] = []
            for entry in iter_lines(file.path, problems, entry_problem):
                if entry["update"] <= most:
                    yield entry
            if len(problems) > file.torn:
                raise RunFormatError(f"{problems[0]}; what was logged there is lost, read the rest with read_run")
