"""List the ways the algebra can be run: each `ops` with how arrays get in and out, for the tests of its laws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import torch

import noether_jax
import noether_torch
from noether_core.algebra.lift import is_small, lift, statistics_of, summarise
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.sums import Fields, Statistics, each, empty, merge
from noether_jax.binary32 import BINARY32, BINARY64
from noether_jax.ops import JaxOps
from noether_jax.rows import lift_step_arrays
from noether_torch.ops import TorchOps

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Library:
    """Hold an `ops`, how its arrays are made of NumPy's and brought back, and how its functions are compiled."""

    name: str
    ops: Any
    from_numpy: Callable[[Any], Any]
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function

    @property
    def float_dtype(self) -> Any:
        return np.float32 if self.ops.parts == 4 else np.float64

    def __repr__(self) -> str:
        return self.name

    def call(self, function: Callable[..., Any], *arrays: Host) -> Any:
        """Return what a function of `(ops, *arrays)` gives for NumPy arrays, as NumPy arrays."""
        with self.scope(), np.errstate(over="ignore", invalid="ignore"):
            result = _compiled(self, function)(*(self.from_numpy(array) for array in arrays))
            return jax.tree.map(np.asarray, result)  # torch's tensors are leaves that NumPy reads

    def place(self, code: Any) -> Host:
        return np.asarray(code, np.int64)


@cache
def _compiled(library: Library, function: Callable[..., Any]) -> Callable[..., Any]:
    return library.compiled(lambda *arrays: function(library.ops, *arrays))


def x64() -> AbstractContextManager[Any]:
    return jax.enable_x64(True)


JAX = noether_jax.Run.backend
LIBRARIES = (
    Library("numpy", NUMPY, np.asarray),
    Library("torch", TorchOps(), noether_torch.Run.backend.from_numpy, torch.inference_mode),
    Library("jax64", BINARY64, JAX.from_numpy, x64, jax.jit),
    Library("jax32", BINARY32, JAX.from_numpy, x64, jax.jit),
)


# ---------------------------------------------------------------------- the algebra's functions, one object per setting


@cache
def lifting(fields: Fields) -> Callable[..., Statistics]:
    return lambda ops, values, codes, *weights: lift(ops, values, codes, fields, *weights)


@cache
def lifting_array(fields: Fields) -> Callable[..., Statistics]:
    def lifted(ops: Any, values: Any, code: Any, *weights: Any) -> Statistics:
        if isinstance(ops, JaxOps):
            return lift_step_arrays(ops, [values], weights[0] if weights else None, code, fields)
        if len(values) == 0:
            return empty(ops, fields, 1, code)
        if is_small(len(values)):
            return ops.fold(lift(ops, values[:, None], code, fields, *(weight[:, None] for weight in weights)))
        # as `EagerKernels` does it: single numbers may be Python's until many are stacked
        read = summarise(ops, values, lambda: code, fields, *weights)
        numbers = each(lambda part: ops.full((1,), part, values) if isinstance(part, float | int) else part, read)
        return statistics_of(ops, numbers, fields)

    return lifted


@cache
def identity_of(slots: int, fields: Fields) -> Callable[..., Statistics]:
    return lambda ops, like: empty(ops, fields, slots, like)


def merged(library: Library, a: Statistics, b: Statistics) -> Statistics:
    form = jax.tree.structure(a)
    leaves = library.call(_merging(form), *jax.tree.leaves(a), *jax.tree.leaves(b))
    total: Statistics = leaves
    return total


@cache
def _merging(form: Any) -> Callable[..., Statistics]:
    count = form.num_leaves
    return lambda ops, *leaves: merge(ops, form.unflatten(leaves[:count]), form.unflatten(leaves[count:]))


def folded(library: Library, sums: Statistics) -> Statistics:
    form = jax.tree.structure(sums)
    total: Statistics = library.call(_folding(form), *jax.tree.leaves(sums))
    return total


@cache
def _folding(form: Any) -> Callable[..., Statistics]:
    return lambda ops, *leaves: ops.fold(form.unflatten(leaves))


def row(sums: Statistics, at: int) -> Statistics:
    return each(lambda array: array[at], sums)
