"""Measure how far two runs differ: value by value in units in the last place, file by file in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.emit.jsonl import numbered_files
from noether_core.emit.reader import RunReader
from noether_core.errors import RunFormatError
from noether_core.probes.block import ARRAYS, DIRECTORY, STATISTICS
from noether_core.regular_files import open_regular
from noether_core.silence import SILENT
from noether_core.text import as_float

_CHUNK = 2**20


@SILENT
def ulps(a: float | int, b: float | int) -> float:
    """Return how many floating-point numbers lie between two values, counting one end; at least 1 for any two that differ.

    The numbers are float32's if both values are float32 numbers, as tracked means are, else float64's. Two NaN are equal;
    NaN beside a number is infinitely far, and so are an infinity and an int beyond float64 from whatever differs.

    >>> ulps(1.0, 1.0 + 2**-23), ulps(0.1, 0.1 + 2**-56)
    (1, 1)
    """
    if a == b or (a != a and b != b):
        return 0
    if not (math.isfinite(as_float(a)) and math.isfinite(as_float(b))):
        return math.inf
    is_float32 = all(float(np.float32(float(value))) == value for value in (a, b))
    return max(1, abs(_rank(a, is_float32) - _rank(b, is_float32)))  # ints beyond 2**53 can share a float64


def _rank(value: float | int, is_float32: bool) -> int:
    """Return a number's place in the order of all numbers of its format (0 for zero)."""
    size = abs(float(value))
    bits = int(np.float32(size).view(np.int32)) if is_float32 else int(np.float64(size).view(np.int64))
    return -bits if value < 0 else bits


@dataclass(frozen=True)
class Difference:
    """Hold one value of both runs. `a` or `b` is None where a run lacks it.

    Attributes:
        ulps: the distance in units in the last place; infinite where one is missing or no number.
    """

    key: str
    update: int
    a: Any
    b: Any
    ulps: float


def compare_runs(a: RunReader, b: RunReader) -> list[Difference]:
    """Return every value that either run logged, beside the other's: by key, then by update."""
    rows = []
    for key in dict.fromkeys([*a.series, *b.series]):
        values_a, values_b = _by_update(a, key), _by_update(b, key)
        for update in sorted(values_a.keys() | values_b.keys()):
            pair = values_a.get(update), values_b.get(update)
            in_both = update in values_a and update in values_b
            rows.append(Difference(key, update, *pair, _distance(*pair) if in_both else math.inf))
    return rows


def _by_update(run: RunReader, key: str) -> dict[int, Any]:
    return {point.update: point.value for point in run.series.get(key, ())}


def _distance(a: Any, b: Any) -> float:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return ulps(a, b)
    return 0 if a == b or repr(a) == repr(b) else math.inf  # the repr, because a list with NaN does not equal itself


def differing_files(a: Path, b: Path) -> tuple[list[str], int]:
    """Compare two run directories' `metrics/<n>.jsonl` and `update_outputs/` byte by byte.

    Files of probes are left out: they say which start of which framework they are of, so that no two runs' are alike.

    Returns:
        The relative paths that differ or that only one has, and how many files were compared.
    """
    names: set[str] = set()
    for root in (a, b):
        saved = (path for path in root.glob("update_outputs/**/*.safetensors") if not _is_of_probes(path))
        names.update(path.relative_to(root).as_posix() for path in (*numbered_files(root / "metrics"), *saved))
    return [name for name in sorted(names) if not _is_alike(a, b, name)], len(names)


def _is_of_probes(path: Path) -> bool:
    """Tell by where a file is, as `probes/statistics/FILE`, `probes/arrays/FILE` or `probes/arrays/NUMBER/FILE`."""
    folders = path.parts[-4:-1]
    return any(pair in ((DIRECTORY, STATISTICS), (DIRECTORY, ARRAYS)) for pair in pairwise(folders))


def _is_alike(a: Path, b: Path, name: str) -> bool:
    """Tell whether both have a file of one content; one that is missing or no regular file is like no other."""
    try:
        with open_regular(a / name, a) as first, open_regular(b / name, b) as second:
            while (chunk := first.read(_CHUNK)) == second.read(_CHUNK):
                if not chunk:
                    return True
            return False
    except (OSError, RunFormatError):
        return False
