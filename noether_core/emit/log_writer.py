"""Collect what is logged for one update, and write it as one entry when the log is flushed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import Logger
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from noether_core.emit.jsonl import LineFile, iter_lines
from noether_core.emit.loggable import NUMBERS, plain_nonscalar, plain_number
from noether_core.emit.trackers import Tracker
from noether_core.emit.trackers.feed import CLOSING_TIME, Feeds
from noether_core.errors import DuplicateKeyError, NoetherError, RunFormatError
from noether_core.schedule import UNITS, Counter

WINDOW = 1000  # entries
Values = Mapping[str, Any]
_RESERVED = frozenset({*UNITS, "crc32"})
_TEXT = frozenset({str})


class ScalarWriter(Protocol):
    """List what the callbacks use of a log writer; one of the user's own works if it has this."""

    def add_scalar(self, key: str, value: Any, logger: Logger | None = None, format_str: str | None = None) -> None:
        """Log one number."""


class _Part(NamedTuple):
    source: str | None
    values: dict[str, Any]


class LogWriter:
    """Log scalars and other values, one entry per update.

    Args:
        output_path: the run directory, in which `metrics/<n>.jsonl` is written; None keeps the entries in memory only.
        update_counter: says which epoch, update and sample an entry belongs to.
        trackers: are given each entry after it is in the file, each on a thread of its own unless it is `inline`: the caller
            never waits for one. What one misses that raises, or has 1,000 entries in its queue, `noether-parity export` fills
            later from the file.

    Attributes:
        log_entries: the entries that are flushed, all of them; with a run directory, whose file has all, the newest 1,000.

    >>> from noether_core import UpdateCounter
    >>> writer = LogWriter(update_counter=UpdateCounter())
    >>> writer.add_scalar("loss/U1", 0.5); writer.flush(); writer.log_entries
    [{'epoch': 0, 'update': 0, 'sample': 0, 'loss/U1': 0.5}]
    """

    def __init__(
        self, output_path: str | Path | None = None, *, update_counter: Counter, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.update_counter = update_counter
        self.log_entries: list[dict[str, Any]] = []
        self._path = None if output_path is None else Path(output_path)
        self._lines = None if self._path is None else LineFile(self._path / "metrics")
        self._feeds = Feeds(trackers, self._path)
        self._at: tuple[int, ...] = ()  # the update that is logged now
        self._parts: list[_Part] = []  # what is logged for it, by who did
        self._flushed = 0  # so many of these

    def bind(self, source: str) -> BoundLogWriter:
        """Return a view of this writer that notes `source` as the one who logs."""
        return BoundLogWriter(self, source)

    def add_scalar(self, key: str, value: Any, logger: Logger | None = None, format_str: str | None = None) -> None:
        """Log one number under a key, once per update.

        Args:
            key: any string but `epoch`, `update`, `sample` and `crc32`.
            value: a Python or NumPy number; kept as a plain Python one.
            logger: also told, at level INFO.
            format_str: how `logger` is shown the value, such as `.5f`.

        Raises:
            DuplicateKeyError: (a `KeyError`) if the key was logged for this update already; names who logged it first.
            NoetherError: if the value is no number.
        """
        self._add(key, plain_number(key, value), logger, format_str, None if logger is None else logger.name)

    def add_nonscalar(self, key: str, value: Any) -> None:
        """Log a string, or a list or dict of strings and numbers, under a key, once per update; raises as `add_scalar`."""
        self._add(key, plain_nonscalar(key, value), None, None, None)

    def add_scalars(self, values: Values, logger: Logger | None = None, format_str: str | None = None) -> None:
        """Log many numbers at once, as `add_scalar` on each in turn, but cheaper.

        Raises:
            DuplicateKeyError, NoetherError: the first error of `add_scalar`, after all that can be logged is.
        """
        self._add_all(values, logger, format_str, None if logger is None else logger.name)

    def _add_all(self, values: Values, logger: Logger | None, format_str: str | None, source: str | None) -> None:
        self._begin()
        if values and logger is None and self._takes_all(values):
            self._parts.append(_Part(source, dict(values)))
            return
        errors = []
        for key, value in values.items():
            try:
                self._add(key, plain_number(key, value), logger, format_str, source)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _takes_all(self, values: Values) -> bool:
        return (
            _TEXT.issuperset(map(type, values))
            and NUMBERS.issuperset(map(type, values.values()))
            and _RESERVED.isdisjoint(values)
            and all(part.values.keys().isdisjoint(values) for part in self._parts)
        )

    def _add(self, key: str, value: Any, logger: Logger | None, format_str: str | None, source: str | None) -> None:
        if not isinstance(key, str) or key in _RESERVED:
            raise NoetherError(
                f"cannot log under the key {key!r}; expected a string other than epoch, update, sample, crc32"
            )
        self._begin()
        for part in self._parts:
            if key in part.values:
                raise DuplicateKeyError(
                    f"key {key!r} is logged twice for update {self._at[1]}; it was logged first by"
                    f" {part.source or 'a caller that named no logger'}: log each key once per update, under another name"
                )
        if len(self._parts) == self._flushed or self._parts[-1].source != source:
            self._parts.append(_Part(source, {}))
        self._parts[-1].values[key] = value
        if logger is not None:
            logger.info("%s: %s", key, format(value, format_str or ""))

    def _begin(self) -> None:
        """Flush what is pending if the counter has moved on."""
        counter = self.update_counter
        if (counter.epoch, counter.update, counter.sample) != self._at:
            self.flush()
            self._at = int(counter.epoch), int(counter.update), int(counter.sample)
            self._parts, self._flushed = [], 0

    def flush(self) -> None:
        """Write what was logged since the last flush. A second flush for one update adds to that update's entry.

        Raises:
            OSError: if the file does not take it; it is then written by the next flush.
        """
        pending = self._parts[self._flushed :]
        if not pending:
            return
        epoch, update, sample = self._at
        entry = {"epoch": epoch, "update": update, "sample": sample}
        for part in pending:
            entry.update(part.values)
        if self._lines is not None:
            self._lines.append(entry)
        if self._flushed and self.log_entries:
            self.log_entries[-1].update(entry)
        else:
            self.log_entries.append(entry)
            if self._lines is not None and len(self.log_entries) > WINDOW:
                del self.log_entries[0]
        self._flushed = len(self._parts)
        self._feeds.put(entry)

    @property
    def dropped_entries(self) -> dict[str, int]:
        """Return how many entries each tracker missed because its queue was full, by the tracker's repr."""
        return self._feeds.dropped

    def current_values(self) -> dict[str, Any]:
        """Return what is logged so far for the update that the counter shows, flushed or not."""
        counter = self.update_counter
        parts = self._parts if (counter.epoch, counter.update, counter.sample) == self._at else []
        return {key: value for part in parts for key, value in part.values.items()}

    def get_all_metric_values(self, key: str) -> list[Any]:
        """Return every value flushed under a key, in order; what `log_entries` no longer has is read from the file.

        Raises:
            OSError, RunFormatError: if the file is gone or damaged.
        """
        if self._lines is None or self._lines.path is None or len(self.log_entries) < WINDOW:
            return [entry[key] for entry in self.log_entries if key in entry]
        problems: list[str] = []
        values = [entry[key] for entry in iter_lines(self._lines.path, problems) if key in entry]
        if len(problems) > self._lines.torn:
            raise RunFormatError(f"{problems[0]}; the values of {key!r} there are lost, read the others with read_run")
        return values

    def close(self, time_limit: float = CLOSING_TIME) -> None:
        """Flush, and close the file and the trackers.

        Args:
            time_limit: how many seconds all trackers together have; one that needs longer is warned about and left behind.
        """
        try:
            self.flush()
            if self._lines is not None:
                self._lines.close()
        finally:
            self._feeds.close(time_limit)


class BoundLogWriter:
    """Log to a `LogWriter` in somebody's name."""

    def __init__(self, writer: LogWriter, source: str) -> None:
        self._writer = writer
        self._source = source

    def add_scalar(self, key: str, value: Any, logger: Logger | None = None, format_str: str | None = None) -> None:
        """Log one number; see `LogWriter.add_scalar`."""
        self._writer._add(key, plain_number(key, value), logger, format_str, self._source)

    def add_scalars(self, values: Values, logger: Logger | None = None, format_str: str | None = None) -> None:
        """Log many numbers at once; see `LogWriter.add_scalars`."""
        self._writer._add_all(values, logger, format_str, self._source)

    def add_nonscalar(self, key: str, value: Any) -> None:
        """Log a value that is no number; see `LogWriter.add_nonscalar`."""
        self._writer._add(key, plain_nonscalar(key, value), None, None, self._source)

    def current_values(self) -> dict[str, Any]:
        """Return what is logged so far for the update that the counter shows; see `LogWriter.current_values`."""
        return self._writer.current_values()
