"""Draw arrays of any bits, dtype and shape: signaling NaN, NaN that carry something, infinities, subnormals, both zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from noether_core.parity.divergence import MemoryTraining

Array = np.ndarray[Any, Any]

INTS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
COMPLEX = ("complex64", "complex128")
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (0,),
    (0, 3),
    (1,),
    (6,),
    (5, 4),
    (4, 5),
    (2, 3, 3, 3),
    (1, 2, 1, 2, 1, 2, 1),
)
_MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}  # bits


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def patterns(name: str) -> Array:
    """Return elements of a dtype with the bits that matter: all there are of a byte."""
    dtype = dtype_of(name)
    if dtype.kind == "c":
        parts = patterns("float32" if dtype.itemsize == 8 else "float64")
        return parts[: len(parts) // 2 * 2].view(dtype)
    if dtype.kind == "b":
        return np.array([False, True])
    bits = 8 * dtype.itemsize
    found = set(range(256)) if bits == 8 else {0, 1, 2, 2 ** (bits - 1) - 1, 2 ** (bits - 1) + 1, 2**bits - 1}
    if mantissa := _MANTISSA.get(name, 0):
        infinity, quiet = (2 ** (bits - 1 - mantissa) - 1) << mantissa, 1 << (mantissa - 1)
        own = {infinity, infinity | 1, infinity | quiet, infinity | quiet | 3, infinity - 1, 1 << mantissa, 1, 0}
        found |= own | {each | 2 ** (bits - 1) for each in own}
    return np.array(sorted(found), f"u{dtype.itemsize}").view(dtype)


def sprinkled(generator: np.random.Generator, plain: Array, name: str, share: float) -> Array:
    """Return numbers in a dtype, a share of them with bits that matter."""
    with np.errstate(all="ignore"):
        values = np.array(np.asarray(plain).astype(dtype_of(name))).reshape(-1)
    chosen = generator.random(values.size) < share
    odd = patterns(name)
    values[chosen] = odd[generator.integers(len(odd), size=int(chosen.sum()))]
    return values.reshape(np.shape(plain))


def any_array(generator: np.random.Generator, name: str) -> Array:
    shape = SHAPES[generator.integers(len(SHAPES))]
    return sprinkled(generator, generator.standard_normal(shape), name, float(generator.choice([0.0, 0.1, 1.0])))


def same_bits(first: Array, second: Array) -> bool:
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


# ---------------------------------------------------------------------- trainings that may have gone wrong

_PARAMETERS: Mapping[str, tuple[int, ...]] = {
    "l.weight": (5, 4),
    "l.bias": (5,),
    "norm.weight": (5,),
    "out.weight": (3, 5),
    "conv.weight": (2, 3, 3, 3),
    "scale": (),
}


def _step(generator: np.random.Generator, update: int, rows: int, params: dict[str, Array]) -> dict[str, Any]:
    normal = generator.standard_normal
    x = normal((rows, 4))
    hidden = x @ params["l.weight"].T + params["l.bias"]
    found = {"data/x": x, "data/y": generator.integers(0, 3, rows), "data/image": normal((rows, 3, 5, 5))}
    found |= {f"param/{name}": value for name, value in params.items()}
    found |= {
        "act/l": hidden,
        "act/relu": np.maximum(hidden, 0),
        "act/out": np.maximum(hidden, 0) @ params["out.weight"].T,
    }
    found |= {"loss/first": normal(), "loss/total": normal()}
    for name, shape in _PARAMETERS.items():
        grad = normal(shape)
        found |= {f"grad/{name}": grad, f"clip/{name}": grad / 2, f"update/{name}": -0.1 * grad}
        found |= {f"opt/mu/{name}": 0.1 * grad, f"opt/nu/{name}": 0.01 * grad**2}
    return found | {
        "opt/norm.running_mean": normal(5),
        "opt/norm.running_var": generator.random(5),
        "opt/count": update,
    }


def training_of(seed: int, name: str, share: float, updates: int = 3) -> MemoryTraining:
    """Return a training of which about half of the arrays have a share of odd bits."""
    generator = np.random.default_rng(seed)
    rows = int(generator.choice([0, 1, 6, 6, 6]))
    params = {each: generator.standard_normal(shape) for each, shape in _PARAMETERS.items()}
    arrays = {}
    for update in range(1, updates + 1):
        step = _step(generator, update, rows, params)
        params = {each: value + step[f"update/{each}"] for each, value in params.items()}
        arrays[update] = {
            key: sprinkled(generator, value, name, share if generator.random() < 0.5 else 0.0)
            for key, value in step.items()
        }
    return MemoryTraining("a", "torch", arrays)


def _changed(generator: np.random.Generator, array: Array, change: str) -> Array:
    turned = {
        "flipped": lambda: np.flip(array).copy(),
        "transposed": lambda: array.T.copy(),
        "flat": lambda: array.reshape(-1),
        "zeros": lambda: np.zeros_like(array),
        "emptied": lambda: array.reshape(-1)[:0],
        "other": lambda: any_array(generator, array.dtype.name),
        "odd": lambda: sprinkled(generator, np.zeros(array.shape), array.dtype.name, 0.5),
        "one bit pattern": lambda: np.full_like(array, generator.choice(patterns(array.dtype.name))),
    }
    if change in turned:
        return turned[change]()
    wide = array.astype(np.float64) if array.dtype.kind != "c" else array
    scaled: Array = wide * {"scaled": 1.5, "negated": -1.0, "huge": 1e30}[change]
    return scaled.astype(array.dtype)


CHANGES = (
    *(
        "flipped",
        "transposed",
        "flat",
        "zeros",
        "emptied",
        "other",
        "odd",
        "one bit pattern",
        "scaled",
        "negated",
        "huge",
    ),
    "removed",
)


def changed(training: MemoryTraining, seed: int, stage: str, change: str) -> MemoryTraining:
    """Return a training with most arrays of one stage changed, from some update on."""
    generator = np.random.default_rng(seed)
    first = int(generator.integers(1, len(training.arrays) + 1))
    arrays = {update: dict(keys) for update, keys in training.arrays.items()}
    for update, keys in arrays.items():
        for key in [each for each in keys if each.startswith(stage + "/") and update >= first]:
            if change == "removed":
                del keys[key]
            elif generator.random() < 0.7:
                with np.errstate(all="ignore"):
                    keys[key] = _changed(generator, keys[key], change)
    return MemoryTraining("b", "jax", arrays)


SEEDS = st.integers(0, 2**32 - 1)
NAMES = st.sampled_from((*INTS, *FLOATS, *FLOATS, *COMPLEX))
