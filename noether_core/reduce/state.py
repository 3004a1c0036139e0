"""Turn the interval under way into plain arrays, numbers and strings, and back: the same form for every framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import encode_position
from noether_core.algebra.sums import Fields, Statistics, empty
from noether_core.errors import NoetherError, listing
from noether_core.reduce.partial import Newest, Partials, Stack, Vector

VERSION = 2
_READ = (1, 2)
_UNKNOWN = encode_position(-1, 0)  # of what version 1 stacked: before all that follows
DAMAGE = (KeyError, IndexError, TypeError, ValueError)  # what reading a damaged state raises
_COUNTS = ("nan", "positive", "negative", "first_nonfinite")


def pack(partials: Partials) -> dict[str, Any]:
    """Return a state dict: vectors with one row per key, sums as pairs of binary64; the newest values beside them."""
    statistics = partials.statistics._asdict()
    last = {at: partials.last[key] for at, key in enumerate(partials.keys) if key in partials.last}
    stacks = {at: partials.stack[key] for at, key in enumerate(partials.keys) if key in partials.stack}
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
        "last": {
            "keys": _ints(list(last)),
            "updates": _ints([newest.update for newest in last.values()]),
            "steps": _ints([newest.step for newest in last.values()]),
            "values": _grouped([newest.value for newest in last.values()]),
        },
        "stack": {
            "keys": _ints(list(stacks)),
            "lengths": _ints([len(stack.values) for stack in stacks.values()]),
            "positions": np.concatenate([_ints([]), *(stack.positions for stack in stacks.values())]),
            "values": _grouped([value for stack in stacks.values() for value in stack.values]),
        },
    }


def _ints(numbers: Sequence[int]) -> Vector:
    return np.array(numbers, np.int64)


def _grouped(values: Sequence[Vector]) -> list[dict[str, Any]]:
    """Return values with those of one dtype and shape stacked, and beside them their places."""
    groups: dict[tuple[Any, Any], list[int]] = {}
    for at, value in enumerate(values):
        groups.setdefault((value.dtype, value.shape), []).append(at)
    return [{"places": _ints(at), **_plain(np.stack([values[each] for each in at]))} for at in groups.values()]


def _ungrouped(groups: Any, count: int) -> list[Vector]:
    """Return what `_grouped` was given."""
    found = [
        pair
        for group in listed(groups)
        for pair in zip(np.asarray(group["places"]).tolist(), _each(_array(group)), strict=True)
    ]
    found.sort(key=lambda pair: pair[0])
    if [at for at, _ in found] != list(range(count)):
        raise ValueError(f"expected {count} values, but got those at {[at for at, _ in found]}")
    return [value for _, value in found]


def _each(array: Vector) -> list[Vector]:
    """Return an array's elements along its first axis, as arrays."""
    return [array[at, ...] for at in range(len(array))]


def is_packed(state: Any) -> bool:
    """Tell whether a callback's state has an interval under way in it."""
    return isinstance(state, Mapping) and {"version", "keys", "sums", "elements"} <= state.keys()


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
    flags = {name: np.asarray(state[name]) for name in ("is_weighted", "elements", "wide", "whole")}
    wanted = {name: (len(keys), *np.shape(getattr(blank, name, 0))) for name in (*vectors, *flags)}
    for name, vector in (vectors | flags).items():
        if vector.shape != wanted[name]:
            raise ValueError(f"{len(keys)} keys, but {name!r} has shape {vector.shape}")
    found: dict[str, Any] = {
        name: vector.astype(np.int64) if vector.ndim == 1 else tuple(vector.T.astype(np.float64, order="C"))
        for name, vector in vectors.items()
    }
    return Partials(
        tuple(keys),
        blank._replace(**found),
        flags["elements"].astype(np.int64),
        flags["wide"].astype(bool),
        flags["whole"].astype(bool),
        flags["is_weighted"].astype(bool),
        **(_kept_in_version_1(state, keys) if version == 1 else _kept(state, keys)),
    )


def _kept(state: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the newest values and the stacks."""
    names = ("last", "keys"), ("last", "updates"), ("last", "steps"), ("stack", "keys"), ("stack", "lengths")
    places, updates, steps, stacked, lengths = [
        np.asarray(state[part][name]).astype(np.int64).tolist() for part, name in names
    ]
    newest = _ungrouped(state["last"]["values"], len(places))
    positions = np.asarray(state["stack"]["positions"]).astype(np.int64)
    values = _ungrouped(state["stack"]["values"], sum(lengths))
    if len(positions) != len(values) or min(lengths, default=1) < 1 or min(*places, *stacked, 0, 0) < 0:
        raise ValueError(f"{len(values)} stacked values, but stacks of {lengths} with {len(positions)} positions")
    ends = np.cumsum([0, *lengths])
    return {
        "last": {keys[at]: Newest(*found) for at, *found in zip(places, newest, updates, steps, strict=True)},
        "stack": {
            keys[at]: Stack(tuple(values[start:end]), positions[start:end])
            for at, start, end in zip(stacked, ends[:-1], ends[1:], strict=True)
        },
    }


def _kept_in_version_1(state: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the newest values, of steps that are not known, and the stacks, of positions that are not."""
    updates = np.asarray(state["last_update"]).astype(np.int64)
    if updates.shape != (len(keys),):
        raise ValueError(f"{len(keys)} keys, but 'last_update' has shape {updates.shape}")
    last = zip(keys, updates.tolist(), strict=True)
    stacks = {key: tuple(_each(_array(state["stack"][key]))) for key in keys if key in state["stack"]}
    return {
        "last": {key: Newest(_array(state["last"][key]), update) for key, update in last if key in state["last"]},
        "stack": {key: Stack(values, np.full(len(values), _UNKNOWN)) for key, values in stacks.items()},
    }


def _plain(array: Vector) -> dict[str, Any]:
    """Return an array with its dtype's name beside it: as bits where NumPy has no such dtype of its own (bfloat16)."""
    is_own = array.dtype.kind in "biuf" and not hasattr(ml_dtypes, array.dtype.name)
    return {"dtype": array.dtype.name, "values": array.copy() if is_own else array.view(_bits(array.dtype)).copy()}


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _array(plain: Any) -> Vector:
    name, values = str(plain["dtype"]), np.asarray(plain["values"])
    return values.view(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else values.astype(name, copy=False)
