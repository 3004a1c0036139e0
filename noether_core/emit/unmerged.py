"""Keep what each process of a training has of an interval on disk until all of them have pooled it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noether_core.emit.state_file import read_state, write_state
from noether_core.errors import RunFormatError, ScheduleError
from noether_core.schedule import UNITS, TrainingIteration

MERGED = "merged"  # the directory, beside an interval's files, of those that are in the log
_ATTEMPTS = 100


@dataclass(frozen=True)
class Unmerged:
    """Hold what a process had of an interval.

    Attributes:
        iteration: where it ended.
        index: the process's number.
        count: how many processes there were.
        callbacks: what `reduce.state.pack` returned, by the place of a callback among those that track.
        path: the file.
    """

    iteration: TrainingIteration
    index: int
    count: int
    callbacks: Mapping[int, Mapping[str, Any]]
    path: Path


def save_unmerged(
    path: Path, iteration: TrainingIteration, index: int, count: int, parts: Mapping[int, Mapping[str, Any]]
) -> None:
    """Save what a process has of an interval, beside what it had before of one that ended there and is not discarded.

    It does not wait for the disk: the file outlives this process, but not the machine.

    Args:
        path: the run directory.
        iteration: where the interval ends.
        index: this process's number.
        count: how many processes there are.
        parts: what `reduce.state.pack` returned, by the place of a callback among those that track.
    """
    file = _file(path, iteration, index, count)
    earlier = read_unmerged(file).callbacks if file.exists() else {}
    _write(file, Unmerged(iteration, index, count, {**earlier, **parts}, file))


def discard_unmerged(
    path: Path, iteration: TrainingIteration, index: int, count: int, numbers: Iterable[int] | None = None
) -> None:
    """Forget what a process saved, which is pooled; what is not there is forgotten already.

    Args:
        path: the run directory.
        iteration: where the interval ends.
        index: this process's number.
        count: how many processes there are.
        numbers: the callbacks to forget; None: all.
    """
    file = _file(path, iteration, index, count)
    if numbers is not None and file.exists():
        saved = read_unmerged(file)
        rest = {number: part for number, part in saved.callbacks.items() if number not in set(numbers)}
        if rest:
            _write(file, replace(saved, callbacks=rest))
            return
    file.unlink(missing_ok=True)
    for directory in (file.parent, file.parent.parent):
        with contextlib.suppress(OSError):  # the others' files are there
            directory.rmdir()


def read_unmerged(file: Path) -> Unmerged:
    """Read what `save_unmerged` wrote; raises `RunFormatError` if it is damaged or something else."""
    state = read_state(file)
    try:
        iteration = TrainingIteration(**{unit: int(state["iteration"][unit]) for unit in UNITS})
        index, count = int(state["index"]), int(state["count"])
        callbacks = {int(number): dict(part) for number, part in state["callbacks"].items()}
        if not 0 <= index < count:
            raise ValueError(f"process {index} of {count}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFormatError(
            f"{file} is not what a process had of an interval ({error!r:.200}); take it out of there"
        ) from error
    return Unmerged(iteration, index, count, callbacks, file)


def unmerged_directories(path: Path) -> list[tuple[TrainingIteration, Path]]:
    """Return the intervals of a run directory of which processes left what they had, by update."""
    found = []
    for directory in (path / "unmerged").glob("*"):
        with contextlib.suppress(ScheduleError):  # something of the user's
            found.append((TrainingIteration.from_string(directory.name), directory))
    return sorted(found, key=lambda pair: (pair[0].update or 0, pair[1].name))


def set_merged(unmerged: Unmerged) -> None:
    """Put a file aside, whose values are in the log."""
    aside = unmerged.path.parent / MERGED
    aside.mkdir(exist_ok=True)
    unmerged.path.replace(aside / unmerged.path.name)


def _write(file: Path, unmerged: Unmerged) -> None:
    state = {
        "iteration": {unit: getattr(unmerged.iteration, unit) for unit in UNITS},
        "index": unmerged.index,
        "count": unmerged.count,
        "callbacks": {str(number): part for number, part in unmerged.callbacks.items()},
    }
    for attempt in range(_ATTEMPTS):
        try:
            write_state(file, state, is_durable=False)
            break
        except (FileNotFoundError, FileExistsError):  # another process discarded what it had, and with it the directory
            if attempt == _ATTEMPTS - 1:
                raise


def _file(path: Path, iteration: TrainingIteration, index: int, count: int) -> Path:
    return path / "unmerged" / str(iteration) / f"{index}-of-{count}.safetensors"
