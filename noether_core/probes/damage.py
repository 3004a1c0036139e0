"""Say which files of probes are damaged or gone, and what of which updates is missing because of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from noether_core.emit.missing_arrays import missing_arrays
from noether_core.errors import ScheduleError
from noether_core.probes.block import ARRAYS, DIRECTORY, STATISTICS
from noether_core.schedule import TrainingIteration


@dataclass(frozen=True)
class Damage:
    """Hold what is wrong with a file of probes, and what is missing because of it.

    Attributes:
        problem: a sentence with the file's path, and where in it, as far as that is known.
        what: `arrays`, `statistics`, or a key.
        first: the first update of which that is missing.
        last: the last one; None: it may be any number of updates from the first on.

    >>> str(Damage("probes/arrays/E0_U3_S3.safetensors is missing", "arrays", 3, 3))
    'probes/arrays/E0_U3_S3.safetensors is missing (the arrays of update 3)'
    >>> Damage("it is torn", "statistics", 1, 4).words, Damage("it is torn", "statistics", 5).words
    ('the statistics of updates 1 to 4', 'the statistics from update 5 on')
    """

    problem: str
    what: str
    first: int
    last: int | None = None

    @property
    def words(self) -> str:
        """What is missing because of it."""
        if self.last is None:
            return f"the {self.what} from update {self.first} on"
        one = self.first == self.last
        return f"the {self.what} of update{'' if one else 's'} {self.first}{'' if one else f' to {self.last}'}"

    def __str__(self) -> str:
        """Return the problem, and what is missing."""
        return f"{self.problem} ({self.words})"


def kind_of(interval: str) -> str:
    """Return what the files of an interval hold, `arrays` or `statistics` of probes; empty for any other.

    >>> kind_of("probes/statistics"), kind_of("mine/probes/arrays/2"), kind_of("mine/U5")
    ('statistics', 'arrays', '')
    """
    parts = interval.split("/")
    pairs = ("/".join(parts[-2:]), "/".join(parts[-3:-1]))
    return next((kind for kind in (STATISTICS, ARRAYS) if f"{DIRECTORY}/{kind}" in pairs), "")


def damage_of(kind: str, update: int, problem: str, statistics: Iterable[int]) -> Damage:
    """Return the damage of a file that is named after an update.

    Args:
        kind: `arrays` or `statistics`.
        update: its first one.
        problem: what is wrong.
        statistics: the first updates of all files of statistics: one ends before the next.
    """
    if kind == ARRAYS:
        return Damage(problem, kind, update, update)
    following = min((each for each in statistics if each > update), default=None)
    return Damage(problem, kind, update, None if following is None else following - 1)


def missing_files(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield of each file of probes that is gone its kind, its first update, and a sentence."""
    missing = missing_arrays(path)
    said: tuple[tuple[Mapping[str, int], str], ...] = (
        (missing.saved, "is missing: start {number} says that it saved it; restore it from a copy"),
        (missing.not_taken, "is missing: the disk did not take it from start {number}; run it again"),
    )
    for names, words in said:
        for name, number in names.items():
            kind = kind_of(Path(name).parent.relative_to("update_outputs").as_posix())
            try:
                update = TrainingIteration.from_string(Path(name).stem).update or 0
            except ScheduleError:
                continue
            if kind:
                yield kind, update, f"{path / name} {words.format(number=number)}"
