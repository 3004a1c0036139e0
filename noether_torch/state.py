"""Turn a state into what a checkpoint holds, and back: tensors or JSON, never pickled objects."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from noether_core.reduce.state import damaged

_ARRAY = "base64"


class TensorState:
    """Give a state as tensors, which `torch.load` reads with `weights_only=True`; a mixin, named before the class."""

    def state_dict(self) -> dict[str, Any]:
        """Return the interval under way, and what else is needed to go on: tensors, numbers and strings."""
        return dict(as_tensors(super().state_dict()))  # type: ignore[misc]

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` returned, here or in another framework.

        Raises:
            NoetherError: for a state of another form.
        """
        try:
            arrays = as_arrays(state)
        except Exception as error:
            raise damaged(error) from error
        super().load_state_dict(arrays)  # type: ignore[misc]


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
    if isinstance(state, torch.Tensor):
        return convert(state.detach().cpu().numpy())
    if isinstance(state, np.ndarray):
        return convert(state)
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, Mapping):
        return {name: _each_array(value, convert) for name, value in state.items()}
    return [_each_array(value, convert) for value in state] if isinstance(state, list | tuple) else state
