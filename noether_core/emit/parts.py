"""Collect the values of one update's entry: part by part, so that one that was interrupted is taken back whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from noether_core.emit.loggable import MOST_NAME, NUMBERS, WIDE
from noether_core.errors import DuplicateKeyError
from noether_core.schedule import RESERVED

_TEXT = frozenset({str})


class Part(NamedTuple):
    """Hold what one logged at a time."""

    source: str | None
    values: dict[str, Any]


PartsMark = tuple["Parts", int, dict[str, Any]]  # of `Parts.mark`


class Parts:
    """Hold what is logged for an update, by who did; a key once.

    Attributes:
        flushed: so many of the parts are flushed, and stay.
    """

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self.flushed = 0

    def __len__(self) -> int:
        return len(self._parts)

    def takes_all(self, values: Mapping[str, Any]) -> bool:
        """Tell whether all of these values can be added as they are."""
        kinds = set(map(type, values.values()))
        return (
            _TEXT.issuperset(map(type, values))
            and kinds <= NUMBERS
            and (int not in kinds or all(-WIDE < value < WIDE for value in values.values() if type(value) is int))
            and max(map(len, values)) <= MOST_NAME
            and RESERVED.isdisjoint(values)
            and all(part.values.keys().isdisjoint(values) for part in self._parts)
        )

    def add_all(self, values: Mapping[str, Any], source: str | None) -> None:
        """Add values that `takes_all` has looked at."""
        self._parts.append(Part(source, dict(values)))

    def add(self, key: str, value: Any, source: str | None, update: int) -> None:
        """Add one value of an update; raises `DuplicateKeyError`, which names who added the key first."""
        for part in self._parts:
            if key in part.values:
                raise DuplicateKeyError(
                    f"key {key!r} is logged twice for update {update}; it was logged first by"
                    f" {part.source or 'a caller that named no logger'}: log each key once per update, under another name"
                )
        if len(self._parts) == self.flushed or self._parts[-1].source != source:
            self._parts.append(Part(source, {}))
        self._parts[-1].values[key] = value

    def values(self, first: int = 0) -> dict[str, Any]:
        """Return the values of all parts, or of those from one on."""
        found: dict[str, Any] = {}
        for part in self._parts[first:]:
            found.update(part.values)
        return found

    def mark(self) -> PartsMark:
        """Return what is there, for `go_back`."""
        parts = self._parts
        return self, len(parts), parts[-1].values.copy() if len(parts) > self.flushed else {}

    def go_back(self, mark: PartsMark) -> None:
        """Forget what was added since, but for what was flushed; all, if the mark is of another update's."""
        parts, length, newest = mark
        kept = max(self.flushed, length) if parts is self else self.flushed
        if parts is self and kept == length > self.flushed:
            self._parts[kept - 1] = self._parts[kept - 1]._replace(values=newest)
        del self._parts[kept:]
