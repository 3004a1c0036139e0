"""Read what a run probed, from its directory: one array at a time, and statistics by columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.config.yaml_file import parse_yaml
from noether_core.emit.array_files import ArrayFile
from noether_core.emit.array_reader import ArrayReader
from noether_core.emit.reader import RunReader, read_run
from noether_core.errors import NoetherError, RunFormatError
from noether_core.probes.block import (
    ABSENT,
    ARRAYS,
    COUNTS,
    FINGERPRINTS,
    ROW_BYTES,
    STATISTICS,
    VALUES,
    About,
    checked_file,
)
from noether_core.probes.columns import Columns, columns_of, joined
from noether_core.probes.damage import Damage, damage_of, kind_of, missing_files
from noether_core.probes.sampling import Places
from noether_core.probes.stages import in_order
from noether_core.probes.statistics import Statistics
from noether_core.regular_files import read_regular

Array = np.ndarray[Any, Any]
_AT_ONCE = 2**25  # bytes of statistics that are read at once, of keys that follow each other
_MOST_CONFIG = 2**20  # bytes


@dataclass(frozen=True)
class _File:
    """Hold a file of probes: what it says of itself, and its updates that stand, which are its first ones, in order.

    Which keys which updates lack says `absent`, bool [keys, updates]; None: none lacks any.
    """

    reader: ArrayReader
    about: About
    updates: Array
    absent: Array | None = None

    @cached_property
    def places(self) -> dict[str, int]:
        return {key: at for at, key in enumerate(self.about.keys)}

    def row(self, update: int) -> int | None:
        """Return the place of an update in it; None if it does not stand there."""
        at = int(np.searchsorted(self.updates, update))
        return at if at < len(self.updates) and self.updates[at] == update else None


class RecordedTraining:
    """Hold what a run probed; `read_training` makes it. Nothing but the places of what there is stays in memory.

    Attributes:
        label: the directory's name.
        path: the directory.
        framework: `jax`, `torch` or empty.
        settings: with what it was run: its config, and the versions, arithmetic and host of its newest start.
        problems: a sentence for all that is damaged and left out, here and in the log.
        damaged: of the files of probes that would stand, those that are damaged or gone, and what is missing because of them.
        beside: a sentence for all that is damaged besides: in the log, in notes on files, in the config.
    """

    def __init__(self, run: RunReader) -> None:
        self.label, self.path = run.path.resolve().name, run.path
        self.beside = list(run.problems)
        self.settings: Mapping[str, Any] = _settings(run, self.beside)
        self.problems = list(self.beside)
        self.damaged: list[Damage] = []
        self._note_missing(run)
        self._statistics = [each for each in self._files(run, STATISTICS) if len(each.updates)]
        self._arrays: dict[int, list[_File]] = {}
        for file in self._files(run, ARRAYS):
            for update in file.updates.tolist():
                self._arrays.setdefault(update, []).append(file)
        files = [*self._statistics, *(file for of_update in self._arrays.values() for file in of_update)]
        self.framework = next((file.about.framework for file in files if file.about.framework), "")
        self._held: tuple[int, int, list[tuple[Array, Columns]]] = (0, 0, [])  # keys from, to, and what they have

    def _note_missing(self, run: RunReader) -> None:
        gone = list(missing_files(run.path))
        there = [file.iteration.update or 0 for file in run.arrays if kind_of(file.interval) == STATISTICS]
        self._firsts = {*there, *(update for kind, update, _ in gone if kind == STATISTICS)}  # of files of statistics
        for kind, update, problem in gone:
            self._note_damage(kind, update, problem)

    def _note_damage(self, kind: str, update: int, problem: str) -> None:
        self.problems.append(problem)
        self.damaged.append(damage_of(kind, update, problem, self._firsts))

    def _files(self, run: RunReader, kind: str) -> Iterator[_File]:
        """Yield the files of a kind; of damaged ones there are sentences."""
        ids = [str(start.record.get("id") or "") for start in run.starts]
        until = {name: start.until for name, start in zip(ids, run.starts, strict=True) if name}
        kept = {id(file) for file in run.arrays}
        for file in [*run.arrays, *run.superseded_arrays]:
            if kind_of(file.interval) != kind:
                continue
            reader, first = ArrayReader(file.path, file.root), file.iteration.update or 0
            try:
                about, updates, absent = checked_file(reader, kind, first, until if all(ids) else {})
            except (RunFormatError, OSError) as error:
                if id(file) in kept:
                    self._note_damage(kind, first, str(error))
                else:
                    self.problems.append(str(error))
            else:
                # a later start may have gone on from an update within the file, which has its first one's name
                last = until.get(about.start, np.inf if id(file) in kept else -1)
                standing = updates[: np.count_nonzero(updates <= last)]
                yield _File(reader, about, standing, absent)

    # ------------------------------------------------------------------ what there is

    @cached_property
    def _all_updates(self) -> list[int]:
        found = set(self._arrays)
        for file in self._statistics:
            found.update(file.updates.tolist())
        return sorted(found)

    @cached_property
    def all_keys(self) -> tuple[str, ...]:
        """Return the keys of all updates, stage by stage."""
        files: Iterable[_File] = (*self._statistics, *(file for each in self._arrays.values() for file in each))
        return tuple(in_order(dict.fromkeys(key for file in files for key in file.about.keys)))

    def updates(self) -> Sequence[int]:
        """Return the updates that have arrays or statistics, in order."""
        return self._all_updates

    def array_updates(self) -> Sequence[int]:
        """Return the updates that have arrays, in order."""
        return sorted(self._arrays)

    def keys(self, update: int) -> Sequence[str]:
        """Return the keys of an update, stage by stage, each in the order of computation."""
        found: dict[str, None] = {}
        for file in self._statistics:
            if (row := file.row(update)) is not None:
                keys, absent = file.about.keys, file.absent
                found |= dict.fromkeys(key for at, key in enumerate(keys) if absent is None or not absent[at, row])
        for file in self._arrays.get(update, ()):
            found |= dict.fromkeys(file.about.keys)
        return in_order(found)

    # ------------------------------------------------------------------ arrays

    def array(self, update: int, key: str) -> Array | None:
        """Return an array in the canonical layout, or its sample where it was too large; None if it was not kept.

        Raises:
            RunFormatError: if it is damaged.
            OSError: if it cannot be read.
        """
        file = self._array_file(update, key)
        return None if file is None else file.reader.read(key)

    def kept_bytes(self, update: int, key: str) -> int:
        """Return how many bytes are kept of an array; 0 if it was not kept."""
        file = self._array_file(update, key)
        return 0 if file is None else file.reader.headers[key].nbytes

    def _array_file(self, update: int, key: str) -> _File | None:
        held = [file for file in self._arrays.get(update, ()) if key in file.places and key in file.reader.headers]
        return held[-1] if held else None

    def shape(self, update: int, key: str) -> tuple[int, ...] | None:
        """Return the shape of a whole array; None if neither it nor a sample was kept."""
        file = self._array_file(update, key)
        return None if file is None else file.about.shapes.get(key)

    def places(self, update: int, key: str) -> Places | None:
        """Return which places along each axis were kept of an array; None if it is whole, or was not kept."""
        file = self._array_file(update, key)
        return None if file is None else file.about.places(key)

    # ------------------------------------------------------------------ statistics

    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return an array's statistics; None if they were not taken, as `array` does."""
        updates, columns = self.statistics_columns(key)
        at = int(np.searchsorted(updates, update))
        return columns.at(at) if at < len(updates) and updates[at] == update else None

    def statistics_columns(self, key: str) -> tuple[Array, Columns]:
        """Return the updates that have statistics of a key, int64 [updates], in order, and what these are.

        Keys that follow each other in `all_keys` are read together, so ask for them in that order.

        Raises:
            OSError: if a file cannot be read.
        """
        at = self._index.get(key)
        if at is None:
            return np.zeros(0, np.int64), columns_of([])
        first, last, held = self._held
        if not first <= at < last:
            rows = max(1, sum(len(file.updates) for file in self._statistics))
            first, last = at, min(len(self.all_keys), at + max(1, _AT_ONCE // (rows * ROW_BYTES)))
            held = self._read_columns(self.all_keys[first:last])
            self._held = first, last, held
        return held[at - first]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {key: at for at, key in enumerate(self.all_keys)}

    @cached_property
    def _is_uniform(self) -> bool:
        """Tell whether every file of statistics has all keys, at all its updates."""
        return all(file.absent is None and file.about.keys == self.all_keys for file in self._statistics)

    def _read_columns(self, keys: Sequence[str]) -> list[tuple[Array, Columns]]:
        """Return what each key has; of files that have all of the keys at all updates, of all keys at once."""
        if not self._is_uniform or not self._statistics:
            return self._read_each(keys)
        files = sorted(self._statistics, key=lambda file: int(file.updates[0]))
        begin, end = files[0].places[keys[0]], files[0].places[keys[-1]] + 1
        parts = (
            [file.reader.rows(name, begin, end)[:, : len(file.updates)] for file in files]
            for name in (COUNTS, VALUES, FINGERPRINTS)
        )
        counts, reals, prints = (np.concatenate(part, axis=1) for part in parts)
        updates = np.concatenate([file.updates for file in files])
        return [(updates, columns_of([(updates, counts[at], reals[at], prints[at])])) for at in range(len(keys))]

    def _read_each(self, keys: Sequence[str]) -> list[tuple[Array, Columns]]:
        parts: list[list[tuple[Array, Array, Array, Array]]] = [[] for _ in keys]
        for file in self._statistics:
            there = {at: file.places[key] for at, key in enumerate(keys) if key in file.places}
            if not there:
                continue
            begin, end = min(there.values()), max(there.values()) + 1
            counts, reals, prints = (file.reader.rows(name, begin, end) for name in (COUNTS, VALUES, FINGERPRINTS))
            for at, place in there.items():
                row = place - begin
                columns = (file.updates, *(each[row, : len(file.updates)] for each in (counts, reals, prints)))
                is_there = columns[1] != ABSENT
                parts[at].append(
                    (columns[0][is_there], columns[1][is_there], columns[2][is_there], columns[3][is_there])
                )
        return [(joined([part[0] for part in each], np.int64), columns_of(each)) for each in map(_sorted, parts)]


def _sorted(parts: list[tuple[Array, Array, Array, Array]]) -> list[tuple[Array, Array, Array, Array]]:
    return sorted((part for part in parts if len(part[0])), key=lambda part: int(part[0][0]))


def is_probes(file: ArrayFile) -> bool:
    """Tell whether a run's file of arrays is one of probes."""
    return bool(kind_of(file.interval))


def _settings(run: RunReader, problems: list[str]) -> dict[str, Any]:
    """Return what a run was run with; a config that cannot be read is a problem, and there need not be any."""
    try:
        found = parse_yaml(
            read_regular(run.path / "config.yaml", _MOST_CONFIG, run.path).decode("utf-8"), "config.yaml"
        )
    except FileNotFoundError:
        found = None
    except (OSError, ValueError, NoetherError) as error:
        problems.append(f"{run.path / 'config.yaml'} is left out: {error}")
        found = None
    config = dict(found) if isinstance(found, Mapping) else {}
    record = next((start.record for start in reversed(run.starts) if start.record), {})
    about = {name: record[name] for name in ("versions", "python", "arithmetic", "host", "processes") if name in record}
    return {**config, **about}


def read_training(path: str | Path) -> RecordedTraining:
    """Read what a run probed: a `Training` for `noether_core.parity.divergence`.

    Args:
        path: the run directory.

    Raises:
        RunFormatError: if it is none.
    """
    return RecordedTraining(read_run(path))
