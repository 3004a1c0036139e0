"""Compute transposed convolutions in the ways that ports compute them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.layers import Way, biased, convolved

Array = np.ndarray[Any, Any]

_MOST_OUTPUT = 500_000


def transposed_convolutions(x: Array, shape: tuple[int, ...], weight: Array, bias: Array | None) -> Iterator[Way]:
    """Convolve the other way, a kernel of inputs × outputs × sizes, with the strides and paddings that give the shape.

    Each side loses some of what the kernel adds: the same at both, or one more or less, as JAX's `SAME` has it.
    """
    if not 3 <= x.ndim == weight.ndim == len(shape) <= 4 or int(np.prod(shape)) > _MOST_OUTPUT:
        return
    if weight.shape[0] != x.shape[1] or weight.shape[1] != shape[1]:
        return
    spatial = tuple(range(2, x.ndim))
    turned = {"as it is": np.flip(weight, spatial), "flipped": weight}
    size = weight.shape[2]
    for stride in (1, 2, 3, 4):
        spread = _spread(x, stride)
        for before, after in product(range(size + stride), repeat=2):
            if spread.shape[2] + before + after - size + 1 != shape[2]:
                continue
            padded = np.pad(spread, ((0, 0), (0, 0), *((before, after) for _ in spatial)))
            for layout, kernel in turned.items():
                output = convolved(padded, kernel.swapaxes(0, 1), shape, 1, 1, 1)
                if output is not None:
                    cut = f"{size - 1 - before} cut before and {size - 1 - after} after, stride {stride}"
                    options = {"kernel": layout, "padding": cut, "precision": "float32"}
                    yield from biased("convolution", options, output, bias, 1)


def _spread(x: Array, stride: int) -> Array:
    """Return an array with zeros between its elements along all axes but the first two."""
    if stride == 1:
        return x
    sizes = [(length - 1) * stride + 1 for length in x.shape[2:]]
    spread = np.zeros((*x.shape[:2], *sizes))
    spread[(slice(None), slice(None), *(slice(None, None, stride) for _ in sizes))] = x
    return spread
