"""Turn arrays from PyTorch's layouts, which all records have, to JAX's and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

OIHW_TO_HWIO, HWIO_TO_OIHW = (2, 3, 1, 0), (3, 2, 0, 1)
NCHW_TO_NHWC, NHWC_TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def weights_to_jax(weights: Mapping[str, Any], embeddings: Collection[str]) -> dict[str, Any]:
    """Return matrices as (inputs, outputs) and convolution kernels as HWIO; an embedding is (entries, features) in both.

    What stands before a slash, such as the moment in `mu/fc.weight`, does not matter.
    """
    return {name: _weight(value, name, embeddings, OIHW_TO_HWIO) for name, value in weights.items()}


def weights_to_torch(weights: Mapping[str, Any], embeddings: Collection[str]) -> Arrays:
    """Return matrices as (outputs, inputs) and convolution kernels as OIHW, in NumPy."""
    return {name: _weight(np.asarray(value), name, embeddings, HWIO_TO_OIHW) for name, value in weights.items()}


def _weight(value: Any, name: str, embeddings: Collection[str], convolution: tuple[int, ...]) -> Any:
    if value.ndim == 4:
        return value.transpose(convolution)
    return value.T if value.ndim == 2 and name.rpartition("/")[2] not in embeddings else value


def images_to_jax(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has four axes as NHWC."""
    return {name: value.transpose(NCHW_TO_NHWC) if value.ndim == 4 else value for name, value in values.items()}


def images_to_torch(values: Mapping[str, Any]) -> Arrays:
    """Return what has four axes as NCHW, in NumPy."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    return {name: value.transpose(NHWC_TO_NCHW) if value.ndim == 4 else value for name, value in arrays.items()}
