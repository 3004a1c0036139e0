"""Tell a training script that it makes a twin of another run, and change for it what a twin changes.

A twin is the same training, one rounding error apart: its weights are nudged by one unit in the last place, and the rows of its
batches may stand in another order. How far it drifts from its run is the noise that a port may have, too.

`noether-parity calibrate` writes what the twin is to `twin.json` in the twin's directory, and names that directory in the
environment variable `NOETHER_TWIN` of the script that it starts. The functions here are all that read it: a script calls them
by name, and nothing else behaves otherwise because of it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from noether_core.emit.files import write_whole
from noether_core.errors import NoetherError, RunFormatError
from noether_core.regular_files import open_regular
from noether_core.silence import SILENT

VARIABLE = "NOETHER_TWIN"
FILE = "twin.json"
_MOST_BYTES = 2**16


class TwinError(NoetherError, ValueError):
    """Report a twin that cannot be made or used."""


@dataclass(frozen=True)
class Twin:
    """Say what a twin changes.

    Attributes:
        run: the directory of the run that it is a twin of.
        path: its own run directory.
        seed: decides which weights go up and which down, and in which order the rows stand.
        rows: whether the rows of its batches are permuted as well.
        is_made: whether the training that makes it came to its end.
    """

    run: Path
    path: Path
    seed: int
    rows: bool
    is_made: bool = False

    def write(self) -> None:
        """Write `twin.json` into its directory, which is made if need be."""
        self.path.mkdir(parents=True, exist_ok=True)
        record = {"seed": self.seed, "rows": self.rows, "is_made": self.is_made}
        write_whole(self.path / FILE, json.dumps(record).encode())

    @classmethod
    def read(cls, path: Path) -> Twin:
        """Read what a directory `RUN/twins/NUMBER` is.

        Raises:
            TwinError: if it has no `twin.json` that says so.
        """
        try:
            with open_regular(path / FILE) as file:
                found = json.loads(file.read(_MOST_BYTES))
            seed, rows, is_made = found["seed"], found["rows"], found["is_made"]
        except (OSError, RunFormatError, ValueError, LookupError, TypeError) as error:
            raise TwinError(f"{str(path)!r} has no {FILE} that says which twin it is ({error})") from None
        if type(seed) is not int or seed < 0 or not (isinstance(rows, bool) and isinstance(is_made, bool)):
            raise TwinError(
                f"{str(path / FILE)!r} holds {found!r:.200}; expected a seed, and two bools: rows and is_made"
            )
        return cls(path.parent.parent, path, seed, rows, is_made)


def this_twin() -> Twin | None:
    """Return the twin that this process makes, or None if it makes none.

    Raises:
        TwinError: if `NOETHER_TWIN` names no twin's directory.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        return None
    try:
        return Twin.read(Path(path))
    except TwinError as error:
        raise TwinError(
            f"{error}; {VARIABLE} is for `noether-parity calibrate` to set: unset it for a training"
        ) from None


def twin_path(path: str | Path) -> Path:
    """Return the run directory to write to: the twin's own while a twin is made, otherwise `path`.

    Args:
        path: the run directory of the training.

    Raises:
        TwinError: if a twin of another run is being made.

    >>> twin_path("runs/port")
    PosixPath('runs/port')
    """
    twin = this_twin()
    if twin is None:
        return Path(path)
    if Path(path).resolve() != twin.run.resolve():
        raise TwinError(
            f"a twin of {str(twin.run)!r} is being made, and the script writes to {str(path)!r}: give"
            " `noether-parity calibrate` the run that the script writes, and the script the same arguments as then"
        )
    return twin.path


@SILENT
def nudged(values: np.ndarray[Any, Any], seed: int, *place: int) -> np.ndarray[Any, Any]:
    """Return weights with every element moved up or down by one unit in the last place; zeros stay, and what is not finite.

    Args:
        values: any shape and dtype; ints and bools are returned as they are.
        seed: of the directions.
        place: the array's number among the model's, and more of where it stands; arrays of one shape go different ways.

    >>> a = np.array([1.0, 0.0, -3.0], np.float32)
    >>> np.abs(nudged(a, seed=1) - a) / np.spacing(np.abs(a)) <= 1.0
    array([ True,  True,  True])
    """
    if np.issubdtype(values.dtype, np.complexfloating):
        return nudged(np.ascontiguousarray(values).view(values.real.dtype), seed, *place).view(values.dtype)
    if not (np.issubdtype(values.dtype, np.floating) or values.dtype == ml_dtypes.bfloat16):
        return values
    is_up = np.random.default_rng([seed, *place]).random(values.shape) < 0.5
    limit = np.where(is_up, np.inf, -np.inf).astype(values.dtype)
    moved = np.nextafter(values, limit)
    return np.where((values != 0) & np.isfinite(values) & np.isfinite(moved) & (moved != 0), moved, values)


def rows_permuted(leaves: Sequence[Any]) -> list[Any]:
    """Return a batch's arrays with their rows in the twin's order; what has no rows is returned as it is.

    The order depends on the number of rows alone, so arrays that are permuted in several calls stay together.

    Raises:
        TwinError: if the arrays have different numbers of rows.
    """
    twin = this_twin()
    if twin is None or not twin.rows:
        return list(leaves)
    counts = sorted({each.shape[0] for each in leaves if has_rows(each)})
    if len(counts) > 1:
        raise TwinError(
            f"twin_batch got arrays of {' and '.join(map(str, counts))} rows; it permutes a batch whose arrays have one row an"
            " example each. Give it those alone; where a batch is not made of rows (a graph, a packed sequence), leave it out:"
            " the other twins will do"
        )
    order = np.random.default_rng([twin.seed, *counts]).permutation(counts[0]) if counts else None
    return [each[order] if has_rows(each) else each for each in leaves]


def has_rows(leaf: Any) -> bool:
    """Tell whether something is an array of at least one axis."""
    return bool(getattr(leaf, "shape", ())) and hasattr(leaf, "dtype")


def leaves_of(value: Any, hold: Callable[[Any], Any]) -> Any:
    """Return a batch with `hold` called on each leaf of its dicts, lists, tuples, NamedTuples and dataclasses.

    >>> leaves_of({"x": [1, (2, 3)]}, lambda leaf: 10 * leaf)
    {'x': [10, (20, 30)]}
    """
    if isinstance(value, Mapping):
        new = {key: leaves_of(each, hold) for key, each in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return new
        changed = copy.copy(value)  # such as a tokenizer's, which has methods of its own
        changed.update(new)
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(leaves_of(each, hold) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(leaves_of(each, hold) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: leaves_of(getattr(value, field.name), hold) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return hold(value)
