"""Let `flax.serialization`, and what saves with it, save and restore our states, where the user has loaded flax."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from noether_jax.tracker_state import OutputTrackerState, other_state

Names = tuple[str, ...]


def make_serializable(kind: type[Any], *names: str) -> None:
    """Register a dataclass of ours with flax, if flax is loaded: it then saves the fields of these names."""
    serialization = sys.modules.get("flax.serialization")
    if serialization is not None:
        serialization.register_serialization_state(kind, *_functions(serialization, names), override=True)


def _functions(serialization: Any, names: Names) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    def to_state_dict(held: Any) -> dict[str, Any]:
        return {name: serialization.to_state_dict(getattr(held, name)) for name in names}

    def from_state_dict(target: Any, state: Any) -> Any:
        if not isinstance(state, Mapping) or set(state) != set(names):
            shown = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise other_state(f"it has {shown}, expected {sorted(names)}")
        if isinstance(target, OutputTrackerState):
            _check(target, state)
        elif len(state["windows"]) != len(target.windows):
            raise other_state(f"it has {len(state['windows'])} windows, expected {len(target.windows)}")
        restored = {name: serialization.from_state_dict(getattr(target, name), state[name]) for name in names}
        return replace(target, **restored)

    return to_state_dict, from_state_dict


def _check(target: OutputTrackerState, state: Mapping[str, Any]) -> None:
    """Refuse arrays of other shapes, or of other slots, than the state's in whose place they are to be."""
    arrays = [("words", target.words, state["words"]), ("step", target.step, state["step"])]
    arrays += [
        (f"last[{key!r}]", target.last.get(key), state["last"].get(key)) for key in {*target.last, *state["last"]}
    ]
    for name, wanted, found in arrays:
        if wanted is None or found is None or np.shape(found) != wanted.shape:
            shown = "none" if wanted is None else wanted.shape
            raise other_state(f"its {name} has shape {np.shape(found)}, expected {shown}")
    words = target.words  # may be a jax.ShapeDtypeStruct, or lie on other processes' devices too
    if hasattr(words, "__array__") and getattr(words, "is_fully_addressable", True):
        wanted, found = (np.asarray(words)[..., -1, :, :] for words in (target.words, state["words"]))
        if not np.array_equal(wanted, found):
            raise other_state("its slots are of other outputs")
