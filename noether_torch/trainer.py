"""Share what trainers' bridges need: their log as a tracker, and a run's state as tensors or JSON, never pickled objects."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from noether_core.emit.trackers import Tracker
from noether_core.schedule import UNITS

_ARRAY = "base64"


class TrainerLog(Tracker):
    """Give the numbers of each entry to a function, with the update they belong to; the trainer closes what is behind it."""

    inline = True  # on the training thread, at the update's own step: a trainer's log is not made for another thread

    def __init__(self, log: Callable[[dict[str, Any], int], object]) -> None:
        self._log = log

    def log(self, entry: Mapping[str, Any]) -> None:
        """Give an entry's numbers."""
        numbers = {key: value for key, value in entry.items() if key not in UNITS and isinstance(value, int | float)}
        self._log(numbers, entry["update"])

    def close(self) -> None:
        """Do nothing."""


def as_tensors(state: Any) -> Any:
    """Return a state with tensors for arrays, which `torch.load` reads with `weights_only=True`.

    >>> as_tensors({"count": np.array([1, 2])})
    {'count': tensor([1, 2])}
    """
    return _each_array(state, torch.tensor)


def as_json(state: Any) -> Any:
    """Return a state with arrays as their dtype, shape and bits, so that JSON keeps every bit of them.

    >>> as_json({"count": np.array([1], "uint8")})
    {'count': {'dtype': 'uint8', 'shape': [1], 'base64': 'AQ=='}}
    """
    return _each_array(
        state,
        lambda array: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            _ARRAY: base64.b64encode(array.tobytes()).decode("ascii"),
        },
    )


def as_arrays(state: Any) -> Any:
    """Return what `as_tensors` or `as_json` was given."""
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy()
    if isinstance(state, Mapping):
        if _ARRAY in state:
            values = np.frombuffer(base64.b64decode(state[_ARRAY]), state["dtype"])
            return values.reshape(state["shape"]).copy()
        return {name: as_arrays(value) for name, value in state.items()}
    return [as_arrays(value) for value in state] if isinstance(state, list | tuple) else state


def _each_array(state: Any, convert: Callable[[np.ndarray[Any, Any]], Any]) -> Any:
    if isinstance(state, np.ndarray):
        return convert(state)
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, Mapping):
        return {name: _each_array(value, convert) for name, value in state.items()}
    return [_each_array(value, convert) for value in state] if isinstance(state, list | tuple) else state
