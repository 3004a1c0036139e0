"""Write what a process start goes on from, and read it back: each leaves a record, `starts/<n>.json`, of its log's number.

What of the starts then stands, `noether_core.emit.lineage` says.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from noether_core.dependencies import installed_version
from noether_core.emit.files import write_whole
from noether_core.emit.jsonl import NUMBER, start_numbers
from noether_core.emit.record_file import decode_record, encode_record
from noether_core.errors import NoetherError, RunFormatError
from noether_core.regular_files import files_below, read_regular
from noether_core.schedule import UNITS, TrainingIteration

_PACKAGES = ("noether-callbacks", "numpy", "jax", "torch")
_MOST_BYTES = 2**22  # of a record
PROVISIONAL = ".provisional.jsonl"  # what follows a start's number in the name of the file of its provisional entries
NEWEST = ""  # the id that stands for the newest start there is
Ancestors = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Origin:
    """Say where a process start goes on from.

    Attributes:
        iteration: what it goes on after; None: it starts at the beginning.
        ancestors: the starts that it goes on from, the newest first: the id of each, or `NEWEST`, and up to which update it
            goes on from it. All of them, for those that wrote nothing left no record.
        since: the update since which it has every step of the intervals under way; -1: it has them all, for it began at the
            beginning, or carries the state of its ancestors, which did.
        about: what else its record says, such as the config's hash.
        id: its own.
    """

    iteration: TrainingIteration | None = None
    ancestors: Ancestors = ()
    since: int = -1
    about: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def update(self) -> int:
        """Return the update that it goes on after; 0: it starts at the beginning."""
        return 0 if self.iteration is None else self.iteration.update or 0

    def write(self, directory: Path, number: int) -> None:
        """Write the record of this start."""
        parent = self.ancestors[0][0] if self.ancestors else NEWEST
        record = {
            "id": self.id,
            "parent": parent or None,
            "iteration": None if self.iteration is None else {unit: getattr(self.iteration, unit) for unit in UNITS},
            "ancestors": self.ancestors,
            "since": self.since,
            "time": time.time(),
            "host": platform.node(),
            "python": platform.python_version(),
            "versions": versions(),
            **self.about,
        }
        write_whole(directory / "starts" / f"{number}.json", encode_record(record))

    def saved(self) -> str:
        """Return what a state that is saved now says of this start; see `origin_after`."""
        return json.dumps({"id": self.id, "since": self.since, "ancestors": self.ancestors}, separators=(",", ":"))

    def in_directory(self, directory: Path) -> Origin:
        """Return this with the start that is the newest in a run directory in the place of `NEWEST`."""
        if not any(name == NEWEST for name, _ in self.ancestors):
            return self
        numbers = start_numbers(directory / "metrics")
        newest = _id_of(directory, numbers[-1]) if numbers else NEWEST
        return replace(self, ancestors=tuple((name or newest, update) for name, update in self.ancestors))

    def parent_in(self, directory: Path) -> tuple[int, dict[str, Any]] | None:
        """Return the number and the record of the newest ancestor that has one in a run directory; None if none has."""
        wanted = {name: at for at, (name, _) in enumerate(self.ancestors)}
        found: list[tuple[int, int, dict[str, Any]]] = []
        for number in start_numbers(directory / "metrics") if wanted else ():
            with contextlib.suppress(RunFormatError, OSError):
                record = read_record(directory, number)
                if record is not None and record["start"].id in wanted:
                    found.append((wanted[record["start"].id], number, record))
        return min(found, key=lambda each: each[0])[1:] if found else None


def origin_at(iteration: TrainingIteration, about: Mapping[str, Any]) -> Origin:
    """Return the origin of a start that goes on after an iteration; as far as is known it carries no interval under way."""
    update = iteration.update or 0
    return Origin(iteration, ((NEWEST, update),), update, about) if update else Origin(about=about)


def origin_after(saved: str, iteration: TrainingIteration, about: Mapping[str, Any]) -> Origin:
    """Return the origin of a start that goes on with a state.

    Args:
        saved: what the state says of the start that saved it: `Origin.saved()`, an id, or nothing.
        iteration: where it was saved.
        about: see `Origin`.

    Raises:
        NoetherError: if it is none of these.
    """
    update = iteration.update or 0
    if not saved.startswith("{"):
        return Origin(iteration, ((saved, update),), about=about)
    try:
        found = json.loads(saved)
        ancestors = (str(found["id"]), update), *((str(name), int(until)) for name, until in found["ancestors"])
        return Origin(iteration, ancestors, int(found["since"]), about)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise NoetherError(
            f"the state's `start` is damaged ({error!r:.200}); load what state_dict() returned"
        ) from error


def versions() -> dict[str, str]:
    """Return which versions are installed of the packages that decide what a run computes."""
    return {name: found for name in _PACKAGES if (found := installed_version(name)) is not None}


class Start(NamedTuple):
    """Hold what reading needs of a start.

    Attributes:
        id: its id; empty where it left no record.
        ancestors: see `Origin`; none: it started at the beginning.
        since: see `Origin`; infinity where it is not known.
    """

    id: str
    ancestors: tuple[tuple[str, float], ...]
    since: float


def start_without_record(first: int | None) -> Start:
    """Return what is known of a start that left no record: it went on from what was before the update that it logged first."""
    return Start(NEWEST, ((NEWEST, math.inf if first is None else first - 1),), math.inf)


def read_record(directory: Path, number: int, problems: list[str] | None = None) -> dict[str, Any] | None:
    """Return the record of a start as it is, and as `start` what reading needs of it; None where it left none.

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
        return {**record, "start": _start(record)}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (RunFormatError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = (
            error
            if isinstance(error, RunFormatError)
            else f"{path}, byte 0: it is no record of a start ({error!r:.200})"
        )
        raise RunFormatError(f"{reason}; the log goes by its first entry") from error


def _start(record: Any) -> Start:
    found, iteration = record["id"], record["iteration"]
    if iteration is None:
        ancestors: Any = ()
    else:
        ancestors = record.get("ancestors", [[record["parent"] or NEWEST, iteration["update"]]])
    since = record.get("since", -1)
    is_typed = all(isinstance(name, str) and type(until) is int for name, until in ancestors)
    if not isinstance(found, str) or not is_typed or type(since) is not int:
        raise TypeError("a field is of the wrong type")
    return Start(found, tuple((name, until) for name, until in ancestors), since)


def recorded_numbers(directory: Path) -> list[int]:
    """Return the numbers of the starts that left a record in a run directory."""
    names = [file.stem for file in files_below(directory, "starts") if file.suffix == ".json"]
    return sorted(int(name) for name in names if NUMBER.fullmatch(name))


def read_start(directory: Path, number: int) -> Start | None:
    """Return what the record of a start says; None where it left none. Raises what `read_record` does."""
    record = read_record(directory, number)
    return None if record is None else record["start"]


def _id_of(directory: Path, number: int) -> str:
    try:
        start = read_start(directory, number)
    except (RunFormatError, OSError):
        start = None
    return NEWEST if start is None else start.id
