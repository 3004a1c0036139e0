"""Find the array files of a run directory, and tell which of them stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from noether_core.emit.arrays import ArrayHeader, read_arrays, read_headers
from noether_core.emit.columns import TableBuilder
from noether_core.emit.lineage import Lineage
from noether_core.errors import ScheduleError
from noether_core.regular_files import files_below
from noether_core.schedule import TrainingIteration

_PARTS = ("update_outputs", "superseded")


@dataclass(frozen=True)
class ArrayFile:
    """Point at the arrays saved at one interval's end.

    Attributes:
        interval: the interval's short string, after the callback's id and `/` where it has one.
        root: the run directory, below which no link is followed.
    """

    interval: str
    iteration: TrainingIteration
    path: Path
    root: Path | None = None

    def load(self, problems: list[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays by name.

        Args:
            problems: gets a sentence for each array that is damaged, and the others are returned; None: damage is raised.

        Raises:
            RunFormatError: for damage.
        """
        return read_arrays(self.path, problems, root=self.root)

    def headers(self) -> dict[str, ArrayHeader]:
        """Return the arrays' dtypes and shapes by name, without loading them."""
        return read_headers(self.path, self.root)


class Saver(NamedTuple):
    """Say that a start saved an array file: its place among the starts, its number, and whether the interval was not over."""

    start: int
    number: str
    is_provisional: bool


def lineage_of(builder: TableBuilder, savers: Mapping[str, Sequence[Saver]], lost: Sequence[Sequence[int]]) -> Lineage:
    """Return what of the starts stands, of which each wrote entries, also those that are lost, and array files."""
    updates = [[*builder.updates(start), *of_start] for start, of_start in enumerate(lost)]
    for name, of_name in savers.items():
        if (iteration := _iteration_of(name)) is not None:
            for saver in of_name:
                updates[saver.start].append(iteration.update or 0)
    return Lineage(builder.starts, updates)


def _iteration_of(name: str) -> TrainingIteration | None:
    try:
        iteration = TrainingIteration.from_string(Path(name).stem)
    except ScheduleError:  # not ours: a file that the user put there, or a temporary one
        return None
    return iteration if (iteration.update or 0) < 2**63 else None


def find_arrays(path: Path, problems: list[str]) -> list[Path]:
    """Return all array files of a run directory."""
    return [file for part in _PARTS for file in files_below(path, part, problems) if file.suffix == ".safetensors"]


def add_those_that_set_aside(
    path: Path, found: Sequence[Path], numbers: Sequence[int], savers: dict[str, list[Saver]]
) -> set[str]:
    """Add the starts whose own note is lost: each also set aside what it replaced, in `superseded/<n>/`.

    Returns:
        The names of files that a start set aside of which nothing else is left, so that nobody knows who saved which.
    """
    unknown = set()
    places = {str(number): at for at, number in enumerate(numbers)}
    for file in found:
        part, number, *names = file.relative_to(path).parts
        if part == _PARTS[1] and names[:1] == [_PARTS[0]]:
            name = "/".join(names)
            if number not in places:
                unknown.add(name)
                continue
            of_name = savers.setdefault(name, [])
            if not any(saver.number == number for saver in of_name):
                of_name.append(Saver(places[number], number, is_provisional=False))
                of_name.sort()
    return unknown


def array_files(
    path: Path,
    savers: Mapping[str, Sequence[Saver]],
    lineage: Lineage,
    found: Sequence[Path],
    unknown: Set[str],
    problems: list[str] | None,
) -> tuple[list[ArrayFile], list[ArrayFile]]:
    """Return the array files that stand and those that do not: the newest of a name stands whose start does.

    Of a file of which no start says that it saved it, any may have: it stands where what each of them wrote does.

    Args:
        path: the run directory.
        savers: of each file.
        lineage: says what stands.
        found: the files that are there.
        unknown: names of which nobody knows who saved which file.
        problems: gets a sentence for each file of which no start says that it saved it; None: they do not say that of any.
    """
    kept: list[ArrayFile] = []
    superseded: list[ArrayFile] = []
    names = {file.relative_to(path).as_posix() for file in found if file.is_relative_to(path / _PARTS[0])}
    there = frozenset(found)
    for name in sorted(names | savers.keys()):
        if (iteration := _iteration_of(name)) is None:
            continue
        interval = Path(name).parent.relative_to("update_outputs").as_posix()
        saved = list(savers.get(name, ()))[::-1]
        files = [path / name, *(path / "superseded" / saver.number / name for saver in saved)]
        is_found = False
        for saver, file in zip([*saved, None], files, strict=True):  # each set aside what the one before had saved
            if file in there:
                known = None if name in unknown else saver
                stands = _stands(file, known, iteration.update or 0, lineage, problems) and not is_found
                is_found |= stands
                (kept if stands else superseded).append(ArrayFile(interval, iteration, file, path))
    kept.sort(key=lambda file: (file.interval, file.iteration.update or 0))
    return kept, superseded


def _stands(file: Path, saver: Saver | None, update: int, lineage: Lineage, problems: list[str] | None) -> bool:
    if saver is not None:
        return lineage.stands(saver.start, update, is_provisional=saver.is_provisional)
    stands = lineage.stands_whoever_wrote(update)
    if problems is not None:
        taken = "as the run's" if stands else "as superseded"
        problems.append(f"{file}: no start says that it saved this file; it is taken {taken}")
    return stands
