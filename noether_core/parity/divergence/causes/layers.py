"""Compute layers in NumPy in the ways that ports compute them, to ask which way leads from an input to an output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np

from noether_core.parity.divergence.causes.activations import ACTIVATIONS

Array = np.ndarray[Any, Any]

_MOST_OUTPUT = 2_000_000  # elements of a layer that is computed again


@dataclass(frozen=True)
class Way:
    """Name a way to compute an output.

    Attributes:
        kind: what layer it is: activation, linear, convolution, norm, pooling, reshaping, sum, dropout, attention, factor.
        options: by what each is called, what was chosen; two ways of a kind differ in these.
        output: what it computes.
    """

    kind: str
    options: Mapping[str, str]
    output: Array


def activations(x: Array, shape: tuple[int, ...], y: Array) -> Iterator[Way]:
    """Apply every activation function, and a leaky ReLU with the slope that fits."""
    if x.shape != shape:
        return
    for name, function in ACTIVATIONS.items():
        with np.errstate(all="ignore"):
            yield Way("activation", {"function": name}, function(x))
    below = x < 0
    square = float((x[below] ** 2).sum())
    if square:
        slope = float((x[below] * y[below]).sum()) / square
        if 1e-4 < abs(slope) < 0.999:
            yield Way("activation", {"function": f"leaky ReLU with slope {slope:.4g}"}, np.where(below, slope * x, x))


def rounded(values: Array, precision: str) -> Array:
    """Round to a lower precision and back: `bfloat16`, `float16`, `TF32`, or not at all for any other name."""
    narrow = values.astype(np.float32)
    if precision == "bfloat16":
        return narrow.astype(ml_dtypes.bfloat16).astype(np.float64)
    if precision == "float16":
        return narrow.astype(np.float16).astype(np.float64)
    if precision == "TF32":
        bits = narrow.view(np.uint32)
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return values


def linears(x: Array, shape: tuple[int, ...], weight: Array, bias: Array | None) -> Iterator[Way]:
    """Multiply by a weight as it is or transposed, in several precisions, with its bias none, once or twice."""
    if weight.ndim != 2 or x.ndim < 1 or x.shape[:-1] != shape[:-1] or int(np.prod(shape)) > _MOST_OUTPUT:
        return
    for layout, matrix in (("as it is", weight.T), ("transposed", weight)):
        if matrix.shape != (x.shape[-1], shape[-1]):
            continue
        for precision in ("float32", "bfloat16", "float16", "TF32"):
            product = rounded(x, precision) @ rounded(matrix, precision)
            yield from _biased("linear", {"weight": layout, "precision": precision}, product, bias, -1)


def _biased(kind: str, options: Mapping[str, str], output: Array, bias: Array | None, axis: int) -> Iterator[Way]:
    yield Way(kind, {**options, "bias": "none"}, output)
    if bias is not None and bias.ndim == 1 and bias.shape[0] == output.shape[axis]:
        row = bias if axis == -1 else bias.reshape(-1, *([1] * (output.ndim - 2)))
        yield Way(kind, {**options, "bias": "once"}, output + row)
        yield Way(kind, {**options, "bias": "twice"}, output + 2 * row)


def convolutions(x: Array, shape: tuple[int, ...], weight: Array, bias: Array | None) -> Iterator[Way]:
    """Convolve images, N × C × H × W, with kernels turned in all ways, and strides and paddings that give the shape."""
    if x.ndim != 4 or weight.ndim != 4 or len(shape) != 4 or int(np.prod(shape)) > _MOST_OUTPUT:
        return
    kernels = {
        "as it is": weight,
        "flipped": weight[:, :, ::-1, ::-1],
        "with height and width exchanged": weight.swapaxes(2, 3),
        "with inputs and outputs exchanged": weight.swapaxes(0, 1),
    }
    groups = x.shape[1] // max(1, weight.shape[1])
    for layout, kernel in kernels.items():
        if groups != 1 or kernel.shape[:2] != (shape[1], x.shape[1]):
            continue
        for words, padded, stride in _paddings(x, shape, kernel.shape[2]):
            windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(2, 3))
            windows = windows[:, :, ::stride, ::stride][:, :, : shape[2], : shape[3]]
            if windows.shape[2:4] == shape[2:4]:
                output = np.moveaxis(np.tensordot(windows, kernel, axes=((1, 4, 5), (1, 2, 3))), -1, 1)
                yield from _biased("convolution", {"kernel": layout, "padding": words}, output, bias, 1)


def _paddings(x: Array, shape: tuple[int, ...], size: int) -> Iterator[tuple[str, Array, int]]:
    for stride in (1, 2, 3, 4):
        for before in range(size):
            for after in range(size):
                rows = (x.shape[2] + before + after - size) // stride + 1
                if rows != shape[2]:
                    continue
                sides = ((0, 0), (0, 0), (before, after), (before, after))
                for mode in ("constant", "edge", "reflect", "wrap") if before + after else ("constant",):
                    if mode == "constant" or max(before, after) < min(x.shape[2:]):
                        words = f"{before} before and {after} after, {mode}, stride {stride}"
                        yield words, np.pad(x, sides, mode=mode), stride


def poolings(x: Array, shape: tuple[int, ...]) -> Iterator[Way]:
    """Pool images' windows, or whole axes, by their maximum, mean or sum; choose the first or last of a sequence."""
    kinds: dict[str, Callable[..., Array]] = {"maximum": np.max, "mean": np.mean, "sum": np.sum}
    for axes in ((1,), (2, 3), (1, 2), (2,), (-1,)):
        if x.ndim > max(axes) and x.ndim >= 2:
            for name, reduce in kinds.items():
                output = reduce(x, axis=axes)
                if output.size == int(np.prod(shape)) and output.size < x.size:
                    yield Way("pooling", {"kind": name, "over": str(axes)}, output.reshape(shape))
    if x.ndim == 3 and shape == (x.shape[0], x.shape[2]):
        yield Way("pooling", {"kind": "first", "over": "(1,)"}, x[:, 0])
        yield Way("pooling", {"kind": "last", "over": "(1,)"}, x[:, -1])
    if x.ndim == 4 and len(shape) == 4 and x.shape[:2] == shape[:2]:
        yield from _windows(x, shape, kinds)


def _windows(x: Array, shape: tuple[int, ...], kinds: Mapping[str, Callable[..., Array]]) -> Iterator[Way]:
    for size in (2, 3):
        for stride in (1, 2, 3):
            windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
            for name, reduce in kinds.items():
                if windows.shape[:4] == shape:
                    yield Way(
                        "pooling",
                        {"kind": name, "over": f"{size} × {size}, stride {stride}"},
                        reduce(windows, axis=(-1, -2)),
                    )


def reshapings(x: Array, shape: tuple[int, ...]) -> Iterator[Way]:
    """Flatten axes in every order, the first one kept."""
    if x.size != int(np.prod(shape)) or not 2 < x.ndim <= 5:
        return
    for order in permutations(range(1, x.ndim)):
        yield Way("reshaping", {"order of axes": str((0, *order))}, x.transpose(0, *order).reshape(shape))
