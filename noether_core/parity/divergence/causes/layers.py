"""Compute layers in NumPy in the ways that ports compute them, to ask which way leads from an input to an output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any

import ml_dtypes
import numpy as np

from noether_core.parity.divergence.causes.activations import ACTIVATIONS

Array = np.ndarray[Any, Any]

_MOST_OUTPUT = 2_000_000  # elements of a layer that is computed again
PRECISIONS = ("float32", "bfloat16", "TF32", "float16")
"""What the inputs of a product may be rounded to; its sums are in binary32."""


@dataclass(frozen=True)
class Way:
    """Name a way to compute an output.

    Attributes:
        kind: what layer it is: activation, linear, convolution, norm, pooling, reshaping, sum, dropout, attention, factor.
        options: by what each is called, what was chosen; two ways of a kind differ in these.
        output: what it computes.
        before: what was done to the input before, in order, by functions that are no activations of their own.
    """

    kind: str
    options: Mapping[str, str]
    output: Array = field(compare=False)
    before: tuple[Way, ...] = ()


def activations(x: Array, shape: tuple[int, ...], y: Array) -> Iterator[Way]:
    """Apply every activation function, and a leaky ReLU with the slope that fits."""
    if x.shape != shape:
        return
    for name, function in ACTIVATIONS.items():
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
    if weight.ndim != 2 or x.ndim < 1 or not shape or x.shape[:-1] != shape[:-1] or int(np.prod(shape)) > _MOST_OUTPUT:
        return
    for layout, matrix in (("as it is", weight.T), ("transposed", weight)):
        if matrix.shape != (x.shape[-1], shape[-1]):
            continue
        for precision in PRECISIONS:
            product = rounded(x, precision) @ rounded(matrix, precision)
            yield from biased("linear", {"weight": layout, "precision": precision}, product, bias, -1)


def biased(kind: str, options: Mapping[str, str], output: Array, bias: Array | None, axis: int) -> Iterator[Way]:
    """Yield an output without its bias, with it, and with it twice."""
    yield Way(kind, {**options, "bias": "none"}, output)
    if bias is not None and bias.ndim == 1 and bias.shape[0] == output.shape[axis]:
        row = bias if axis == -1 else bias.reshape(-1, *([1] * (output.ndim - 2)))
        yield Way(kind, {**options, "bias": "once"}, output + row)
        yield Way(kind, {**options, "bias": "twice"}, output + 2 * row)


def convolutions(x: Array, shape: tuple[int, ...], weight: Array, bias: Array | None) -> Iterator[Way]:
    """Convolve sequences, N × C × L, or images, N × C × H × W, in groups that the sizes say, with kernels turned in all ways.

    Strides, dilations and paddings are those that give the shape.
    """
    if not 3 <= x.ndim == weight.ndim == len(shape) <= 4 or int(np.prod(shape)) > _MOST_OUTPUT:
        return
    spatial = tuple(range(2, x.ndim))
    kernels = {
        "as it is": weight,
        "flipped": np.flip(weight, spatial),
        "with height and width exchanged": weight.swapaxes(-1, -2) if x.ndim == 4 else weight[:0],
        "with inputs and outputs exchanged": weight.swapaxes(0, 1),
    }
    groups = x.shape[1] // max(1, weight.shape[1])
    for layout, kernel in kernels.items():
        fits = kernel.shape[:2] == (shape[1], x.shape[1] // max(1, groups)) and shape[1] % max(1, groups) == 0
        if not fits or groups * kernel.shape[1] != x.shape[1] or (groups != 1 and layout.startswith("with inputs")):
            continue
        for words, padded, stride, dilation in _paddings(x, shape, kernel.shape[2:]):
            for precision in PRECISIONS if layout == "as it is" else PRECISIONS[:1]:
                values, turned = rounded(padded, precision), rounded(kernel, precision)
                output = convolved(values, turned, shape, stride, dilation, groups)
                if output is not None:
                    options = {"kernel": layout, "padding": words, "precision": precision}
                    yield from biased("convolution", options, output, bias, 1)


def convolved(x: Array, kernel: Array, shape: tuple[int, ...], stride: int, dilation: int, groups: int) -> Array | None:
    """Return a convolution of padded inputs; None where that has not the shape."""
    sizes = tuple((size - 1) * dilation + 1 for size in kernel.shape[2:])
    axes = tuple(range(2, x.ndim))
    if any(x.shape[axis] < size for axis, size in zip(axes, sizes, strict=True)):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(x, sizes, axis=axes)
    places = tuple(slice(0, length * stride, stride) for length in shape[2:])
    inner = tuple(slice(None, None, dilation) for _ in axes)
    windows = windows[(slice(None), slice(None), *places, *inner)]
    if windows.shape[2 : 2 + len(axes)] != tuple(shape[2:]):
        return None
    over = tuple(range(2 + len(axes), 2 + 2 * len(axes)))
    inputs, outputs = x.shape[1] // groups, kernel.shape[0] // groups
    parts = [
        np.tensordot(
            windows[:, group * inputs : (group + 1) * inputs],
            kernel[group * outputs : (group + 1) * outputs],
            axes=((1, *over), (1, *axes)),
        )
        for group in range(groups)
    ]
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)


def _paddings(x: Array, shape: tuple[int, ...], kernel: tuple[int, ...]) -> Iterator[tuple[str, Array, int, int]]:
    """Yield paddings, the same for all axes, with the strides and dilations that lead to the shape."""
    for stride, dilation in ((1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 4)):
        size = (kernel[0] - 1) * dilation + 1
        for before in range(size):
            for after in range(size):
                rows = (x.shape[2] + before + after - size) // stride + 1
                if rows != shape[2]:
                    continue
                sides = ((0, 0), (0, 0), *((before, after) for _ in kernel))
                for mode in ("constant", "edge", "reflect", "wrap") if before + after else ("constant",):
                    if mode == "constant" or max(before, after) < min(x.shape[2:]):
                        dilated = f", dilation {dilation}" if dilation > 1 else ""
                        words = f"{before} before and {after} after, {mode}, stride {stride}{dilated}"
                        yield words, np.pad(x, sides, mode=mode), stride, dilation


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
    if x.ndim in (3, 4) and len(shape) == x.ndim and x.shape[:2] == shape[:2]:
        yield from _windows(x, shape, kinds)


def _windows(x: Array, shape: tuple[int, ...], kinds: Mapping[str, Callable[..., Array]]) -> Iterator[Way]:
    """Pool windows, with and without padding, which a mean may count or not."""
    over_numbers: dict[str, Callable[..., Array]] = {"maximum": np.nanmax, "mean": np.nanmean, "sum": np.nansum}
    axes = tuple(range(2, x.ndim))
    for size in (2, 3, 4, 5):
        for stride, padding in product((1, 2, 3, 4), (0, 1, 2)):
            lengths = [(x.shape[axis] + 2 * padding - size) // stride + 1 for axis in axes]
            if lengths != list(shape[2:]) or 2 * padding > size or min(x.shape[2:]) < size:
                continue
            sides = ((0, 0), (0, 0), *((padding, padding) for _ in axes))
            windows = _strided(np.pad(x, sides, constant_values=np.nan), size, stride, axes)
            over = f"{size} by {stride}" + (f", padded by {padding}" if padding else "")
            inner = tuple(range(-len(axes), 0))
            for name in kinds:
                yield Way("pooling", {"kind": name, "over": over}, over_numbers[name](windows, axis=inner))
                if padding and name == "mean":
                    counted = np.nansum(windows, axis=inner) / size ** len(axes)
                    yield Way("pooling", {"kind": "mean that counts padding", "over": over}, counted)


def _strided(x: Array, size: int, stride: int, axes: tuple[int, ...]) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(x, (size,) * len(axes), axis=axes)
    return windows[(slice(None), slice(None), *(slice(None, None, stride) for _ in axes))]


def reshapings(x: Array, shape: tuple[int, ...]) -> Iterator[Way]:
    """Flatten axes in every order, the first one kept."""
    if x.size != int(np.prod(shape)) or not 2 < x.ndim <= 5:
        return
    for order in permutations(range(1, x.ndim)):
        yield Way("reshaping", {"order of axes": str((0, *order))}, x.transpose(0, *order).reshape(shape))
