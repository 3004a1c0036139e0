"""Keep in mind the newest entries of a log, for a run directory that somebody removes while it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from noether_core.emit.jsonl import encode_entry

MOST_KEPT = 1000  # entries; `log_entries` of a `LogWriter` has the same ones


class Entry(NamedTuple):
    """Hold an entry that is to be written.

    Attributes:
        values: what it has.
        number: of several in a row that have the same number the first is written.
        line: its bytes.
        time: when it was logged, in seconds since the epoch of the system's clock.
    """

    values: Mapping[str, Any]
    number: int
    line: bytes
    time: float


class WrittenEntries:
    """Keep the newest entries that a file has.

    >>> written = WrittenEntries()
    >>> written.add(Entry({"update": 3}, 0, b"", 1.5)); str(written), written.times()
    ('its newest entry, which was in memory, is written again', [(3, 1.5)])
    """

    def __init__(self) -> None:
        self._entries: deque[Mapping[str, Any]] = deque(maxlen=MOST_KEPT)
        self._logged_at: deque[float] = deque(maxlen=MOST_KEPT)
        self._count = 0

    def __str__(self) -> str:
        """Say what of them can be written again."""
        kept, lost = len(self._entries), self._count - len(self._entries)
        what = f"{kept} entries, which were in memory, are" if kept != 1 else "entry, which was in memory, is"
        return f"its newest {what} written again" + (f"; the {lost} before them are gone" if lost else "")

    def add(self, entry: Entry) -> None:
        """Note that an entry is written."""
        self._entries.append(entry.values)
        self._logged_at.append(entry.time)
        self._count += 1

    def lines(self) -> deque[bytes]:
        """Return the bytes of the entries, in order."""
        return deque(map(encode_entry, self._entries))

    def times(self) -> list[tuple[int, float]]:
        """Return the update and the time of each."""
        return [(values["update"], time) for values, time in zip(self._entries, self._logged_at, strict=True)]
