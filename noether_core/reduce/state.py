"""Turn the interval under way into plain arrays, numbers and strings, and back: the same form for every framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import ml_dtypes
import numpy as np

from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import encode_position
from noether_core.algebra.sums import Fields, Statistics, empty
from noether_core.errors import NoetherError, listing
from noether_core.reduce.partial import Newest, Partials, Stack

VERSION = 2
_READ = (1, 2)
_UNKNOWN = encode_position(-1, 0)  # of what version 1 stacked: before all that follows
DAMAGE = (KeyError, IndexError, TypeError, ValueError)  # what reading a damaged state raises
_COUNTS = ("nan", "positive", "negative", "first_nonfinite")


def pack(partials: Partials) -> dict[str, Any]:
    """Return a state dict: vectors with one row per key, sums as pairs of binary64; the newest values beside them."""
    statistics = partials.statistics._asdict()
    last = partials.last
    return {
        "version": VERSION,
        "keys": list(partials.keys),
        "sums": {
            name: np.stack(value, axis=1) if isinstance(value, tuple) else value.copy()
            for name, value in statistics.items()
            if not (isinstance(value, tuple) and not value)
        },
        "is_weighted": partials.weighted.copy(),
        "elements": partials.elements.copy(),
        "wide": partials.wide.copy(),
        "whole": partials.whole.copy(),
        "last_update": np.array([last[key].update if key in last else -1 for key in partials.keys], np.int64),
        "last_step": np.array([last[key].step if key in last else 0 for key in partials.keys], np.int64),
        "last": {key: _plain(newest.value) for key, newest in last.items()},
        "stack": {
            key: {"values": _runs(stack.values), "positions": stack.positions.copy()}
            for key, stack in partials.stack.items()
        },
    }


def _runs(values: Sequence[np.ndarray[Any, Any]]) -> list[dict[str, Any]]:
    """Return values in order, those of one dtype that follow each other stacked."""
    return [_plain(np.stack(list(run))) for _, run in groupby(values, lambda value: value.dtype)]


def unpack(state: Any) -> Partials:
    """Read a state dict.

    Raises:
        NoetherError: if it is of another form or version; the message says what is wrong.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        shown = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise NoetherError(
            f"got the state {shown}; expected what state_dict() of a TrackAdditionalOutputsCallback returned"
        )
    try:
        version = int(state["version"])
        if version in _READ:
            return _unpack(state, version)
    except DAMAGE as error:
        raise damaged(error) from error
    raise NoetherError(
        f"the state has version {version}; this version reads {listing(map(str, _READ))}: upgrade the package"
    )


def damaged(error: Exception) -> NoetherError:
    """Return what to raise for a state that another error was found in."""
    return NoetherError(f"the state is incomplete or damaged ({error!r}); load what state_dict() returned")


def listed(saved: Any) -> list[Any]:
    """Return a saved list; some libraries restore one as a dict of its places, `{"0": ..., "1": ...}`, or as an array."""
    return [saved[place] for place in sorted(saved, key=int)] if isinstance(saved, Mapping) else list(saved)


def _unpack(state: Mapping[str, Any], version: int) -> Partials:
    keys = [str(key) for key in listed(state["keys"])]
    fields = Fields("squares" in state["sums"], "minimum" in state["sums"], "weights" in state["sums"])
    blank = empty(NUMPY, fields)
    vectors = {name: np.asarray(state["sums"][name]) for name in Statistics._fields if getattr(blank, name) != ()}
    names = ("is_weighted", "elements", "wide", "whole", "last_update")
    flags = {name: np.asarray(state[name]) for name in (*names, *(["last_step"] if version > 1 else []))}
    wanted = {name: (len(keys), *np.shape(getattr(blank, name, 0))) for name in (*vectors, *flags)}
    for name, vector in (vectors | flags).items():
        if vector.shape != wanted[name]:
            raise ValueError(f"{len(keys)} keys, but {name!r} has shape {vector.shape}")
    found: dict[str, Any] = {
        name: vector.astype(np.int64) if vector.ndim == 1 else tuple(vector.T.astype(np.float64, order="C"))
        for name, vector in vectors.items()
    }
    when = list(zip(*(flags[name] for name in ("last_update", "last_step") if name in flags), strict=True))
    last = {key: _array(state["last"][key]) for key in keys if key in state["last"]}
    return Partials(
        tuple(keys),
        blank._replace(**found),
        flags["elements"].astype(np.int64),
        flags["wide"].astype(bool),
        flags["whole"].astype(bool),
        flags["is_weighted"].astype(bool),
        {key: Newest(last[key], *(int(number) for number in when[at])) for at, key in enumerate(keys) if key in last},
        {key: _stack(state["stack"][key], version) for key in keys if key in state["stack"]},
    )


def _stack(saved: Any, version: int) -> Stack:
    runs = [_array(run) for run in ([saved] if version == 1 else listed(saved["values"]))]
    values = tuple(run[at, ...] for run in runs for at in range(len(run)))
    positions = np.full(len(values), _UNKNOWN) if version == 1 else np.asarray(saved["positions"]).astype(np.int64)
    if not values or positions.shape != (len(values),):
        raise ValueError(f"{len(values)} stacked values, but the positions {positions}")
    return Stack(values, positions)


def _plain(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return an array with its dtype's name beside it: as bits where NumPy has no such dtype of its own (bfloat16)."""
    is_own = array.dtype.kind in "biuf" and not hasattr(ml_dtypes, array.dtype.name)
    return {"dtype": array.dtype.name, "values": array.copy() if is_own else array.view(_bits(array.dtype)).copy()}


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _array(plain: Any) -> np.ndarray[Any, Any]:
    name, values = str(plain["dtype"]), np.asarray(plain["values"])
    return values.view(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else values.astype(name, copy=False)
