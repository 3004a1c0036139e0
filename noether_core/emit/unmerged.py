"""Keep what each process of a training has of an interval on disk until all of them have pooled it.

In `unmerged/` of a run directory, `<index>-of-<count>.safetensors` is what a process saved last. It is gone when all have
pooled it, or put into a directory of its interval, `unmerged/<iteration>/`, when the process saves what it has of the next.
(A directory for each interval would cost more than all else: where discarding is slow, removing one takes 2 ms.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noether_core.emit.state_file import read_state, write_state
from noether_core.errors import RunFormatError
from noether_core.schedule import UNITS, TrainingIteration

_PATTERN = "*-of-*.safetensors"
_MERGED = "merged"  # the directory, in an interval's, of the files whose values are in the log


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

    @property
    def is_merged(self) -> bool:
        """Tell whether its values are in the log."""
        return self.path.parent.name == _MERGED


def save_unmerged(
    path: Path, iteration: TrainingIteration, index: int, count: int, parts: Mapping[int, Mapping[str, Any]]
) -> None:
    """Save what a process has of an interval; what it saved before, and did not discard, is kept beside it.

    It does not wait for the disk: the file outlives this process, but not the machine.

    Args:
        path: the run directory.
        iteration: where the interval ends.
        index: this process's number.
        count: how many processes there are.
        parts: what `reduce.state.pack` returned, by the place of a callback among those that track.
    """
    file = _newest(path, index, count)
    if file.exists():
        earlier = read_unmerged(file)
        _move(earlier, path / "unmerged" / str(earlier.iteration))
    _write(Unmerged(iteration, index, count, parts, file))


def discard_unmerged(path: Path, index: int, count: int) -> None:
    """Forget what a process saved last, which is pooled.

    Args:
        path: the run directory.
        index: this process's number.
        count: how many processes there are.
    """
    _newest(path, index, count).unlink(missing_ok=True)


def read_unmerged(file: Path) -> Unmerged:
    """Read what `save_unmerged` wrote; raises `RunFormatError` if it is damaged or something else."""
    state = read_state(file)
    try:
        iteration = TrainingIteration(**{unit: int(state["iteration"][unit]) for unit in UNITS})
        index, count = int(state["index"]), int(state["count"])
        callbacks = {int(number): dict(part) for number, part in state["callbacks"].items()}
        if file.name != _name(index, count) or not 0 <= index < count:
            raise ValueError(f"it is of process {index} of {count}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFormatError(
            f"{file} is not what this process had of an interval ({error!r:.200}); give it its name again, or take it out of"
            " there"
        ) from error
    return Unmerged(iteration, index, count, callbacks, file)


def find_unmerged(path: Path) -> list[Path]:
    """Return the files of a run directory that have what processes had of intervals, those first that are merged."""
    directory = path / "unmerged"
    return [file for glob in (f"*/{_MERGED}/", "*/", "") for file in sorted(directory.glob(glob + _PATTERN))]


def set_merged(path: Path, unmerged: Unmerged) -> None:
    """Put a file of a run directory aside, whose values are in the log."""
    _move(unmerged, path / "unmerged" / str(unmerged.iteration) / _MERGED)


def joined(saved: Iterable[Unmerged]) -> Unmerged:
    """Return together what one process saved of what ended at one iteration, the newer later."""
    first, *others = saved
    callbacks = dict(first.callbacks)
    for other in others:
        callbacks |= other.callbacks
    return replace(first, callbacks=callbacks)


def _move(unmerged: Unmerged, directory: Path) -> None:
    """Move a file to another directory, into what that has of this process already."""
    there = directory / unmerged.path.name
    if there.exists():
        _write(joined([read_unmerged(there), unmerged]))
        unmerged.path.unlink()
    else:
        directory.mkdir(parents=True, exist_ok=True)
        unmerged.path.replace(there)


def _write(unmerged: Unmerged) -> None:
    state = {
        "iteration": {unit: getattr(unmerged.iteration, unit) for unit in UNITS},
        "index": unmerged.index,
        "count": unmerged.count,
        "callbacks": {str(number): part for number, part in unmerged.callbacks.items()},
    }
    write_state(unmerged.path, state, is_durable=False)


def _newest(path: Path, index: int, count: int) -> Path:
    return path / "unmerged" / _name(index, count)


def _name(index: int, count: int) -> str:
    return f"{index}-of-{count}.safetensors"
