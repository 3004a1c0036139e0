"""Find the array files that a run's starts say that they saved, or that the disk did not take, and that are not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from noether_core.emit.jsonl import start_numbers
from noether_core.emit.lines import beside_problem, lines_there
from noether_core.emit.problems import Problems
from noether_core.emit.writer_lock import is_written_now
from noether_core.regular_files import files_below


class MissingArrays(NamedTuple):
    """Hold names of array files, relative to the run directory, and the number of the start that says it.

    Attributes:
        saved: those that a start says that it saved.
        not_taken: those that the disk did not take, as far as a start names them.
        being_written: the one that a process may be writing just now; empty if there is none. It is none of the others.
    """

    saved: dict[str, int]
    not_taken: dict[str, int]
    being_written: str = ""


def missing_arrays(path: Path) -> MissingArrays:
    """Return which array files of a run are not there; what replaces one has its name."""
    there = _names(path)
    found, being_written = MissingArrays({}, {}), ""
    newest = ""  # which a run under way may be about to write
    for number in start_numbers(path / "metrics"):
        for suffix in (".time.jsonl", ".merged.jsonl"):
            file = path / "metrics" / f"{number}{suffix}"
            for line in lines_there(file, Problems(), beside_problem):
                if (name := line.get("arrays")) is not None:
                    newest = str(name) if suffix == ".time.jsonl" else newest
                    found.saved.setdefault(str(name), number)
                for name in _not_taken(line):
                    found.not_taken.setdefault(name, number)
    if newest and newest not in there and is_written_now(path):
        being_written = newest
    if not there.issuperset(found.saved) or not there.issuperset(found.not_taken):
        there |= _names(path)  # once more, for the run may have gone on
    saved, not_taken = (
        {name: number for name, number in each.items() if name not in there and name != being_written}
        for each in (found.saved, found.not_taken)
    )
    return MissingArrays(saved, {name: at for name, at in not_taken.items() if name not in saved}, being_written)


def _not_taken(line: Mapping[str, Any]) -> Iterator[str]:
    missing = line.get("missing")
    names = missing.get("names") if isinstance(missing, dict) else None
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and beside_problem({"arrays": name}) is None:
            yield name


def _names(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in files_below(path, "update_outputs")}
