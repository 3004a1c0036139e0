"""Read what there is to draw of a run: what it logged and saved, and what it probed, each as series and arrays by update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from noether_core.emit.array_files import ArrayFile
from noether_core.emit.columns import Series
from noether_core.emit.reader import RunReader
from noether_core.errors import NoetherError
from noether_core.probes.recorded import RecordedTraining, is_probes

Array = np.ndarray[Any, Any]
_DRAWN = ("norm", "mean", "std", "min", "max")  # of an array's statistics
_MOST_BYTES = 2**28  # of arrays that are read at once


class Frame(Protocol):
    """Give the arrays that a run saved at one update."""

    def names(self) -> Sequence[str]:
        """Return their names; raises `NoetherError` or `OSError` for what cannot be read."""

    def load(self, name: str, problems: list[str]) -> Array | None:
        """Return one; None, with a sentence among the problems, if it is damaged."""


class FileFrame:
    """Give the arrays of a file of a run; they are read together, when the first is asked for."""

    def __init__(self, file: ArrayFile) -> None:
        self._file = file
        self._loaded: Mapping[str, Array] | None = None

    def names(self) -> Sequence[str]:
        """Return their names; raises `NoetherError` for a file that is too large to be drawn."""
        headers = self._file.headers()
        _check_size(sum(header.nbytes for header in headers.values()), str(self._file.path))
        return list(headers)

    def load(self, name: str, problems: list[str]) -> Array | None:
        """Return one; None, with a sentence among the problems, if it is damaged."""
        if self._loaded is None:
            self._loaded = {}
            try:
                self._loaded = self._file.load(problems)
            except (NoetherError, OSError) as error:
                problems.append(f"damaged, left out: {error}")
        return self._loaded.get(name)


def _check_size(size: int, what: str) -> None:
    """Raise `NoetherError` for what is too large to be drawn."""
    if size > _MOST_BYTES:
        raise NoetherError(f"{what} has {size:,} bytes of arrays; more than {_MOST_BYTES:,} are not drawn")


class ProbedFrame:
    """Give the arrays that a run's probes kept at one update; each is read when it is asked for."""

    def __init__(self, training: RecordedTraining, update: int) -> None:
        self._training, self._update = training, update

    def names(self) -> Sequence[str]:
        """Return the keys of those that are whole, or samples of what was too large; single numbers are curves."""
        shapes = {key: self._training.shape(self._update, key) for key in self._training.keys(self._update)}
        return [key for key, shape in shapes.items() if shape is not None and math.prod(shape) != 1]

    def load(self, name: str, problems: list[str]) -> Array | None:
        """Return one; None, with a sentence among the problems, if it is damaged."""
        try:
            _check_size(self._training.kept_bytes(self._update, name), f"{name!r:.200} at update {self._update}")
            return self._training.array(self._update, name)
        except (NoetherError, OSError) as error:
            problems.append(f"damaged, left out: {error}")
            return None


class Recorded:
    """Hold what there is to draw of a run.

    Attributes:
        run: what `read_run` gave.
        training: what it probed.
        problems: a sentence for all that is damaged.
    """

    def __init__(self, run: RunReader) -> None:
        self.run = run
        self.training = RecordedTraining(run)
        self.problems: Sequence[str] = self.training.problems

    @cached_property
    def series(self) -> Mapping[str, Series]:
        """Return what it logged, and the statistics that it probed: `key/norm` and so on, of a single number `key`."""
        clocks: dict[bytes, tuple[Array, Array, Array, Array]] = {}
        found: dict[str, Series] = {}
        for key in self.training.all_keys:
            update, columns = self.training.statistics_columns(key)
            if len(update):
                clock = clocks.setdefault(update.tobytes(), self._clock(update))
                is_number = bool(np.all(columns.count == 1))
                for name in ("mean",) if is_number else _DRAWN:
                    title = key if is_number else f"{key}/{name}"
                    found[title] = Series(title, *clock, getattr(columns, name))
        return {**found, **self.run.series}

    def _clock(self, update: Array) -> tuple[Array, Array, Array, Array]:
        """Return epochs, updates, samples and times of updates, as far as the log says them."""
        table = self.run.table
        if not len(table.iterations):
            nothing = np.zeros(len(update), np.int64)
            return nothing, update, nothing, np.full(len(update), np.nan)
        epoch, logged, sample = table.iterations.astype(np.float64).T
        epochs, samples = (np.interp(update, logged, each).astype(np.int64) for each in (epoch, sample))
        return epochs, update, samples, np.interp(update, logged, table.times)

    def frames(self) -> Mapping[tuple[str, int], Frame]:
        """Return what it saved, by interval and update; what it probed has the interval `probes`."""
        found: dict[tuple[str, int], Frame] = {
            ("probes", update): ProbedFrame(self.training, update) for update in self.training.array_updates()
        }
        for file in self.run.arrays:
            if not is_probes(file):
                found[file.interval, file.iteration.update or 0] = FileFrame(file)
        return found
