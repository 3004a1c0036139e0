"""Say which process start wrote what, and which of it stands: the newest start and those that it goes on from.

Each start has a record, `starts/<n>.json`, of the number that its log has. Reading follows the newest line of descent: from a
start that went on from update M, what its ancestors logged or saved after M is superseded, and so is all of a start that is no
ancestor.
"""

from __future__ import annotations

import math
import platform
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from noether_core.emit.files import write_whole
from noether_core.emit.record_file import decode_record, encode_record
from noether_core.errors import RunFormatError
from noether_core.regular_files import read_regular
from noether_core.schedule import UNITS, TrainingIteration

_PACKAGES = ("noether-callbacks", "numpy", "jax", "torch")
_MOST_BYTES = 2**20  # of a record


@dataclass(frozen=True)
class Origin:
    """Say where a process start goes on from.

    Attributes:
        iteration: what it goes on after; None: it starts at the beginning.
        parent: the id of the start whose state it carries; None: the newest one there is.
        about: what else its record says, such as the config's hash.
        id: its own.
    """

    iteration: TrainingIteration | None = None
    parent: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def write(self, directory: Path, number: int) -> None:
        """Write the record of this start."""
        record = {
            "id": self.id,
            "parent": self.parent,
            "iteration": None if self.iteration is None else {unit: getattr(self.iteration, unit) for unit in UNITS},
            "time": time.time(),
            "host": platform.node(),
            "python": platform.python_version(),
            "versions": versions(),
            **self.about,
        }
        write_whole(directory / "starts" / f"{number}.json", encode_record(record))


def versions() -> dict[str, str]:
    """Return which versions are installed of the packages that decide what a run computes."""
    return {name: found for name in _PACKAGES if (found := _version(name)) is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Start(NamedTuple):
    """Hold what reading needs of a start's record.

    Attributes:
        id: its id; empty where it left no record.
        parent: the id of the start whose state it carried.
        update: the update that it went on after; None: it started at the beginning; infinity: it is not known to stand for
            anything.
    """

    id: str
    parent: str | None
    update: float | None


def read_start(directory: Path, number: int, problems: list[str] | None = None) -> Start | None:
    """Return the record of a start; None where it left none.

    Args:
        directory: the run directory.
        number: the start's.
        problems: gets a sentence for a record that is damaged, and the copy in it is returned; None: damage is raised.

    Raises:
        RunFormatError: for one that is damaged.
        OSError: if it cannot be read.
    """
    path = directory / "starts" / f"{number}.json"
    try:
        record = decode_record(read_regular(path, _MOST_BYTES, directory), path, problems)
        found, parent, iteration = record["id"], record["parent"], record["iteration"]
        update = None if iteration is None else iteration["update"]
        if not isinstance(found, str) or not isinstance(parent, str | None) or type(update) not in (int, type(None)):
            raise TypeError("a field is of the wrong type")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (RunFormatError, TypeError, KeyError) as error:
        reason = (
            error
            if isinstance(error, RunFormatError)
            else f"{path}, byte 0: it is no record of a start ({error!r:.200})"
        )
        raise RunFormatError(f"{reason}; the log goes by its first entry") from error
    return Start(found, parent, update)


def standing(starts: Sequence[Start]) -> list[float]:
    """Return for each start, oldest first, the last update up to which what it wrote stands; -1 if nothing does.

    >>> standing([Start("a", None, None), Start("b", "a", 12), Start("c", "a", 18)])
    [18, -1, inf]
    """
    stands: list[float] = [-1] * len(starts)
    at, limit = len(starts) - 1, math.inf
    while at >= 0:
        stands[at] = limit
        _, parent, update = starts[at]
        if update is None:
            break
        limit = min(limit, update)
        at = next((older for older in range(at - 1, -1, -1) if parent and starts[older].id == parent), at - 1)
    return stands
