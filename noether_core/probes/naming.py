"""Name and lay out Flax's parameters as PyTorch does, by rules on the last part of a name alone.

For what these rules do not know (attention, recurrent cells, names of another model), give `probe` the `names` that you have.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

Names = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_RENAMED = {"kernel": "weight", "embedding": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_names(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return Flax's parameters, by dotted name, under PyTorch's names and in its layout.

    A `kernel`, a `scale` and an `embedding` are a `weight`; `mean` and `var` are running ones. A kernel of two axes is
    transposed; of one with more, as of convolutions, the last two axes, inputs and outputs, come first, the outputs before.
    Where two arrays of a module would have one name, a `kernel` gets it before an `embedding`, and that before a `scale`; the
    other keeps its own.

    Args:
        arrays: NumPy's, JAX's, or traced ones.

    >>> import numpy as np
    >>> {name: array.shape for name, array in torch_names({"conv.kernel": np.zeros((3, 5, 2, 8))}).items()}
    {'conv.weight': (8, 2, 3, 5)}
    >>> list(torch_names({"m.scale": np.zeros(8), "m.kernel": np.zeros((2, 8))}))
    ['m.scale', 'm.weight']
    """
    return {_renamed(name, arrays): _laid_out(name, array) for name, array in arrays.items()}


def _renamed(name: str, taken: Container[str]) -> str:
    prefix, dot, last = name.rpartition(".")
    found = _RENAMED.get(last)
    if found is None:
        return name
    before = [found, *(each for each in list(_RENAMED)[: list(_RENAMED).index(last)] if _RENAMED[each] == found)]
    return name if any(prefix + dot + each in taken for each in before) else prefix + dot + found


def _laid_out(name: str, array: Any) -> Any:
    if name.rpartition(".")[2] != "kernel" or array.ndim < 2:
        return array
    last = array.ndim - 1
    return array.transpose(last, last - 1, *range(last - 1))


def channels_first(array: Any) -> Any:
    """Return an array of four or five axes, such as images as Flax has them, with its last axis second; others as they are.

    >>> import numpy as np
    >>> channels_first(np.zeros((2, 28, 30, 3))).shape
    (2, 3, 28, 30)
    """
    if getattr(array, "ndim", 0) not in (4, 5):
        return array
    return array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))
