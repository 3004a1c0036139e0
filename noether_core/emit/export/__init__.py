"""Fill a tool, or write a table, from a run directory: each key and update once, from the newest attempt."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from noether_core.emit.columns import Table
from noether_core.emit.export.tables import csv_parts, parquet_bytes
from noether_core.emit.files import require_replaceable, write_whole
from noether_core.emit.reader import RunReader, read_run
from noether_core.emit.trackers import TOOLS, make_tracker
from noether_core.errors import NoetherError, listing, suggest
from noether_core.regular_files import require_no_links
from noether_core.text import as_utf8

_TABLES: dict[str, Callable[[Table], bytes | Iterable[bytes]]] = {"csv": csv_parts, "parquet": parquet_bytes}
_MARKER = "noether-export.json"


class Exported(NamedTuple):
    """Say what an export wrote.

    Attributes:
        path: the file, or the tool's directory.
        problems: a sentence for each damaged line of the run, which is left out.
    """

    path: Path
    entries: int
    problems: list[str]


def export_run(run: str | Path, to: str, out: str | Path | None = None) -> Exported:
    """Write a run's entries for another tool. A second export takes the first one's place.

    Args:
        run: a run directory.
        to: `tensorboard`, `wandb` (offline), `trackio`, `mlflow`, `csv` or `parquet`.
        out: the file, or the directory that the tool's files go to; by default `exports/` in the run directory.

    Raises:
        NoetherError: for another `to`, a run without entries, a directory that no export wrote, or an `exports/` that is a link
            to elsewhere.
        MissingDependencyError: if the tool is not installed.
    """
    known = [*TOOLS, *_TABLES]
    if to not in known:
        raise NoetherError(f"cannot export to {to!r}; known are {listing(known)}.{suggest(to, known)}")
    reader = read_run(run)
    entries = len(reader.table.iterations)
    if not entries:
        raise NoetherError(f"{str(run)!r} has no log entries, so there is nothing to export")
    path = reader.path / "exports" / (f"metrics.{to}" if to in _TABLES else to) if out is None else Path(out)
    if out is None:
        require_no_links(reader.path, path)
    if to in _TABLES:
        require_replaceable(path)
        write_whole(path, _TABLES[to](reader.table))
    else:
        _fill(reader, to, path)
    return Exported(path, entries, reader.problems)


def _fill(reader: RunReader, to: str, path: Path) -> None:
    """Give every entry to a tool whose directory is new."""
    tracker = make_tracker(to, path, reader.path.resolve().name, {})
    _clear(path)
    # first of all, so that an export that was cut short may be done again
    write_whole(path / _MARKER, json.dumps({"run": str(reader.path.resolve()), "to": to}).encode())
    try:
        log_at = getattr(tracker, "log_at", None)  # a tool that keeps times gets those of the training
        for entry, time in zip(reader.iter_entries(), reader.table.times.tolist(), strict=True):
            plain = {as_utf8(key).decode(): _encodable(value) for key, value in entry.items()}
            if log_at is None or math.isnan(time):
                tracker.log(plain)
            else:
                log_at(plain, time)
    except Exception as error:
        raise NoetherError(f"{to} did not take all entries of {str(reader.path)!r}: {error!r:.500}") from error
    finally:
        tracker.close()


def _encodable(value: Any) -> Any:
    return as_utf8(value).decode() if isinstance(value, str) else value


def _clear(path: Path) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / _MARKER).is_file():
        raise NoetherError(
            f"{str(path)!r} exists and is no earlier export, so it is left as it is; give a new directory with --out"
        )
    shutil.rmtree(path)
