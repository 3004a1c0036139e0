"""Keep what each process of a training has of an interval on disk until all of them have pooled it.

In `unmerged/` of a run directory, `<index>-of-<count>.safetensors` is what a process saved last, and `.before` in its name
marks what it saved the time before, which all have pooled but which the main process may not have logged yet. They are gone
when it has, or put into a directory of their meeting, `unmerged/<iteration>.<start>.<number>/`, when the process saves again.
(A directory for each meeting would cost more than all else: where discarding is slow, removing one takes 2 ms.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from noether_core.emit.disk import Disk
from noether_core.emit.state_file import encode_state, read_state
from noether_core.errors import RunFormatError
from noether_core.regular_files import files_below
from noether_core.schedule import UNITS, TrainingIteration

_PATTERN = "*-of-*.safetensors"
MOST_PROCESSES = 2**20
_MERGED = "merged"  # the directory, in a meeting's, of the files whose values are in the log


@dataclass(frozen=True)
class Unmerged:
    """Hold what a process had when the processes were to meet.

    Attributes:
        iteration: where it was.
        index: the process's number.
        count: how many processes there were.
        callbacks: what `reduce.state.pack` returned, by the place of a callback among those that track.
        urgencies: how urgent each of these is (`noether_core.reduce.agreement`).
        start: names the start of the run.
        number: how many times its processes were to meet before.
        is_final: whether the process had ended its training: at later meetings it has what remains of this.
        is_whole: whether it could say all that it had.
        path: the file, where it is one.
    """

    iteration: TrainingIteration
    index: int
    count: int
    callbacks: Mapping[int, Mapping[str, Any]]
    urgencies: Mapping[int, int]
    start: str = ""
    number: int = 0
    is_final: bool = False
    is_whole: bool = True
    path: Path = Path()

    @property
    def name(self) -> str:
        """Return the name of its file."""
        return f"{self.index}-of-{self.count}.safetensors"

    @property
    def is_merged(self) -> bool:
        """Tell whether its values are in the log."""
        return self.path.parent.name == _MERGED

    @property
    def place(self) -> str:
        """Return the name of its meeting's directory."""
        return f"{self.iteration}.{self.start}.{self.number}"


class UnmergedFiles:
    """Save what one process has, and discard it.

    Args:
        path: the run directory.
        index: this process's number.
        count: how many processes there are.
        disk: does it, on its thread.
    """

    def __init__(self, path: Path, index: int, count: int, disk: Disk) -> None:
        self._disk = disk
        self._path = path
        self._newest = path / "unmerged" / f"{index}-of-{count}.safetensors"
        self._before = self._newest.with_suffix(".before.safetensors")
        self._is_pooled = self._has_before = False

    def save(self, unmerged: Unmerged) -> None:
        """Save what this process has; what it saved before, and did not discard, is kept beside it.

        Once it is written, the file outlives this process, but not the machine.
        """
        state = {
            "iteration": {unit: getattr(unmerged.iteration, unit) for unit in UNITS},
            **{name: getattr(unmerged, name) for name in ("index", "count", "start", "number", "is_final", "is_whole")},
            "callbacks": {str(number): part for number, part in unmerged.callbacks.items()},
            "urgencies": {str(number): urgency for number, urgency in unmerged.urgencies.items()},
        }
        data = encode_state(state)
        if self._disk.call(self._keep_before):
            self._disk.put_file(self._newest, data, is_durable=False)

    def set_pooled(self) -> None:
        """Note that all processes have pooled what was saved last; the main process may not have logged it."""
        self._disk.call(self._set_pooled)

    def discard_before(self) -> None:
        """Forget what was pooled before the newest, now that the main process has logged it."""
        self._disk.call(self._discard_before)

    def discard(self) -> None:
        """Forget all that was pooled."""
        self._disk.call(self._discard)

    # ------------------------------------------------------------------ on the disk's thread

    def _keep_before(self) -> None:
        if self._is_pooled:
            with contextlib.suppress(FileNotFoundError):  # merged meanwhile
                self._newest.replace(self._before)
            self._is_pooled, self._has_before = False, True
        else:
            for file in (self._newest, *(() if self._has_before else (self._before,))):  # of another start, maybe
                if file.exists():
                    _put_away(self._path, file)

    def _set_pooled(self) -> None:
        self._is_pooled = True

    def _discard_before(self) -> None:
        if self._has_before:
            self._before.unlink(missing_ok=True)
            self._has_before = False

    def _discard(self) -> None:
        self._discard_before()
        if self._is_pooled:
            self._newest.unlink(missing_ok=True)
            self._is_pooled = False


def read_unmerged(file: Path) -> Unmerged:
    """Read what `UnmergedFiles.save` wrote; raises `RunFormatError` if it is damaged or something else."""
    state = read_state(file, file.parent)
    try:
        unmerged = Unmerged(
            TrainingIteration(**{unit: int(state["iteration"][unit]) for unit in UNITS}),
            int(state["index"]),
            int(state["count"]),
            {int(number): dict(part) for number, part in state["callbacks"].items()},
            {int(number): int(urgency) for number, urgency in state["urgencies"].items()},
            str(state["start"]),
            int(state["number"]),
            bool(state["is_final"]),
            bool(state["is_whole"]),
            file,
        )
        if (
            file.name.replace(".before", "") != unmerged.name
            or not 0 <= unmerged.index < unmerged.count <= MOST_PROCESSES
        ):
            raise ValueError(f"it is of process {unmerged.index} of {unmerged.count}")
        if unmerged.urgencies.keys() != unmerged.callbacks.keys():
            raise ValueError("its callbacks do not agree")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunFormatError(
            f"{file} is not what this process had of an interval ({error!r:.200}); give it its name again, or take it out of"
            " there"
        ) from error
    return unmerged


def find_unmerged(path: Path) -> list[Path]:
    """Return the files of a run directory that have what processes had of intervals, those first that are merged."""
    found = sorted(file for file in files_below(path, "unmerged") if fnmatch(file.name, _PATTERN))
    parts = [(file.relative_to(path / "unmerged").parts, file) for file in found]
    merged = [file for names, file in parts if len(names) == 3 and names[1] == _MERGED]
    return [*merged, *(file for depth in (2, 1) for names, file in parts if len(names) == depth)]


def set_merged(path: Path, unmerged: Unmerged) -> None:
    """Put a file of a run directory aside, whose values are in the log."""
    _move(unmerged, path / "unmerged" / unmerged.place / _MERGED)


def _put_away(path: Path, file: Path) -> None:
    try:
        unmerged = read_unmerged(file)
    except RunFormatError:  # it is no obstacle to what is saved now
        file.replace(file.with_name(f"{file.name}.damaged"))
    else:
        _move(unmerged, path / "unmerged" / unmerged.place)


def _move(unmerged: Unmerged, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    unmerged.path.replace(directory / unmerged.name)
