"""Turn the interval under way into plain arrays, numbers and strings, and back: the same form for every framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from noether_core.accumulate import Partial
from noether_core.errors import NoetherError
from noether_core.reduce import Sums

VERSION = 1


class Loaded(NamedTuple):
    """Hold what `unpack` read."""

    partials: dict[str, Partial]
    reached: int | None
    position: tuple[int, int]
    steps: int
    matched: list[str]


def pack(
    partials: Mapping[str, Partial], reached: int | None, position: tuple[int, int], steps: int, matched: Sequence[str]
) -> dict[str, Any]:
    """Return a state dict: vectors with one element per key, the newest values beside them."""
    parts = list(partials.values())
    return {
        "version": VERSION,
        "keys": list(partials),
        "sums": {
            name: np.array(
                [getattr(part.sums, name) for part in parts], np.float64 if name in {"high", "low"} else np.int64
            )
            for name in Sums._fields
        },
        "elements": np.array([part.elements for part in parts], np.int64),
        "wide": np.array([part.wide for part in parts], bool),
        "last_update": np.array([part.last_update for part in parts], np.int64),
        "last": {key: part.last.copy() for key, part in partials.items() if part.last is not None},
        "reached": -1 if reached is None else reached,
        "position": list(position),
        "steps": steps,
        "matched": list(matched),
    }


def unpack(state: Any) -> Loaded:
    """Read a state dict.

    Raises:
        NoetherError: if it is of another form or version; the message says what is wrong.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        shown = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise NoetherError(
            f"got the state {shown}; expected what state_dict() of a TrackAdditionalOutputsCallback returned"
        )
    if int(state["version"]) != VERSION:
        raise NoetherError(
            f"the state has version {state['version']}; this version reads {VERSION}: upgrade the package"
        )
    try:
        return _unpack(state)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NoetherError(
            f"the state is incomplete or damaged ({error!r}); load what state_dict() returned"
        ) from error


def _unpack(state: Mapping[str, Any]) -> Loaded:
    keys = [str(key) for key in state["keys"]]
    vectors = [np.asarray(state["sums"][name]) for name in Sums._fields]
    rest = [np.asarray(state[name]) for name in ("elements", "wide", "last_update")]
    if any(vector.shape != (len(keys),) for vector in [*vectors, *rest]):
        raise ValueError(
            f"{len(keys)} keys, but vectors of shapes {sorted({vector.shape for vector in [*vectors, *rest]})}"
        )
    partials = {}
    for at, key in enumerate(keys):
        sums = Sums(*(vector[at] for vector in vectors))
        last = state["last"].get(key)
        elements, wide, last_update = (vector[at] for vector in rest)
        partials[key] = Partial(
            sums, int(elements), bool(wide), None if last is None else np.asarray(last), int(last_update)
        )
    reached, (update, step) = int(state["reached"]), state["position"]
    return Loaded(
        partials,
        None if reached < 0 else reached,
        (int(update), int(step)),
        int(state["steps"]),
        list(state["matched"]),
    )
