"""Look at the end of a run's log only: its state, where it is, and the newest values."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noether_core.emit.capsule import DIRECTORY as CAPSULES
from noether_core.emit.holders import is_gone, named_in
from noether_core.emit.jsonl import decode_line, numbered_files
from noether_core.emit.lines import entry_problem
from noether_core.emit.writer_lock import is_written_now
from noether_core.errors import NoetherError, RunFormatError
from noether_core.regular_files import files_below, open_regular
from noether_core.schedule import UNITS

_TAIL = 2**17  # bytes of a log's end
_MOST_DEPTH = 5  # directories below a folder of runs
_MOST_RUNS = 2000


@dataclass(frozen=True)
class Newest:
    """Hold what the end of a log says.

    Attributes:
        path: the run directory.
        state: `running`; `killed`, if its process is gone without an end; `failed`, if it left a capsule; `ended`; `elsewhere`,
            if another machine has it open, and whether that runs is not known; or `empty`.
        entry: the newest value of each key in the end of the log, `epoch`, `update` and `sample` among them; empty if there is
            none.
        time: when the log was last written, in seconds since 1970; None if never.
    """

    path: Path
    state: str
    entry: Mapping[str, Any]
    time: float | None

    def main_value(self) -> tuple[str, float | int] | None:
        """Return the key and the value that tell most: a loss if there is one, else the first number."""
        found = {
            key: value
            for key, value in self.entry.items()
            if key not in UNITS and isinstance(value, float | int) and not isinstance(value, bool)
        }
        losses = sorted(
            (key for key in found if "loss" in key.lower()), key=lambda key: (not key.startswith("loss"), len(key))
        )
        key = next(iter(losses), next(iter(found), None))
        return None if key is None else (key, found[key])


def is_run(path: Path) -> bool:
    """Tell whether a directory is one that a run wrote."""
    return (path / "metrics").is_dir() or (path / "config.yaml").is_file() or (path / "update_outputs").is_dir()


def newest_of(path: Path) -> Newest:
    """Return what the end of a run's log says; only that is read."""
    logs = [file for file in numbered_files(path / "metrics") if not file.is_symlink()]
    entry: dict[str, Any] = {}
    written = None
    for file in reversed(logs):
        with contextlib.suppress(OSError, RunFormatError):
            entry = _end_of(file)
            written = file.stat().st_mtime
        if entry:
            break
    return Newest(path, _state(path, logs, bool(entry)), entry, written)


def _end_of(file: Path) -> dict[str, Any]:
    """Return the newest value of each key in the last lines."""
    with open_regular(file, file.parent.parent) as opened:
        size = os.fstat(opened.fileno()).st_size
        opened.seek(max(0, size - _TAIL))
        lines = opened.read(_TAIL).splitlines(keepends=True)
    found: dict[str, Any] = {}
    for line in lines[size > _TAIL :]:
        with contextlib.suppress(RunFormatError):
            entry = decode_line(line)
            if entry_problem(entry) is None:
                found.update(entry)
    return found


def _state(path: Path, logs: list[Path], has_entries: bool) -> str:
    if is_written_now(path):
        return "running"
    for name in ("writer.lock", "writer.pid"):
        if holder := named_in(path / name):
            return "killed" if is_gone(holder) else "elsewhere"
    with contextlib.suppress(OSError, NoetherError):
        capsules = [file.stat().st_mtime for file in files_below(path, CAPSULES)]
        begun = (path / "starts" / f"{logs[-1].stem}.json").stat().st_mtime if logs else 0.0
        if max(capsules, default=-1.0) >= begun:
            return "failed"
    return "ended" if has_entries else "empty"


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield the run directories below a folder, at most five deep and 2,000 of them; links are not followed."""
    waiting, found = [(folder, 0)], 0
    while waiting and found < _MOST_RUNS:
        directory, depth = waiting.pop(0)
        with contextlib.suppress(OSError):
            below = sorted(each for each in directory.iterdir() if each.is_dir() and not each.is_symlink())
            for each in below:
                if is_run(each):
                    found += 1
                    yield each
                elif depth < _MOST_DEPTH and not each.name.startswith("."):
                    waiting.append((each, depth + 1))


def runs_at(paths: Iterable[str | Path]) -> list[Path]:
    """Return run directories: those that are given, and in the place of a folder of runs those below it."""
    found: list[Path] = []
    for path in map(Path, paths):
        below = [] if is_run(path) else sorted(runs_below(path))
        found += below or [path]  # what is neither is refused by what reads it
    return found


def age(since: float | None, now: float | None = None) -> str:
    """Say how long ago a time in seconds since 1970 was.

    >>> age(0.0, 4.2), age(0.0, 200.0), age(0.0, 7300.0), age(0.0, 1e6), age(None)
    ('4 s', '3 min', '2 h', '11 d', '')
    """
    if since is None:
        return ""
    seconds = max(0.0, (time.time() if now is None else now) - since)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name}"
    return f"{seconds:.0f} s"
