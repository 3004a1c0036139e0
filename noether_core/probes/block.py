"""Keep the statistics of updates as columns: of each key its updates side by side, so that one key is read at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from noether_core.emit.array_reader import ArrayReader
from noether_core.emit.arrays import ArrayHeader
from noether_core.errors import RunFormatError
from noether_core.probes.probed import HostProbed
from noether_core.probes.sampling import kept_shape, places
from noether_core.probes.stages import in_order
from noether_core.probes.statistics import REALS

VERSION = 1
ABOUT, UPDATES, COUNTS, VALUES, FINGERPRINTS = "about", "updates", "counts", "reals", "fingerprints"
DIRECTORY, STATISTICS, ARRAYS = "probes", "statistics", "arrays"  # where the files are, in a run's `update_outputs`
ABSENT = -1  # the count of a key that an update did not have
ROW_BYTES = 8 * (len(REALS) + 2)  # of a key and an update
_MOST_KEYS = 2**20
MOST_ABOUT = 2**24  # bytes of what a file says of itself
_MOST_SIZE, _MOST_AXES = 2**63, 64  # of an array
Array = np.ndarray[Any, Any]


class Row(NamedTuple):
    """Hold the statistics of one update: its number, keys, counts, reals and fingerprints; see `HostProbed`."""

    update: int
    keys: tuple[str, ...]
    counts: Array
    reals: Array
    fingerprints: Array


def row_of(update: int, probed: HostProbed) -> Row:
    """Return the row of an update."""
    return Row(update, probed.keys, probed.counts, probed.reals, probed.fingerprints)


def encode_rows(rows: Sequence[Row], about: Mapping[str, Any]) -> dict[str, Array]:
    """Return the arrays of a file that holds rows: `updates` [rows], and of each key its rows, `reals` [keys, rows, 5]."""
    keys = in_order(dict.fromkeys(key for row in rows for key in row.keys))
    shape = (len(keys), len(rows))
    counts = np.full(shape, ABSENT, np.int64)
    reals = np.full((*shape, len(REALS)), np.nan)
    fingerprints = np.zeros(shape, np.uint64)
    index = {key: at for at, key in enumerate(keys)}
    last: tuple[str, ...] | None = None
    order = np.zeros(0, np.int64)
    for at, row in enumerate(rows):
        if row.keys is not last:
            last, order = row.keys, np.array([index[key] for key in row.keys], np.int64)
        counts[order, at], reals[order, at], fingerprints[order, at] = row.counts, row.reals, row.fingerprints
    return {
        ABOUT: _encoded({"probes": VERSION, **about, "keys": keys}),
        UPDATES: np.array([row.update for row in rows], np.int64),
        COUNTS: counts,
        VALUES: reals,
        FINGERPRINTS: fingerprints,
    }


def encode_arrays_of(
    probed: HostProbed, keys: Sequence[str], about: Mapping[str, Any], update: int
) -> dict[str, Array]:
    """Return the arrays of a file that holds the arrays of an update, those under `keys`."""
    shapes = [list(probed.shapes[key]) for key in keys]
    told = {"probes": VERSION, **about, "update": update, "keys": list(keys), "shapes": shapes, "limit": probed.limit}
    return {ABOUT: _encoded(told), **{key: probed.arrays[key] for key in keys}}


def _encoded(about: Mapping[str, Any]) -> Array:
    return np.frombuffer(json.dumps(about, separators=(",", ":")).encode("ascii"), np.uint8)


@dataclass(frozen=True)
class About:
    """Hold what a file of probes says of itself.

    Attributes:
        keys: in the order of computation.
        start: the id of the process start that wrote it; empty if it had none.
        framework: `jax`, `torch` or empty.
        shapes: of the whole arrays by key, where it holds arrays.
        limit: by which they were sampled.
        update: of which it holds the arrays; None where it does not say.
    """

    keys: tuple[str, ...]
    start: str
    framework: str
    shapes: Mapping[str, tuple[int, ...]]
    limit: int
    update: int | None = None

    def places(self, key: str) -> tuple[Array, ...] | None:
        """Return which places of an array are kept; None if it is whole, or not known."""
        shape = self.shapes.get(key)
        return None if shape is None else places(shape, self.limit)


def decode_about(reader: ArrayReader) -> About:
    """Return what a file says of itself.

    Whatever it says, no more is made of it than the file has bytes: a shape is believed only if what is there of the array is
    what would be kept of one of that shape.

    Raises:
        RunFormatError: for one that is none of ours, or is damaged.
        OSError: if it cannot be read.
    """
    header = reader.headers.get(ABOUT)
    if header is None:
        raise RunFormatError(
            f"{reader.path}, byte 8: it holds no probes: no {ABOUT!r} is in it; restore it from a copy"
        )
    begin = reader.begin(ABOUT)
    try:
        if header.dtype != np.uint8 or len(header.shape) != 1 or header.shape[0] > MOST_ABOUT:
            raise ValueError(f"it is {header.dtype} of shape {header.shape}; expected at most {MOST_ABOUT:,} bytes")
        return _about(json.loads(reader.read(ABOUT).tobytes().decode("ascii")), reader.headers)
    except json.JSONDecodeError as error:
        problem, begin = f"no JSON: {error.msg}", begin + error.pos
    except (ValueError, RecursionError) as error:
        if isinstance(error, RunFormatError):
            raise
        problem = str(error)
    raise RunFormatError(
        f"{reader.path}, byte {begin}: it holds no probes, or damaged ones ({problem:.200}); restore it from a copy"
    )


def _about(told: Any, headers: Mapping[str, ArrayHeader]) -> About:
    if not isinstance(told, dict) or told.get("probes") != VERSION:
        raise ValueError(f"it is not of version {VERSION}")
    keys: Any = told.get("keys")
    shapes, limit = told.get("shapes", []), told.get("limit", 0)
    if not _is_list_of(str, keys, _MOST_KEYS) or in_order(keys) != keys or len(set(keys)) < len(keys):
        raise ValueError("its keys are no list of `stage/name`, each once")
    if type(limit) is not int or not 0 <= limit < _MOST_SIZE:
        raise ValueError(f"its limit is {limit!r:.40}; expected a number of bytes")
    if not _is_list_of(list, shapes, len(keys)):
        raise ValueError("its shapes are no list, of at most one shape a key")
    for key, shape in zip(keys, shapes, strict=False):
        _check_shape(key, shape, limit, headers.get(key))
    start, framework = (told.get(name) or "" for name in ("start", "framework"))
    if not isinstance(start, str) or framework not in ("", "jax", "torch"):
        raise ValueError(f"it is of the start {start!r:.40} and the framework {framework!r:.40}")
    update = told.get("update")
    if update is not None and (type(update) is not int or not 0 <= update < _MOST_SIZE):
        raise ValueError(f"its update is {update!r:.40}; expected a number of updates")
    return About(tuple(keys), start, framework, dict(zip(keys, map(tuple, shapes), strict=False)), limit, update)


def _is_list_of(kind: type, given: Any, most: int) -> bool:
    return isinstance(given, list) and len(given) <= most and all(type(each) is kind for each in given)


def _check_shape(key: str, shape: list[Any], limit: int, header: ArrayHeader | None) -> None:
    """Raise `ValueError` unless a shape is one, and the array that is there is all of it or its sample."""
    rank = len(shape) if header is None else len(header.shape)
    is_shape = all(type(size) is int and 0 <= size < _MOST_SIZE for size in shape)
    if not is_shape or len(shape) != rank or rank > _MOST_AXES:
        raise ValueError(f"{key!r:.80} has the shape {shape[:_MOST_AXES]!s:.80}")
    if header is not None and header.shape != (kept := kept_shape(shape, limit)):
        raise ValueError(f"{key!r:.80} is kept in the shape {header.shape}, and of {tuple(shape)} it would be {kept}")


def check_rows(reader: ArrayReader, about: About) -> Array:
    """Return the updates of a file of statistics, int64 [rows].

    Raises:
        RunFormatError: unless its arrays are those of `encode_rows`, or if one is damaged.
        OSError: if it cannot be read.
    """
    headers = reader.headers
    rows = headers[UPDATES].shape if UPDATES in headers else ()
    shape = (len(about.keys), *rows)
    wanted = {
        UPDATES: ArrayHeader(np.dtype(np.int64), rows),
        COUNTS: ArrayHeader(np.dtype(np.int64), shape),
        VALUES: ArrayHeader(np.dtype(np.float64), (*shape, len(REALS))),
        FINGERPRINTS: ArrayHeader(np.dtype(np.uint64), shape),
    }
    wrong = [name for name, header in wanted.items() if headers.get(name) != header]
    if wrong or len(rows) != 1:
        raise RunFormatError(
            f"{reader.path}, byte 8: it lacks the statistics {wrong[:1]!r}, or has them in another form; restore it from a copy"
        )
    for name in (COUNTS, VALUES, FINGERPRINTS):
        reader.check(name)
    updates = reader.read(UPDATES)
    if len(updates) and (updates[0] < 0 or not (updates[1:] > updates[:-1]).all()):
        raise RunFormatError(
            f"{reader.path}, byte {reader.begin(UPDATES)}: its updates do not increase; restore it from a copy"
        )
    return updates


def check_arrays(reader: ArrayReader, about: About, update: int) -> None:
    """Check that a file has no arrays but those that it says it has, of the update that it is to be of; none is read.

    Raises:
        RunFormatError: if it has not.
    """
    unsaid = set(reader.headers).difference(
        {ABOUT, *about.keys}
    )  # a key without an array is of a dtype that no file holds
    if unsaid:
        raise RunFormatError(
            f"{reader.path}, byte 8: it has the array {min(unsaid)!r:.80}, and does not say so; restore it from a copy"
        )
    if about.update not in (None, update):
        raise RunFormatError(
            f"{reader.path}, byte {reader.begin(ABOUT)}: it has the arrays of update {about.update}, and is named after update"
            f" {update}; restore it from a copy"
        )


def checked_file(
    reader: ArrayReader, kind: str, first: int, starts: Mapping[str, float]
) -> tuple[About, Array, Array | None]:
    """Return what a file says of itself, its updates, and which keys they lack, bool [keys, updates]; None: they lack none.

    Args:
        reader: of the file.
        kind: what it is to hold.
        first: the update that it is named after.
        starts: the run's, of which one wrote it; empty if they are not known.

    Raises:
        RunFormatError: for a damaged one, or one that belongs elsewhere.
        OSError: if it cannot be read.
    """
    about = decode_about(reader)
    absent = None
    if kind == STATISTICS:
        updates, is_absent = check_rows(reader, about), reader.read(COUNTS) == ABSENT
        absent = is_absent if is_absent.any() else None
    else:
        check_arrays(reader, about, first)
        updates = np.array([first], np.int64)
    if len(updates) and updates[0] != first:
        problem = f"its first update is {updates[0]}, and it is named after update {first}"
    elif about.start and starts and about.start not in starts:
        problem = f"the start {about.start!r:.40} wrote it, which is none of this run"
    else:
        return about, updates, absent
    raise RunFormatError(f"{reader.path}, byte {reader.begin(ABOUT)}: {problem}; restore it from a copy")
