"""Read a run directory back: columns per key, arrays on demand. It may be read while the run still writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.emit.arrays import ArrayHeader, read_arrays, read_headers
from noether_core.emit.columns import Series, Table, TableBuilder
from noether_core.emit.jsonl import iter_lines, numbered_files
from noether_core.errors import MissingDependencyError, RunFormatError, ScheduleError
from noether_core.schedule import UNITS, TrainingIteration


@dataclass(frozen=True)
class ArrayFile:
    """Point at the arrays saved at one interval's end.

    Attributes:
        interval: the interval's short string, after the callback's id and `/` where it has one.
    """

    interval: str
    iteration: TrainingIteration
    path: Path

    def load(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays by name."""
        return read_arrays(self.path)

    def headers(self) -> dict[str, ArrayHeader]:
        """Return the arrays' dtypes and shapes by name, without loading them."""
        return read_headers(self.path)


@dataclass(frozen=True, eq=False)
class RunReader:
    """Hold what a run directory gives back.

    Attributes:
        table: the log entries as columns, each update once: the newest process start wins from its first entry on.
        problems: a sentence for each line that is torn or damaged; empty for a run that ended well.
        superseded: how many entries of earlier process starts the later ones replaced.
    """

    path: Path
    table: Table
    problems: list[str]
    superseded: int

    @property
    def series(self) -> Mapping[str, Series]:
        """Return what was logged under each key, as arrays; the keys in the order first logged."""
        return self.table.series

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Return the log entries by update as dicts, made at the first access: for large runs prefer `iter_entries`."""
        return list(self.iter_entries())

    def iter_entries(self) -> Iterator[dict[str, Any]]:
        """Yield the log entries by update as dicts, one at a time."""
        return self.table.iter_entries()

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: a row an entry; columns `epoch`, `update`, `sample`, then the keys as first logged.

        What an entry did not log is missing: NaN among floats, and `<NA>` in ints and bools, which are then pandas' nullable
        ones, so that no number is rounded.

        Raises:
            MissingDependencyError: if pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingDependencyError("to_pandas needs pandas: pip install 'noether-callbacks[pandas]'") from error
        columns: dict[str, Any] = {unit: self.table.iterations[:, at] for at, unit in enumerate(UNITS)}
        entries = pd.RangeIndex(len(self.table.iterations))
        for key, series in self.series.items():
            rows, value = self.table.rows[key], series.value
            nullable = {"i": "Int64", "b": "boolean"}.get(value.dtype.kind) if len(rows) < len(entries) else None
            columns[key] = pd.Series(value, index=rows, dtype=nullable).reindex(entries)
        return pd.DataFrame(columns)

    @property
    def arrays(self) -> list[ArrayFile]:
        """Return the saved array files, by interval and update."""
        root = self.path / "update_outputs"
        found = []
        for path in root.glob("**/*.safetensors"):
            with contextlib.suppress(ScheduleError):  # not ours: a file that the user put there, or a temporary one
                iteration = TrainingIteration.from_string(path.stem)
                found.append(ArrayFile(path.parent.relative_to(root).as_posix(), iteration, path))
        return sorted(found, key=lambda file: (file.interval, file.iteration.update or 0))


def read_run(path: str | Path) -> RunReader:
    """Read a run directory; raises `RunFormatError` if it is none."""
    path = Path(path)
    metrics = path / "metrics"
    if not metrics.is_dir() and not (path / "config.yaml").is_file() and not (path / "update_outputs").is_dir():
        state = "is a file" if path.exists() else "does not exist"
        if path.is_dir():
            state = "has no config.yaml, metrics/ or update_outputs/"
        raise RunFormatError(f"{str(path)!r} {state}; give the directory that a Run wrote")
    problems: list[str] = []
    builder = TableBuilder()
    for file in numbered_files(metrics):
        try:
            builder.add_start(iter_lines(file, problems))
        except OSError as error:
            problems.append(f"{file}: {error}")
    table, superseded = builder.build()
    return RunReader(path, table, problems, superseded)
