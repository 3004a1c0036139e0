"""List activation functions, to ask which of them leads from a layer's input to its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, x))


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))


def _selu(x: Array) -> Array:
    scale, alpha = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "the identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0.0),
    "ReLU6": lambda x: np.clip(x, 0.0, 6.0),
    "GELU (erf)": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "GELU (tanh)": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "GELU (sigmoid)": lambda x: x * _sigmoid(1.702 * x),
    "SiLU": lambda x: x * _sigmoid(x),
    "ELU": _elu,
    "SELU": _selu,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "hard swish": lambda x: x * np.clip(x + 3, 0.0, 6.0) / 6,
    "hard sigmoid": lambda x: np.clip(x + 3, 0.0, 6.0) / 6,
    "hard tanh": lambda x: np.clip(x, -1.0, 1.0),
    "squared ReLU": lambda x: np.maximum(x, 0.0) ** 2,
    "the absolute value": np.abs,
    "the sine": np.sin,
    "log softmax": lambda x: (
        x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    ),
    "softmax": lambda x: (
        np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
}
"""Functions by what they are called. GELU: Hendrycks and Gimpel 2016, equations 2 and 3 for the approximations."""
