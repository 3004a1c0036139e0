"""Collect what is logged for one update, and write it as one entry when the log is flushed."""

from __future__ import annotations

import atexit
import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from noether_core.emit.jsonl import LineFile, encode_line
from noether_core.emit.trackers import Tracker
from noether_core.emit.trackers.closing import close_feeds, warn_of_failure
from noether_core.emit.trackers.feed import Feed
from noether_core.errors import DuplicateKeyError, NoetherError
from noether_core.schedule import UNITS, Counter

Scalar = float | int | bool
CLOSING_TIME = 10.0  # seconds


class ScalarWriter(Protocol):
    """List what the callbacks use of a log writer; one of the user's own works if it has this."""

    def add_scalar(
        self, key: str, value: Any, logger: logging.Logger | None = None, format_str: str | None = None
    ) -> None:
        """Log one number."""


class LogWriter:
    """Log scalars and other values, one entry per update.

    Args:
        output_path: the run directory, in which `metrics/<n>.jsonl` is written; None keeps the entries in memory only.
        update_counter: says which epoch, update and sample an entry belongs to.
        trackers: are given each entry after it is in the file, each on a thread of its own: the caller never waits for one
            (one with a true attribute `inline`, such as the console's, is called by the caller itself). One that raises is
            warned about once and left out from then on. Entries that meet a full queue (1,000) are dropped for that
            tracker. The file has what a tracker missed, and `noether-parity export` fills it later.

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
        self._feeds = self._all_feeds = [Feed(tracker) for tracker in trackers]  # those fed, and those ever fed
        self._failed: list[Feed] = []
        self._is_awaited = False
        self._pending: dict[str, Any] = {}
        self._sources: dict[str, str | None] = {}
        self._iteration: dict[str, int] = {}

    def bind(self, source: str) -> BoundLogWriter:
        """Return a view of this writer that notes `source` as the one who logs."""
        return BoundLogWriter(self, source)

    def add_scalar(
        self, key: str, value: Any, logger: logging.Logger | None = None, format_str: str | None = None
    ) -> None:
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
        self._add(key, _plain(key, value), logger, format_str, None if logger is None else logger.name)

    def add_nonscalar(self, key: str, value: Any) -> None:
        """Log a string, or a list or dict of strings and numbers, under a key, once per update.

        Raises:
            DuplicateKeyError: (a `KeyError`) if the key was logged for this update already.
            NoetherError: if the value is none of these.
        """
        self._add(key, _nonscalar(key, value), None, None, None)

    def _add(
        self, key: str, value: Any, logger: logging.Logger | None, format_str: str | None, source: str | None
    ) -> None:
        if not isinstance(key, str) or key in {*UNITS, "crc32"}:
            raise NoetherError(
                f"cannot log under the key {key!r}; expected a string other than epoch, update, sample, crc32"
            )
        iteration = self._current()
        if iteration != self._iteration:
            if self._pending:
                self.flush()
            self._iteration = iteration
            self._sources = {}
        if key in self._sources:
            first = self._sources[key]
            raise DuplicateKeyError(
                f"key {key!r} is logged twice for update {iteration['update']}; it was logged first by"
                f" {first or 'a caller that named no logger'}: log each key once per update, under another name"
            )
        self._pending[key] = value
        self._sources[key] = source
        if logger is not None:
            logger.info("%s: %s", key, format(value, format_str or ""))

    def _current(self) -> dict[str, int]:
        return {unit: int(getattr(self.update_counter, unit)) for unit in UNITS}

    def flush(self) -> None:
        """Write what was logged since the last flush. A second flush for one update adds to that update's entry."""
        if not self._pending:
            return
        entry = {**self._iteration, **self._pending}
        last = self.log_entries[-1] if self.log_entries else {}
        if {unit: last.get(unit) for unit in UNITS} == self._iteration:
            last.update(entry)
        else:
            self.log_entries.append(dict(entry))
        if self._lines is not None:
            self._lines.append(entry)  # what a full disk refuses stays pending, for the next flush
        self._pending = {}
        self._feed(entry)

    def _feed(self, entry: dict[str, Any]) -> None:
        if not self._feeds:
            return
        if not self._is_awaited:
            atexit.register(self._close_feeds)  # for a program that ends without close()
            self._is_awaited = True
        for feed in self._feeds:
            feed.put(entry)
        self._report_failures()

    def _report_failures(self) -> None:
        """Warn of each tracker that raised, here on the caller's thread, once."""
        for feed in self._feeds:
            if feed.failed_at == "log" and feed not in self._failed:
                self._failed.append(feed)
                warn_of_failure(feed, self._path)

    @property
    def dropped_entries(self) -> dict[str, int]:
        """Return how many entries each tracker missed because its queue was full, by the tracker's repr."""
        return {repr(feed.tracker): feed.dropped for feed in self._all_feeds}

    def current_values(self) -> dict[str, Any]:
        """Return what is logged so far for the update that the counter shows, flushed or not."""
        iteration = self._current()
        last = self.log_entries[-1] if self.log_entries else {}
        flushed = last if {unit: last.get(unit) for unit in UNITS} == iteration else {}
        pending = self._pending if self._iteration == iteration else {}
        return {key: value for key, value in {**flushed, **pending}.items() if key not in UNITS}

    def get_all_metric_values(self, key: str) -> list[Any]:
        """Return every value flushed under a key, in order."""
        return [entry[key] for entry in self.log_entries if key in entry]

    def close(self, time_limit: float = CLOSING_TIME) -> None:
        """Flush, and close the file and the trackers.

        Args:
            time_limit: how many seconds all trackers together have for what they have not taken yet. One that needs longer is
                warned about and left behind.
        """
        try:
            self.flush()
            if self._lines is not None:
                self._lines.close()
        finally:
            self._close_feeds(time_limit)

    def _close_feeds(self, time_limit: float = CLOSING_TIME) -> None:
        atexit.unregister(self._close_feeds)
        close_feeds(self._feeds, self._path, time_limit)
        self._report_failures()
        self._feeds = []


class BoundLogWriter:
    """Log to a `LogWriter` in somebody's name."""

    def __init__(self, writer: LogWriter, source: str) -> None:
        self._writer = writer
        self._source = source

    def add_scalar(
        self, key: str, value: Any, logger: logging.Logger | None = None, format_str: str | None = None
    ) -> None:
        """Log one number; see `LogWriter.add_scalar`."""
        self._writer._add(key, _plain(key, value), logger, format_str, self._source)

    def add_nonscalar(self, key: str, value: Any) -> None:
        """Log a value that is no number; see `LogWriter.add_nonscalar`."""
        self._writer._add(key, _nonscalar(key, value), None, None, self._source)

    def current_values(self) -> dict[str, Any]:
        """Return what is logged so far for the update that the counter shows; see `LogWriter.current_values`."""
        return self._writer.current_values()


def _plain(key: str, value: Any) -> Scalar:
    if isinstance(value, np.ndarray | np.generic) and value.size == 1 and value.dtype.kind in "biuf":
        value = value.item()
    if not isinstance(value, bool | int | float):
        raise NoetherError(
            f"add_scalar got {type(value).__name__} for key {key!r}; expected a Python or NumPy number (a device array is"
            " converted by float(...); text goes to add_nonscalar)"
        )
    return value


def _nonscalar(key: str, value: Any) -> Any:
    """Return a copy of a value that a line can hold."""
    try:
        encode_line({key: value})
    except (TypeError, ValueError, RecursionError) as error:
        raise NoetherError(
            f"add_nonscalar got {type(value).__name__} for key {key!r}, which JSON cannot hold ({error}); expected a string, or"
            " a list or dict of strings and plain numbers"
        ) from error
    return copy.deepcopy(value)
