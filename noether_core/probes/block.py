"""Keep the statistics of updates as columns: of each key its updates side by side, so that one key is read at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from noether_core.emit.arrays import ArrayHeader
from noether_core.errors import RunFormatError
from noether_core.probes.probed import HostProbed
from noether_core.probes.sampling import places
from noether_core.probes.stages import in_order
from noether_core.probes.statistics import REALS

VERSION = 1
ABOUT, UPDATES, COUNTS, VALUES, FINGERPRINTS = "about", "updates", "counts", "reals", "fingerprints"
DIRECTORY, STATISTICS, ARRAYS = "probes", "statistics", "arrays"  # where the files are, in a run's `update_outputs`
ABSENT = -1  # the count of a key that an update did not have
ROW_BYTES = 8 * (len(REALS) + 2)  # of a key and an update
_MOST_KEYS = 2**20
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


def encode_arrays_of(probed: HostProbed, keys: Sequence[str], about: Mapping[str, Any]) -> dict[str, Array]:
    """Return the arrays of a file that holds the arrays of an update, those under `keys`."""
    shapes = [list(probed.shapes[key]) for key in keys]
    told = {"probes": VERSION, **about, "keys": list(keys), "shapes": shapes, "limit": probed.limit}
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
    """

    keys: tuple[str, ...]
    start: str
    framework: str
    shapes: Mapping[str, tuple[int, ...]]
    limit: int

    def places(self, key: str) -> tuple[Array, ...] | None:
        """Return which places of an array are kept; None if it is whole."""
        return places(self.shapes[key], self.limit)


def decode_about(data: Array, path: object) -> About:
    """Return what a file says of itself.

    Raises:
        RunFormatError: for one that is none of ours, or is damaged.
    """
    try:
        told = json.loads(data.tobytes().decode("ascii"))
        if told["probes"] != VERSION:
            raise ValueError(f"it is of version {told['probes']!r:.40}; expected {VERSION}")
        keys, shapes = told["keys"], told.get("shapes", [])
        is_typed = isinstance(keys, list) and len(keys) <= _MOST_KEYS and all(isinstance(key, str) for key in keys)
        if not is_typed or in_order(keys) != keys or len(set(keys)) < len(keys):
            raise ValueError("its keys are no list of `stage/name`, each once")
        sizes = [tuple(shape) for shape in shapes]
        if not all(type(size) is int and size >= 0 for shape in sizes for size in shape):
            raise ValueError("its shapes are no lists of sizes")
        limit = told.get("limit", 0)
        if type(limit) is not int:
            raise ValueError(f"its limit is {limit!r:.40}; expected an int")
        start, framework = str(told.get("start") or ""), str(told.get("framework") or "")
        return About(tuple(keys), start, framework, dict(zip(keys, sizes, strict=False)), limit)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunFormatError(
            f"{path} holds no probes, or damaged ones ({error!s:.200}); restore it from a copy"
        ) from error


def check_rows(headers: Mapping[str, ArrayHeader], about: About, path: object) -> None:
    """Raise `RunFormatError` unless a file's arrays are those of `encode_rows`."""
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
            f"{path} lacks the statistics {wrong[:1]!r}, or has them in another form; restore it from a copy"
        )
