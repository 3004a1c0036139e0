"""Keep what a run could not write: which updates' entries and which files, so that its log and its end can say it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

Counts = tuple[int, int, int, int]
_MOST = 100  # stretches of updates, and names of files, that are kept one by one


class Missing:
    """Count what is missing, on any thread; what it holds does not grow with how much that is.

    >>> missing = Missing()
    >>> for update in (4, 5, 5, 6): missing.add_entry(update)
    >>> missing.add_file("update_outputs/U2/E0_U4_S4.safetensors")
    >>> words(missing.unmarked()[0])
    '4 entries of the updates 4 to 6 and 1 file (update_outputs/U2/E0_U4_S4.safetensors)'
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may end the run in here
        self._entries = self._files = 0
        self._updates: list[list[int]] = []  # the first and last of each stretch
        self._names: list[str] = []
        self._is_marked = True
        self._joins = False  # what is missing next belongs to the last stretch
        self._marked: Counts = (0, 0, 0, 0)  # what of these is in the log

    def __bool__(self) -> bool:
        return self._entries + self._files > 0

    def add_entry(self, update: int) -> None:
        """Note that an entry, or a part of it, is missing."""
        with self._lock:
            self._entries += 1
            if self._joins or len(self._updates) >= _MOST:
                self._updates[-1][1] = update
            else:
                self._updates.append([update, update])
            self._joins, self._is_marked = True, False

    def add_file(self, name: str) -> None:
        """Note that a file is missing."""
        with self._lock:
            self._files += 1
            if len(self._names) < _MOST:
                self._names.append(name)
            self._is_marked = False

    @property
    def is_marked(self) -> bool:
        """Tell whether the log is told of all that is missing."""
        return self._is_marked

    def unmarked(self) -> tuple[dict[str, Any], Counts]:
        """Return what the log was not told yet, for `words`, and what `mark` is to be given when it is told."""
        with self._lock:
            entries, files, updates, names = self._marked
            found = {
                "entries": self._entries - entries,
                "updates": [list(stretch) for stretch in self._updates[updates:]],
                "files": self._files - files,
                "names": self._names[names:],
            }
            self._joins = len(self._updates) >= _MOST  # what comes now belongs to what is told next
            return found, (self._entries, self._files, len(self._updates), len(self._names))

    def mark(self, told: Counts) -> None:
        """Take that as told, of which `unmarked` returned the counts."""
        with self._lock:
            self._marked = told
            self._is_marked = told[:2] == (self._entries, self._files)

    def all(self) -> dict[str, Any]:
        """Return all that is missing, for `words`."""
        with self._lock:
            updates = [list(stretch) for stretch in self._updates]
            return {"entries": self._entries, "updates": updates, "files": self._files, "names": list(self._names)}


def words(missing: Mapping[str, Any]) -> str:
    """Say what is missing; raises TypeError, ValueError or KeyError for what `Missing` did not return."""
    parts = []
    if entries := int(missing["entries"]):
        stretches = [f"{int(first)} to {int(last)}" for first, last in missing["updates"][:10]]
        more = len(missing["updates"]) - len(stretches)
        where = ", ".join(stretches) + (f" and {more} more stretches" if more else "")
        parts.append(f"{entries} entries of the updates {where}")
    if files := int(missing["files"]):
        names = [str(name) for name in missing["names"][:5]]
        more = files - len(names)
        parts.append(f"{files} file{'s' * (files > 1)} ({', '.join(names)}{f' and {more} more' if more else ''})")
    return " and ".join(parts)
