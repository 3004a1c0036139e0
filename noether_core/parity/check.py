"""Verify a run directory: that nothing in it is damaged, what of it is missing, who wrote it, and what of it is superseded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noether_core.config.yaml_file import parse_yaml, read_text
from noether_core.emit.arrays import check_arrays
from noether_core.emit.capsule import DIRECTORY, read_capsule
from noether_core.emit.jsonl import start_numbers
from noether_core.emit.missing_arrays import missing_arrays
from noether_core.emit.problems import Problems
from noether_core.emit.reader import RunReader, RunStart, read_run
from noether_core.emit.starts import recorded_numbers
from noether_core.emit.unmerged import find_unmerged, read_unmerged
from noether_core.errors import ConfigFileError, RunFormatError
from noether_core.regular_files import files_below
from noether_core.text import for_json, inert


@dataclass
class CheckReport:
    """Say what a run directory holds.

    Attributes:
        path: the run directory.
        problems: a sentence for all that is damaged or missing; at most 1,000.
        notes: sentences on what is as it should be, but good to know.
        starts: a sentence for each process start, the oldest first.
        entries: how many log entries stand.
        superseded: how many do not, since a later start replaced them.
        arrays: how many saved array files stand.
        superseded_arrays: those that do not, by their paths in the run directory; at most 1,000.
    """

    path: str
    problems: list[str] = field(default_factory=Problems)
    notes: list[str] = field(default_factory=Problems)
    starts: list[str] = field(default_factory=Problems)
    entries: int = 0
    superseded: int = 0
    arrays: int = 0
    superseded_arrays: list[str] = field(default_factory=Problems)

    @property
    def is_clean(self) -> bool:
        """Tell whether nothing is damaged or missing."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {"is_clean": self.is_clean, **for_json(dataclasses.asdict(self))}

    def lines(self) -> Iterator[str]:
        """Yield what `noether-parity check` prints."""
        yield f"{self.path}: {self.entries} entries and {self.arrays} array files stand"
        yield from self.starts
        if self.superseded or self.superseded_arrays:
            yield (
                f"superseded by later starts: {self.superseded} entries and {len(self.superseded_arrays)} array files"
                f"{''.join(f'{chr(10)}  {name}' for name in self.superseded_arrays)}"
            )
        yield from map(inert, self.notes)
        yield from (f"✗ {inert(problem)}" for problem in self.problems)
        yield "nothing is damaged or missing" if self.is_clean else f"{len(self.problems)} problems"


def check_run(path: str | Path) -> CheckReport:
    """Verify a run directory; little more than the log's columns is in memory at a time.

    Raises:
        RunFormatError: if it is none.
    """
    path, report = Path(path), CheckReport(str(path))
    try:
        run = read_run(path)
    except RunFormatError as error:
        if not path.is_dir():
            raise
        report.problems.append(str(error))
        return report
    report.problems.extend(run.problems)
    report.entries, report.superseded = len(run.table.iterations), run.superseded
    report.arrays = len(run.arrays)
    report.superseded_arrays.extend(file.path.relative_to(path).as_posix() for file in run.superseded_arrays)
    _check_config(path, report)
    _check_starts(path, report)
    report.starts.extend(map(_words, run.starts))
    _check_arrays(run, report)
    _check_missing_arrays(path, report)
    _check_unmerged(path, report)
    _check_capsules(path, report)
    return report


def _check_config(path: Path, report: CheckReport) -> None:
    file = path / "config.yaml"
    if not file.exists():
        report.notes.append("there is no config.yaml")
        return
    try:
        if file.is_symlink():
            raise ConfigFileError(f"{file} is a symbolic link")
        parse_yaml(read_text(file), str(file))
    except ConfigFileError as error:
        report.problems.append(str(error))


def _check_starts(path: Path, report: CheckReport) -> None:
    """Say which starts are gone, and what was left behind."""
    for part in ("metrics", "starts"):
        for file in files_below(path, part, report.problems):
            if file.name.endswith(".tmp"):
                report.notes.append(f"{file} was left behind by a process that was killed")
    numbers = start_numbers(path / "metrics")
    present = {*recorded_numbers(path), *numbers}
    gone = [number for number in range(1, min(max(present, default=0), 10**6)) if number not in present]
    report.problems.extend(f"all files of start {number} are missing" for number in gone)


def _words(start: RunStart) -> str:
    """Say where a start comes from, and what of it stands."""
    if not start.record:  # what is damaged, the reader has said
        return f"start {start.number} left no record that can be read"
    begin, parent = "began anew", start.record.get("parent")
    if start.after >= 0:
        begin = f"went on after update {start.after}{f' of {parent!r:.40}' if parent else ''}"
    stands = "all of it stands" if start.until == math.inf else f"what it has up to update {start.until} stands"
    return (
        f"start {start.number}, {start.record.get('id')!r:.40}, {begin} on {start.record.get('host')!r:.80}:"
        f" {'nothing of it stands' if start.until <= start.after else stands}"
    )


def _check_arrays(run: RunReader, report: CheckReport) -> None:
    unchecked = 0
    for file in (*run.arrays, *run.superseded_arrays):
        try:
            problems, has_checksums = check_arrays(file.path, run.path)
        except (OSError, RunFormatError) as error:
            report.problems.append(str(error))
        else:
            report.problems.extend(problems)
            unchecked += not has_checksums
    if unchecked:
        report.notes.append(f"{unchecked} array files have no checksums: an earlier version wrote them")


def _check_missing_arrays(path: Path, report: CheckReport) -> None:
    """Say which array files starts say that they saved, and are not there."""
    missing = missing_arrays(path)
    if missing.being_written:
        report.notes.append(f"{path / missing.being_written} is being written")
    report.problems.extend(
        f"{path / name} is missing: start {number} says that it saved it" for name, number in missing.saved.items()
    )


def _check_unmerged(path: Path, report: CheckReport) -> None:
    waiting = 0
    for _ in files_below(path, "unmerged", report.problems):
        pass
    for file in find_unmerged(path):
        try:
            waiting += not read_unmerged(file).is_merged
        except RunFormatError as error:
            report.problems.append(str(error))
    if waiting:
        report.notes.append(
            f"{waiting} files have what processes had of intervals that are not in the log: noether-parity merge logs them"
        )


def _check_capsules(path: Path, report: CheckReport) -> None:
    for file in files_below(path, DIRECTORY, report.problems):
        if file.suffix != ".capsule":
            continue
        try:
            capsule = read_capsule(file, path)
        except (OSError, RunFormatError) as error:
            report.problems.append(str(error))
            continue
        report.problems.extend(capsule.problems)
        report.notes.append(f"{file} has what a process had when it failed: noether-parity show prints it")
