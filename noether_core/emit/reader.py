"""Read a run directory back: series per key, arrays on demand. It may be read while the run still writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.emit.arrays import read_arrays
from noether_core.emit.jsonl import read_lines
from noether_core.errors import RunFormatError, ScheduleError
from noether_core.schedule import UNITS, TrainingIteration


@dataclass(frozen=True)
class Point:
    """Hold one value of a series, with the epoch, update and sample it was logged at."""

    epoch: int
    update: int
    sample: int
    value: Any


@dataclass(frozen=True)
class ArrayFile:
    """Point at the arrays saved at one interval's end.

    Attributes:
        interval: the interval's short string, after the callback's id and `/` where it has one.
        iteration: the iteration it was saved at.
        path: the safetensors file.
    """

    interval: str
    iteration: TrainingIteration
    path: Path

    def load(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays by name."""
        return read_arrays(self.path)


@dataclass(frozen=True)
class RunReader:
    """Hold what a run directory gives back.

    Attributes:
        path: the run directory.
        entries: the log entries by update, each update once: the newest process start wins from its first entry on.
        problems: a sentence for each line that is torn or damaged; empty for a run that ended well.
        superseded: how many entries of earlier process starts the later ones replaced.
    """

    path: Path
    entries: list[dict[str, Any]]
    problems: list[str]
    superseded: int

    @property
    def series(self) -> Mapping[str, list[Point]]:
        """Return each logged key's points, in the order of the updates."""
        series: dict[str, list[Point]] = {}
        for entry in self.entries:
            at = {unit: entry[unit] for unit in UNITS}
            for key, value in entry.items():
                if key not in UNITS:
                    series.setdefault(key, []).append(Point(**at, value=value))
        return series

    @property
    def arrays(self) -> list[ArrayFile]:
        """Return the saved array files, by interval and update."""
        found = list(self._array_files())
        return sorted(found, key=lambda file: (file.interval, file.iteration.update or 0))

    def _array_files(self) -> Iterator[ArrayFile]:
        root = self.path / "update_outputs"
        for path in root.glob("**/*.safetensors"):
            try:
                iteration = TrainingIteration.from_string(path.stem)
            except ScheduleError:
                continue  # not ours: a file that the user put there, or a temporary one
            yield ArrayFile(path.parent.relative_to(root).as_posix(), iteration, path)


def read_run(path: str | Path) -> RunReader:
    """Read a run directory.

    Raises:
        RunFormatError: if it is none.
    """
    path = Path(path)
    metrics = path / "metrics"
    if not metrics.is_dir() and not (path / "config.yaml").is_file() and not (path / "update_outputs").is_dir():
        state = "does not exist"
        if path.exists():
            state = "has no config.yaml, metrics/ or update_outputs/" if path.is_dir() else "is a file"
        raise RunFormatError(f"{str(path)!r} {state}; give the directory that a Run wrote")
    entries: list[dict[str, Any]] = []
    problems: list[str] = []
    superseded = 0
    starts = sorted(
        (file for file in metrics.glob("*.jsonl") if file.stem.isdecimal()), key=lambda file: int(file.stem)
    )
    for file in starts:
        lines = read_lines(file)
        problems += lines.problems
        merged = _merged(lines.entries)
        if merged:
            kept = [entry for entry in entries if entry["update"] < merged[0]["update"]]
            superseded += len(entries) - len(kept)
            entries = kept + merged
    return RunReader(path, entries, problems, superseded)


def _merged(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries with those of one update made one."""
    merged: list[dict[str, Any]] = []
    for entry in entries:
        if merged and all(merged[-1][unit] == entry[unit] for unit in UNITS):
            merged[-1].update(entry)
        else:
            merged.append(dict(entry))
    return merged
