"""Write what a process logs to a run directory: of its start, and of each time it goes on from somewhere else."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from noether_core.emit.columns import joined_entry
from noether_core.emit.disk import CLOSING_PATIENCE, Disk
from noether_core.emit.disk_thread import is_passing
from noether_core.emit.jsonl import numbered_files
from noether_core.emit.lineage import standing
from noether_core.emit.start_log import StartLog, Written
from noether_core.emit.starts import NEWEST, Origin, Start
from noether_core.emit.writer_lock import WriterLock
from noether_core.errors import RunFormatError, tell, warn

_logger = logging.getLogger(__name__)


class RunLog:
    """Write to a run directory, as the only one that does, and read what was written there.

    Args:
        directory: the run directory.
        disk: writes.
        written: is told of each entry, and its number, when it is in the file.

    Attributes:
        newest: writes the entries to come.
        beside: files, such as `config.yaml`, that are written again if somebody removes the directory.
        is_provisional: whether these are of intervals that are not over.
    """

    def __init__(self, directory: Path, disk: Disk, written: Written) -> None:
        self.directory = directory
        self._disk = disk
        self._written = written
        self._lock = WriterLock(directory)
        self._lock.owner = weakref.ref(self)
        self.beside: dict[Path, bytes] = {}
        self.newest = StartLog(directory, disk, self._lock, written=written, remake=weakref.WeakMethod(self._remake))
        self._earlier: list[StartLog] = []  # of which this process went back from, the oldest first
        self.is_provisional = False
        self._has_warned = False

    @property
    def is_forked(self) -> bool:
        """Tell whether this is a copy in a child of the process that writes: it writes nothing."""
        return self._lock.is_forked

    def hold(self, give_way: Callable[[], None] | None = None) -> None:
        """Be the one that writes to the directory; what is written first does this, too.

        Args:
            give_way: a method that closes this, for another one in this process that is to write there; None: that is refused.

        Raises:
            RunLockedError: if another one does.
        """
        if give_way is not None:
            self._lock.give_way = weakref.WeakMethod(give_way)
        if not self.is_forked:
            self._lock.hold()

    def let_go(self) -> None:
        """Let others write to the directory, once nothing is written there any more."""
        self._disk.when_still(self._lock.release)

    @property
    def origin(self) -> Origin | None:
        """Return what the newest entries go on from; None where that is not known."""
        return self.newest.origin

    def begin(self, origin: Origin) -> None:
        """Go on from another iteration: what is written next begins a file of its own, with a record."""
        before = self.newest
        earlier = [*self._earlier, before] if before.is_open else self._earlier
        self._disk.wait()  # for the records of earlier starts
        # where they cannot be read, it goes on from the newest, and nothing is warned of
        with contextlib.suppress(OSError):
            origin = origin.in_directory(self.directory)
            self._warn_of_others(origin)
        remake: weakref.WeakMethod[Callable[[str], None]] = weakref.WeakMethod(self._remake)
        newest = StartLog(self.directory, self._disk, self._lock, origin, self._written, remake)
        self._earlier, self.is_provisional, self.newest = earlier, False, newest  # which last of all: it has begun
        before.close()

    def _warn_of_others(self, origin: Origin) -> None:
        """Warn if the start that this one goes on from had other callbacks: one series may then be of two configs."""
        found = origin.parent_in(self.directory)
        if found is None or not isinstance(found[1].get("callbacks"), list):
            return
        number, record = found
        if record["callbacks"] == origin.about.get("callbacks"):
            return
        before, now = (
            {json.dumps(each, sort_keys=True) for each in callbacks}
            for callbacks in (record["callbacks"], origin.about.get("callbacks", ()))
        )
        differing = [f"now {each:.300}" for each in sorted(now - before)] + [
            f"then {each:.300}" for each in sorted(before - now)
        ]
        warn(
            f"this run goes on in {str(self.directory)!r} with other callbacks than start {number} had, whose series it"
            f" continues where the names are alike: {'; '.join(differing[:6]) or 'their order'}. Give another experiment a"
            f" directory of its own; what each start had is in its record, such as starts/{number}.json"
        )

    def begin_provisional(self) -> None:
        """Take what comes from here on as of intervals that are not over."""
        self.is_provisional = True

    def carry_since(self, update: int) -> None:
        """Note that the intervals under way turn out to have every step since an update, that of an earlier start."""
        self.newest.carry_since(update)

    def save(self, path: Path, data: bytes) -> None:
        """Write a file of arrays, after what was written before; a reader of the directory knows which start did."""
        if path.is_relative_to(self.directory):
            if not self._is_writer():
                return
            self.newest.save(path, data, is_provisional=self.is_provisional)
        else:
            self._disk.put_file(path, data, keeps=self._lock)

    def append(self, entry: Mapping[str, Any], number: int) -> None:
        """Write one entry; see `hold`, and `StartLog.append`."""
        if self._is_writer():
            if not self.newest.is_open:
                self._tell_of_superseded()
            self.newest.append(entry, number, is_provisional=self.is_provisional)

    def _remake(self, what: str) -> None:
        """Make the directory again, on the disk's thread, as the one that writes to it.

        Raises:
            RunLockedError: if another one does by now.
            OSError: if that cannot be.
        """
        self._lock.renew()
        for path, data in self.beside.items():
            if not path.exists():
                self._disk.write_now(path, data)
        self._disk.say(
            f"{str(self.directory)!r}, or what this run logged in it, was removed while it is written. It is made again:"
            f" {what}. Arrays that were saved there, and all else that was in it, are gone"
        )

    def _tell_of_superseded(self) -> None:
        """Say, before the first entry, that this start begins anew in the directory of another training."""
        origin = self.newest.origin
        if self._earlier or origin is None or origin.ancestors:
            return
        with contextlib.suppress(OSError):
            if others := [path.stem for path in numbered_files(self.directory / "metrics")]:
                _logger.warning(
                    "%s has what an earlier training logged (metrics/%s.jsonl). This one begins anew, so its entries take the"
                    " place of those, which are kept, but no longer shown: `read_run(path).iter_superseded()` has them. To keep"
                    " both in view, give each training a directory, such as %r; to go on with the earlier one, load its state",
                    repr(str(self.directory)),
                    others[-1],
                    f"{self.directory.name}_2",
                )

    def _is_writer(self) -> bool:
        """Hold the directory; in a forked child warn, once, and tell that nothing is to be written."""
        try:
            self.hold()
        except OSError as error:  # a full disk say, which does not take what is written either; it is tried again
            if not is_passing(error):
                raise
        if self.is_forked and not self._has_warned:
            self._has_warned = True
            tell(
                f"process {os.getpid()} was forked from the one that writes to {str(self.directory)!r}, so what it logs there"
                " is left out; log in the process that made the run, or make a run of its own in another directory"
            )
        return not self.is_forked

    def newest_entries(self, then: Origin, most: int) -> list[dict[str, Any]] | None:
        """Return the newest entries that stand if it goes on from there.

        None: they are those that stand now, up to that update; or the files cannot be read, and it has to do with these.
        """
        parent, now = then.ancestors[0][0] if then.ancestors else NEWEST, self.newest.origin
        if not self.newest.is_open or now is None or parent in (now.id, NEWEST) or not self._disk.wait():
            return None
        with contextlib.suppress(OSError, RunFormatError):
            return list(deque(self.entries(then), most))
        return None

    def entries(self, then: Origin | None = None) -> Iterator[dict[str, Any]]:
        """Yield the entry of each update that this process wrote one of and that stands, in order.

        Args:
            then: says what stands if it goes on from there; None: what does now.

        Raises:
            OSError: if the disk has not taken all, or a file is gone.
            RunFormatError: if one is damaged.
        """
        if not self._disk.wait(patience=CLOSING_PATIENCE, insists=True):
            raise OSError(
                f"the disk has not taken what was logged in {self.directory} ({self._disk.trouble or 'it has stalled'}), so"
                " it cannot be read back; ask again when it has"
            )
        logs = [*self._earlier, self.newest]
        origins = [log.origin for log in logs] + ([] if then is None else [then])
        stands = zip(logs, standing([_start(origin) for origin in origins]), strict=False)
        for _, parts in groupby((entry for log, until in stands for entry in log.entries(until)), itemgetter("update")):
            yield joined_entry(parts)

    def close(self) -> None:
        """Close the files, once all is written; `let_go` then."""
        for log in () if self.is_forked else (*self._earlier, self.newest):
            log.close()


def _start(origin: Origin | None) -> Start:
    return Start(NEWEST, (), -1) if origin is None else Start(origin.id, origin.ancestors, origin.since)
