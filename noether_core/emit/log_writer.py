"""Collect what is logged for one update, and write it as one entry when the log is flushed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from logging import Logger
from pathlib import Path
from typing import Any, Protocol

from noether_core.emit.disk import Disk, Durability
from noether_core.emit.loggable import plain_key, plain_nonscalar, plain_number, plain_value
from noether_core.emit.parts import Parts, PartsMark
from noether_core.emit.run_log import RunLog
from noether_core.emit.start_log import StartLog
from noether_core.emit.starts import Origin
from noether_core.emit.trackers import Tracker
from noether_core.emit.trackers.feed import CLOSING_TIME, Feeds
from noether_core.errors import HookOrderError
from noether_core.schedule import UNITS, Counter

WINDOW = 1000  # entries
Values = Mapping[str, Any]


class ScalarWriter(Protocol):
    """List what the callbacks use of a log writer; one of the user's own works if it has this."""

    def add_scalar(self, key: str, value: Any, logger: Logger | None = None, format_str: str | None = None) -> None:
        """Log one number."""


class LogWriter:
    """Log scalars and other values, one entry per update.

    Args:
        output_path: the run directory, in which `metrics/<n>.jsonl` is written; None keeps the entries in memory only.
        update_counter: says which epoch, update and sample an entry belongs to.
        trackers: are given each entry after it is in the file, each on a thread of its own; one that is `inline`, by `flush`.
            What one misses that raises, or has 1,000 entries in its queue, `noether-parity export` fills later from the file.
        keeps_all: whether all entries stay in memory where no file has them.
        durability: what holds when `flush` returns; see `noether_core.emit.disk`.

    Attributes:
        log_entries: the entries that are flushed, all of them or the newest 1,000.
        disk: writes them, on a thread of its own.
        run_log: hands them to it for the run directory, if there is one.

    >>> from noether_core import UpdateCounter
    >>> writer = LogWriter(update_counter=UpdateCounter())
    >>> writer.add_scalar("loss/U1", 0.5); writer.flush(); writer.log_entries
    [{'epoch': 0, 'update': 0, 'sample': 0, 'loss/U1': 0.5}]
    """

    def __init__(
        self,
        output_path: str | Path | None = None,
        *,
        update_counter: Counter,
        trackers: Sequence[Tracker] = (),
        keeps_all: bool = True,
        durability: Durability = "interval",
    ) -> None:
        self.update_counter = update_counter
        self.log_entries: list[dict[str, Any]] = []
        self.disk = Disk(durability)
        path = None if output_path is None else Path(output_path)
        self._feeds = Feeds(trackers, path)
        self.run_log = None if path is None else RunLog(path, self.disk, self._feeds.put)
        self._at, self._parts = (0, -1, 0), Parts()  # the epoch, update and sample that is logged now, and what for it
        self._flushes, self._keeps_all = 0, keeps_all and path is None
        self._is_closed = self._is_cut = False  # `log_entries` has not all

    def begin(self, origin: Origin) -> None:
        """Go on from another iteration: what was logged after it is superseded.

        The next entry begins a new file of the run directory, with a record of this start.
        """
        self.flush()
        self._feeds.own()
        read = None if self.run_log is None else self.run_log.newest_entries(origin, WINDOW)
        entries = [each for each in self.log_entries if each["update"] <= origin.update] if read is None else read
        self._is_cut |= len(entries) == WINDOW
        self.log_entries, self._at, self._parts = entries, (0, -1, 0), Parts()
        if self.run_log is not None:
            self.run_log.begin(origin)  # last of all: it has begun

    @property
    def start_log(self) -> StartLog | None:
        """Return what writes the entries to come; None where no file has them."""
        return None if self.run_log is None else self.run_log.newest

    def begin_provisional(self) -> None:
        """Flush; what is logged and saved from here on is of intervals that are not over when training ends."""
        if self.run_log is not None and not self.run_log.is_provisional:
            self.flush()
            self.run_log.begin_provisional()

    def save(self, path: Path, data: bytes) -> None:
        """Write a file of arrays, after what was flushed before; a reader of the run directory knows which start did."""
        if self.run_log is not None:
            self.run_log.save(path, data)
        else:
            self.disk.put_file(path, data)

    def bind(self, source: str) -> BoundLogWriter:
        """Return a view of this writer that notes `source` as the one who logs."""
        return BoundLogWriter(self, source)

    def add_scalar(
        self,
        key: str,
        value: Any,
        logger: Logger | None = None,
        format_str: str | None = None,
        source: str | None = None,
    ) -> None:
        """Log one number under a key, once per update.

        Args:
            key: any string but `epoch`, `update`, `sample` and `crc32`.
            value: a Python or NumPy number; kept as a plain Python one.
            logger: also told, at level INFO.
            format_str: how `logger` is shown the value, such as `.5f`.
            source: who logs; by default the logger.

        Raises:
            DuplicateKeyError: (a `KeyError`) if the key was logged for this update already; names who logged it first.
            NoetherError: if the value is no number.
        """
        self._add(key, plain_number(key, value), logger, format_str, source)

    def add_nonscalar(self, key: str, value: Any, source: str | None = None) -> None:
        """Log a string, or a list or dict of strings and numbers, under a key, once per update; raises as `add_scalar`."""
        self._add(key, plain_nonscalar(key, value), None, None, source)

    def add_scalars(
        self, values: Values, logger: Logger | None = None, format_str: str | None = None, source: str | None = None
    ) -> None:
        """Log many numbers at once, as `add_scalar` on each in turn, but cheaper.

        Raises:
            DuplicateKeyError, NoetherError: the first error of `add_scalar`, after all that can be logged is.
        """
        self._begin()
        if values and logger is None and self._parts.takes_all(values):
            self._parts.add_all(values, source)
            return
        errors = self._add_each(values, plain_number, source, logger, format_str)
        if errors:
            raise errors[0]

    def add_values(self, values: Values, source: str | None = None) -> list[Exception]:
        """Log numbers, single-element arrays, strings, lists and dicts, all that can be; return what was raised."""
        return self._add_each(values, plain_value, source)

    def _add_each(
        self,
        values: Values,
        plain: Callable[[str, Any], Any],
        source: str | None,
        logger: Logger | None = None,
        format_str: str | None = None,
    ) -> list[Exception]:
        """Log all that can be logged; return what was raised."""
        errors: list[Exception] = []
        for key, value in values.items():
            try:
                self._add(key, plain(key, value), logger, format_str, source)
            except Exception as error:
                errors.append(error)
        return errors

    def _add(self, key: str, value: Any, logger: Logger | None, format_str: str | None, source: str | None) -> None:
        key = plain_key(key)
        shown = "" if logger is None else format(value, format_str or "")  # before anything is logged, for it may raise
        self._begin()
        self._parts.add(key, value, source or (None if logger is None else logger.name), self._at[1])
        if logger is not None:
            logger.info("%s: %s", key, shown)

    def _begin(self) -> None:
        """Flush what is pending if the counter has moved on."""
        if self._is_closed:
            raise HookOrderError(
                "the log is closed, so nothing can be logged any more; log it before the run ends, inside the `with` block:"
                " run.log({name: value})"
            )
        counter = self.update_counter
        update = int(counter.update)
        if update != self._at[1]:
            self.flush()
            self._parts = Parts()
        self._at = int(counter.epoch), update, int(counter.sample)

    def flush(self) -> None:
        """Write what was logged since the last flush. A second flush for one update adds to that update's entry."""
        count, number = len(self._parts), self._flushes
        if count == self._parts.flushed:
            self.disk.settle()
            return
        entry: dict[str, Any] = dict(zip(UNITS, self._at, strict=True))
        entry.update(self._parts.values(self._parts.flushed))
        self._feeds.expect()
        # if this is interrupted, it may be done again from here on, and changes nothing that it has changed
        if self.run_log is not None:
            self.run_log.append(entry, number)
        if self.log_entries and self.log_entries[-1]["update"] == entry["update"]:
            self.log_entries[-1] = {**self.log_entries[-1], **entry}
        else:
            self.log_entries.append(entry)
        if not self._keeps_all and len(self.log_entries) > WINDOW:
            self._is_cut = bool(self.log_entries.pop(0))
        self._feeds.put_inline(entry, number)
        if self.run_log is None:
            self._feeds.put(entry, number)
        self._parts.flushed, self._flushes = count, number + 1
        self.disk.settle()

    def mark(self) -> PartsMark:
        """Return what is logged for this update so far, for `go_back`."""
        return self._parts.mark()

    def go_back(self, mark: PartsMark) -> None:
        """Forget what was logged since `mark`, but for what was flushed."""
        self._parts.go_back(mark)

    def restate(self) -> None:
        """Write once more where the newest entry stands, if the counter came to show another epoch of its update since."""
        counter = self.update_counter
        at = int(counter.epoch), int(counter.update), int(counter.sample)
        if not self._parts.flushed or at == self._at or at[1] != self._at[1]:
            return
        entry: dict[str, Any] = dict(zip(UNITS, at, strict=True))
        if self.run_log is not None:
            self.run_log.append(entry, self._flushes)
        self.log_entries[-1] = {**self.log_entries[-1], **entry}
        self._at, self._flushes = at, self._flushes + 1
        self.disk.settle()

    @property
    def dropped_entries(self) -> dict[str, int]:
        """Return how many entries each tracker missed because its queue was full, by the tracker's repr."""
        return self._feeds.dropped

    def current_values(self) -> dict[str, Any]:
        """Return what is logged so far for the update that the counter shows, flushed or not."""
        return self._parts.values() if int(self.update_counter.update) == self._at[1] else {}

    def get_all_metric_values(self, key: str) -> list[Any]:
        """Return every value flushed under a key, in order; what `log_entries` no longer has is read from the file.

        Raises:
            OSError, RunFormatError: if the file is gone or damaged, or the disk does not take what it is to have.
        """
        if self.run_log is None or not self._is_cut:
            return [entry[key] for entry in self.log_entries if key in entry]
        return [entry[key] for entry in self.run_log.entries() if key in entry]

    def close(self, time_limit: float = CLOSING_TIME) -> None:
        """Flush, and close the file and the trackers. What the disk does not take even now is warned about.

        Args:
            time_limit: how many seconds all trackers together have; one that needs longer is warned about and left behind.
        """
        try:
            if self.run_log is None or not self.run_log.is_forked:
                self.flush()
        except Exception:
            self._close(time_limit)
            raise
        self._close(time_limit)

    def _close(self, time_limit: float) -> None:
        """Close one after the other, each whatever the others raise; if this is interrupted, it may be called again."""
        self._is_closed = True
        log, errors = self.run_log, []
        closing = [self.disk.close] if log is None else [log.close, self.disk.close, log.let_go]
        for close in (*closing, partial(self._feeds.close, time_limit)):
            try:
                close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


class BoundLogWriter:
    """Log to a `LogWriter` in somebody's name, by its own methods."""

    def __init__(self, writer: LogWriter, source: str) -> None:
        self.writer = writer
        self.add_scalar = partial(writer.add_scalar, source=source)
        self.add_scalars = partial(writer.add_scalars, source=source)
        self.add_nonscalar = partial(writer.add_nonscalar, source=source)
        self.add_values = partial(writer.add_values, source=source)
        self.save = writer.save
        self.disk = writer.disk
        self.current_values = writer.current_values
        self.is_in_memory = writer.run_log is None
