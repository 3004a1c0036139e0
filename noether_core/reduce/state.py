"""Turn the interval under way into plain arrays, numbers and strings, and back: the same form for every framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.position import encode_position
from noether_core.algebra.sums import Fields, Statistics, empty
from noether_core.checked import described, listed, mapping, text, vector, whole
from noether_core.errors import NoetherError, listing
from noether_core.reduce.partial import Newest, Partials, Stack, Vector

VERSION = 2
_OWN = (
    "bool",
    *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)
_BITS = frozenset(  # dtypes that NumPy lacks
    name for name in dir(ml_dtypes) if name.startswith(("bfloat", "float", "int", "uint")) and name != "finfo"
)
_READ = (1, 2)
_UNKNOWN = encode_position(-1, 0)  # of what version 1 stacked: before all that follows


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
    found: list[tuple[int, Vector]] = []
    for group in listed(groups, "the values"):
        values = _each(_array(group))
        found += zip(_whole_numbers(group["places"], "the places of values"), values, strict=True)
    found.sort(key=lambda pair: pair[0])
    if [at for at, _ in found] != list(range(count)):
        raise ValueError(f"expected {count} values, but got those at {[at for at, _ in found[:20]]}")
    return [value for _, value in found]


def _whole_numbers(values: Any, what: str) -> list[int]:
    numbers: list[int] = vector(values, what, (len(listed(values, what)),), "count").tolist()
    return numbers


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
        raise NoetherError(
            f"got the state {described(state)}; expected what state_dict() of a TrackAdditionalOutputsCallback returned:"
            " load that"
        )
    try:
        version = whole(state["version"], "its version")
        if version in _READ:
            return _unpack(state, version)
    except Exception as error:
        raise damaged(error) from error
    raise NoetherError(
        f"the state has version {version}; this version reads {listing(map(str, _READ))}: upgrade the package"
    )


def damaged(error: Exception) -> NoetherError:
    """Return what to raise for a state that another error was found in."""
    found = f"{error}" if type(error) is ValueError else f"{error!r}"
    return NoetherError(f"the state is incomplete or damaged ({found:.500}); load what state_dict() returned")


def _unpack(state: Mapping[str, Any], version: int) -> Partials:
    keys = [text(key, "a key") for key in listed(state["keys"], "'keys'")]
    if len(set(keys)) < len(keys):
        raise ValueError(f"'keys' has one twice, of {listing(keys)}")
    sums = mapping(state["sums"], "'sums'")
    fields = Fields("squares" in sums, "minimum" in sums, "weights" in sums)
    blank = empty(NUMPY, fields)
    found: dict[str, Any] = {}
    for name in Statistics._fields:
        if (like := getattr(blank, name)) != ():
            shape = (len(keys), *np.shape(like))
            kind = "binary64" if len(shape) > 1 else "int" if name == "first_nonfinite" else "count"
            array = vector(sums[name], repr(name), shape, kind)
            found[name] = tuple(np.ascontiguousarray(array.T)) if array.ndim > 1 else array
    flags = {name: vector(state[name], repr(name), (len(keys),), "flag") for name in ("wide", "whole", "is_weighted")}
    return Partials(
        tuple(keys),
        blank._replace(**found),
        vector(state["elements"], "'elements'", (len(keys),), "count"),
        flags["wide"],
        flags["whole"],
        flags["is_weighted"],
        **(_kept_in_version_1(state, keys) if version == 1 else _kept(state, keys)),
    )


def _kept(state: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the newest values and the stacks."""
    names = ("last", "keys"), ("last", "updates"), ("last", "steps"), ("stack", "keys"), ("stack", "lengths")
    places, updates, steps, stacked, lengths = [
        _whole_numbers(mapping(state[part], repr(part))[name], f"{name!r} of {part!r}") for part, name in names
    ]
    newest = _ungrouped(state["last"]["values"], len(places))
    positions = np.asarray(state["stack"]["positions"])
    values = _ungrouped(state["stack"]["values"], sum(lengths))
    if len(set(places)) < len(places) or len(set(stacked)) < len(stacked):
        raise ValueError(f"a key has two newest values or stacks: those of the keys {places} and {stacked}")
    if positions.shape != (len(values),) or min(lengths, default=1) < 1:
        raise ValueError(f"{len(values)} stacked values, but stacks of {lengths} with {len(positions)} positions")
    positions = vector(positions, "'positions'", positions.shape, "int")
    ends = np.cumsum([0, *lengths])
    stacks = {
        keys[at]: Stack(tuple(values[start:end]), positions[start:end])
        for at, start, end in zip(stacked, ends[:-1], ends[1:], strict=True)
    }
    for key, stack in stacks.items():
        if len(shapes := {value.shape for value in stack.values}) > 1:
            raise ValueError(f"the stacked values of {key!r} have the shapes {sorted(shapes)}; expected one")
    found = zip(places, newest, updates, steps, strict=True)
    last = {keys[at]: Newest(value, update, step) for at, value, update, step in found}
    return {"last": last, "stack": stacks}


def _kept_in_version_1(state: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the newest values, of steps that are not known, and the stacks, of positions that are not."""
    updates = vector(state["last_update"], "'last_update'", (len(keys),), "int")
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
    name, values = text(mapping(plain, "an array", "dtype", "values")["dtype"], "a dtype"), np.asarray(plain["values"])
    dtype = np.dtype(getattr(ml_dtypes, name) if name in _BITS else name)
    if dtype.name not in (*_OWN, *_BITS) or values.dtype.kind not in "biuf":
        raise ValueError(f"values of dtype {name!r:.40} are {described(values)}; expected bools, ints or floats")
    if name not in _BITS:
        return values.astype(dtype, copy=False)
    if values.dtype != _bits(dtype):
        raise ValueError(f"values of dtype {name!r} are {described(values)}; expected {_bits(dtype)}, their bits")
    return values.view(dtype)
