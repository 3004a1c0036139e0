"""Add to the log what was not logged at its time, in `metrics/<n>.merged.jsonl` beside what start <n> wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.emit.arrays import read_arrays, write_savable
from noether_core.emit.columns import joined_entry
from noether_core.emit.files import write_whole
from noether_core.emit.jsonl import encode_line, start_numbers
from noether_core.emit.lines import entry_problem, lines_there, merged_problem
from noether_core.emit.starts import Origin, Start, read_start, standing
from noether_core.errors import NoetherError, RunFormatError
from noether_core.regular_files import require_no_links
from noether_core.schedule import UNITS, TrainingIteration

SUFFIX = ".merged.jsonl"
_BEFORE_ALL = 0  # the number of a start that stands for what no start has logged

Arrays = Mapping[str, np.ndarray[Any, Any]]


def read_merged(file: Path, problems: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the entries of such a file, by update, and the names of the array files."""
    lines = list(lines_there(file, problems, merged_problem))
    entries = [line for line in lines if "arrays" not in line]
    return entries, [str(line["arrays"]) for line in lines if "arrays" in line]


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
        self, iteration: TrainingIteration, scalars: Mapping[str, Any], arrays: Mapping[str, Arrays], *, is_whole: bool
    ) -> bool:
        """Add an entry and array files to what the start wrote that was at this iteration; tell whether they were not there.

        Args:
            iteration: where they belong.
            scalars: the entry's values.
            arrays: by their file's path in the run directory.
            is_whole: whether they are of all processes; if not, what is there already is better.

        Raises:
            NoetherError: if other values are there already; nothing is then added.
        """
        update = iteration.update or 0
        number = self._start_of(update)
        own = joined_entry(entry for entry in self._entries(number) if entry["update"] == update)
        entries, names = self._merged(number)
        logged = {key for key in scalars if key in own}
        saved = {name for name in arrays if name not in names and (self.path / name).is_file()}
        if is_whole or logged < set(scalars) or saved < set(arrays):
            _refuse_other_values(update, {key: scalars[key] for key in logged}, own)
            _refuse_other_arrays({self.path / name: arrays[name] for name in saved})
        new = {key: value for key, value in scalars.items() if key not in logged}
        if new:
            units: dict[str, Any] = {unit: own.get(unit, getattr(iteration, unit)) for unit in UNITS}
            entries[update] = {**units, **entries.get(update, {}), **new}
        written = [name for name in arrays if name not in saved]
        for name in written:
            require_no_links(self.path, self.path / name)
        errors = [write_savable(self.path / name, arrays[name]) for name in written]
        if new or written:
            self._write(number, entries, list(dict.fromkeys([*names, *written])))
        for error in errors:
            if error is not None:
                raise error
        return bool(new or written)

    def has(self, iteration: TrainingIteration, scalars: Mapping[str, Any], arrays: Mapping[str, Arrays]) -> bool:
        """Tell whether all these values and files are there, logged or merged, whatever they are."""
        update = iteration.update or 0
        number = self._start_of(update)
        entries, names = self._merged(number)
        logged = set(entries.get(update, {})).union(
            *(each for each in self._entries(number) if each["update"] == update)
        )
        return logged >= set(scalars) and all(name in names or (self.path / name).is_file() for name in arrays)

    def _merged(self, number: int) -> tuple[dict[int, dict[str, Any]], list[str]]:
        file = self._metrics / f"{number}{SUFFIX}"
        problems: list[str] = []
        entries, names = read_merged(file, problems)
        if problems:
            raise RunFormatError(f"{problems[0]}; restore {file} from a copy, or take it away to merge anew")
        return {entry["update"]: entry for entry in entries}, names

    def _write(self, number: int, entries: Mapping[int, Mapping[str, Any]], names: Sequence[str]) -> None:
        if number == _BEFORE_ALL and not (self.path / "starts" / f"{number}.json").exists():
            Origin().write(self.path, number)
        lines = [*(entries[update] for update in sorted(entries)), *({"arrays": name} for name in names)]
        write_whole(self._metrics / f"{number}{SUFFIX}", b"".join(map(encode_line, lines)))

    def _start_of(self, update: int) -> int:
        """Return the number of the start whose log of an update stands."""
        numbers = start_numbers(self._metrics)
        starts = [self._start(number) for number in numbers]
        for number, start, until in zip(reversed(numbers), reversed(starts), reversed(standing(starts)), strict=True):
            if until >= update and (start.update is None or start.update < update):
                return number
        return _BEFORE_ALL

    def _start(self, number: int) -> Start:
        start = read_start(self.path, number)
        if start is None:
            first = next(iter(self._entries(number)), None)
            start = Start("", None, math.inf if first is None else first["update"] - 1)
        return start

    def _entries(self, number: int) -> Iterator[dict[str, Any]]:
        return lines_there(self._metrics / f"{number}.jsonl", [], entry_problem)


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
