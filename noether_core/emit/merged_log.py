"""Add to the log what was not logged at its time, in `metrics/<n>.merged.jsonl` beside what start <n> wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.emit.arrays import read_arrays, write_savable
from noether_core.emit.columns import joined_entry
from noether_core.emit.files import write_whole
from noether_core.emit.jsonl import encode_entry, encode_line, start_numbers
from noether_core.emit.lineage import standing
from noether_core.emit.lines import entry_problem, lines_there, merged_problem
from noether_core.emit.starts import PROVISIONAL, Origin, Start, read_start, start_without_record
from noether_core.errors import NoetherError, RunFormatError
from noether_core.regular_files import require_no_links
from noether_core.schedule import UNITS, TrainingIteration

SUFFIX = ".merged.jsonl"
_BEFORE_ALL = 0  # the number of a start that stands for what no start has logged

Values = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass
class Merged:
    """Hold what was merged into the log of a start.

    Attributes:
        entries: by update, those of whole intervals, and those that are provisional.
        arrays: the names of array files, likewise.
    """

    entries: tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]] = field(default_factory=lambda: ({}, {}))
    arrays: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))


def read_merged(file: Path, problems: list[str]) -> Merged:
    """Return what such a file has; nothing where it is missing."""
    merged = Merged()
    for line in lines_there(file, problems, merged_problem):
        if "arrays" in line:
            merged.arrays[bool(line.get("provisional"))].append(str(line["arrays"]))
        else:
            is_provisional = "update" not in line
            entry = line["provisional"] if is_provisional else line
            of_update = merged.entries[is_provisional].get(entry["update"], {})
            merged.entries[is_provisional][entry["update"]] = {**of_update, **entry}  # a long one has several lines
    return merged


def with_merged(entries: Iterable[dict[str, Any]], merged: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the entries of a start with those merged later, each before what was logged for its update."""
    waiting = list(merged)[::-1]
    for entry in entries:
        while waiting and waiting[-1]["update"] <= entry["update"]:
            yield waiting.pop()
        yield entry
    yield from waiting[::-1]


class MergedLog:
    """Add to the log of a run directory.

    Args:
        path: the run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics = path / "metrics"

    def add(
        self,
        iteration: TrainingIteration,
        scalars: Values,
        arrays: Mapping[str, Arrays],
        *,
        is_whole: bool,
        is_provisional: bool,
    ) -> bool:
        """Add an entry and array files to what the start wrote that was at this iteration; tell whether they were not there.

        Args:
            iteration: where they belong.
            scalars: the entry's values.
            arrays: by their file's path in the run directory.
            is_whole: whether they are of all processes; if not, what is there already is better.
            is_provisional: whether they are of intervals that were not over.

        Raises:
            NoetherError: if other values are there already; nothing is then added.
        """
        update = iteration.update or 0
        number = self._start_of(update)
        merged, own = self._merged(number), self._logged(number, update)
        entries, names = merged.entries[is_provisional], merged.arrays[is_provisional]
        logged = {key for key in scalars if key in own}
        saved = {name for name in arrays if name not in names and (self.path / name).is_file()}
        if is_whole or logged < set(scalars) or saved < set(arrays):
            _refuse_other_values(update, {key: scalars[key] for key in logged}, own)
            _refuse_other_arrays({self.path / name: arrays[name] for name in saved})
        if new := {key: value for key, value in scalars.items() if key not in logged}:
            entries[update] = {**_place(iteration, own), **entries.get(update, {}), **new}
        written = [name for name in arrays if name not in saved]
        errors = self._save({name: arrays[name] for name in written})
        names += [name for name in written if name not in names]
        if new or written:
            self._write(number, merged)
        if errors:
            raise errors[0]
        return bool(new or written)

    def _save(self, arrays: Mapping[str, Arrays]) -> list[NoetherError]:
        """Write array files; return what is wrong with them."""
        for name in arrays:
            require_no_links(self.path, self.path / name)
        return [each for name in arrays if (each := write_savable(self.path / name, arrays[name])) is not None]

    def has(self, iteration: TrainingIteration, scalars: Mapping[str, Any], arrays: Mapping[str, Arrays]) -> bool:
        """Tell whether all these values and files are there, logged or merged, whatever they are."""
        update = iteration.update or 0
        number = self._start_of(update)
        merged = self._merged(number)
        logged = {
            *self._logged(number, update),
            *(key for entries in merged.entries for key in entries.get(update, ())),
        }
        names = {name for each in merged.arrays for name in each}
        return logged >= set(scalars) and all(name in names or (self.path / name).is_file() for name in arrays)

    def _logged(self, number: int, update: int) -> dict[str, Any]:
        return joined_entry(entry for entry in self._entries(number) if entry["update"] == update)

    def _merged(self, number: int) -> Merged:
        file = self._metrics / f"{number}{SUFFIX}"
        problems: list[str] = []
        merged = read_merged(file, problems)
        if problems:
            raise RunFormatError(f"{problems[0]}; restore {file} from a copy, or take it away to merge anew")
        return merged

    def _write(self, number: int, merged: Merged) -> None:
        if number == _BEFORE_ALL and not (self.path / "starts" / f"{number}.json").exists():
            Origin().write(self.path, number)
        lines: list[bytes] = []
        for is_provisional, (entries, names) in enumerate(zip(merged.entries, merged.arrays, strict=True)):
            within = "provisional" if is_provisional else None
            lines += [encode_entry(entries[update], within) for update in sorted(entries)]
            lines += [encode_line({"arrays": name, **({within: True} if within else {})}) for name in names]
        write_whole(self._metrics / f"{number}{SUFFIX}", b"".join(lines))

    def _start_of(self, update: int) -> int:
        """Return the number of the start whose log of an update stands."""
        numbers = start_numbers(self._metrics)
        starts = [self._start(number) for number in numbers]
        for number, start, until in zip(reversed(numbers), reversed(starts), reversed(standing(starts)), strict=True):
            if until >= update and (not start.ancestors or start.ancestors[0][1] < update):
                return number
        return _BEFORE_ALL

    def _start(self, number: int) -> Start:
        start = read_start(self.path, number)
        if start is None:
            first = next(self._entries(number), None)
            start = start_without_record(None if first is None else first["update"])
        return start

    def _entries(self, number: int) -> Iterator[dict[str, Any]]:
        for suffix in (".jsonl", PROVISIONAL):
            yield from lines_there(self._metrics / f"{number}{suffix}", [], entry_problem)


def _place(iteration: TrainingIteration, own: Values) -> dict[str, Any]:
    """Return what an entry begins with, as it was logged if it was."""
    return {unit: own.get(unit, getattr(iteration, unit)) for unit in UNITS}


def _refuse_other_values(update: int, values: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if encode_line({key: value}) != encode_line({key: own[key]}):
            raise NoetherError(
                f"update {update} has {key!r} logged as {own[key]!r}, and what the processes saved gives {value!r}: they are of"
                " another start of the run; take their files away"
            )


def _refuse_other_arrays(files: Mapping[Path, Arrays]) -> None:
    for path, arrays in files.items():
        if _bits(read_arrays(path)) != _bits(arrays):
            raise NoetherError(
                f"{path} holds other arrays than what the processes saved gives: they are of another start of the run; take"
                " their files away"
            )


def _bits(arrays: Arrays) -> dict[str, Any]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
