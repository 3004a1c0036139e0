"""Find the array files of a run directory, and tell which of them stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
) -> None:
    """Add the starts whose own note is lost: each also set aside what it replaced, in `superseded/<n>/`."""
    places = {str(number): at for at, number in enumerate(numbers)}
    for file in found:
        part, number, *names = file.relative_to(path).parts
        if part == _PARTS[1] and number in places and names[:1] == [_PARTS[0]]:
            of_name = savers.setdefault("/".join(names), [])
            if not any(saver.number == number for saver in of_name):
                of_name.append(Saver(places[number], number, is_provisional=False))
                of_name.sort()


def array_files(
    path: Path,
    savers: Mapping[str, Sequence[Saver]],
    lineage: Lineage,
    found: Sequence[Path],
    doubtful: Sequence[int],
) -> tuple[list[ArrayFile], list[ArrayFile]]:
    """Return the array files that stand and those that do not: the newest of a name stands whose start does."""
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
                by = [Saver(start, "", is_provisional=False) for start in doubtful] if saver is None else [saver]
                stands = not is_found and all(
                    lineage.stands(each.start, iteration.update or 0, is_provisional=each.is_provisional) for each in by
                )
                is_found |= stands
                (kept if stands else superseded).append(ArrayFile(interval, iteration, file, path))
    kept.sort(key=lambda file: (file.interval, file.iteration.update or 0))
    return kept, superseded
