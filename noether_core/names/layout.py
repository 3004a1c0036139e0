"""Lay out Flax's arrays as PyTorch's, and back, by reshaping, reversing and transposing only.

So the same lines serve NumPy's arrays, JAX's, and the values inside of a compiled function. The conventions are those that
`flax.linen` and `flax.nnx` document for each layer, and `torch.nn` for its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Say how an array of Flax becomes one of PyTorch.

    Attributes:
        stored: its shape in Flax.
        split: the shape that it is given first, of as many elements.
        axes: which axis of `split` each axis of PyTorch's is; several of them may make one.
        shape: its shape in PyTorch.
        reversed_axes: the axes of `split` that run the other way.

    >>> import numpy as np
    >>> kernel = np.arange(6).reshape(2, 3)  # (in, out)
    >>> linear((2, 3)).to_torch(kernel).tolist()
    [[0, 3], [1, 4], [2, 5]]
    >>> bool((linear((2, 3)).to_flax(linear((2, 3)).to_torch(kernel)) == kernel).all())
    True
    """

    stored: Shape
    split: Shape
    axes: Shape
    shape: Shape
    reversed_axes: Shape = ()

    def to_torch(self, array: Any) -> Any:
        """Return an array of the shape `stored` in the shape `shape`."""
        return self._reversed(array.reshape(self.split)).transpose(self.axes).reshape(self.shape)

    def to_flax(self, array: Any) -> Any:
        """Return an array of the shape `shape` in the shape `stored`: what `to_torch` undoes."""
        moved = array.reshape(tuple(self.split[axis] for axis in self.axes))
        back = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return self._reversed(moved.transpose(back)).reshape(self.stored)

    def _reversed(self, array: Any) -> Any:
        if not self.reversed_axes:
            return array
        return array[tuple(slice(None, None, -1 if axis in self.reversed_axes else 1) for axis in range(array.ndim))]


def same(shape: Sequence[int], torch_shape: Sequence[int] | None = None) -> Layout:
    """Return the layout of what both keep alike, but for axes of one element that only one of them has.

    >>> same((), (1,)).shape
    (1,)
    """
    shape = tuple(shape)
    return Layout(shape, shape, tuple(range(len(shape))), shape if torch_shape is None else tuple(torch_shape))


def flat(shape: Sequence[int], batch: int = 0) -> Layout:
    """Return the layout of a bias `(batch…, out…)` as `(batch…, out)`.

    >>> flat((4, 2)).shape
    (8,)
    """
    return same(shape, (*shape[:batch], math.prod(shape[batch:])))


def linear(shape: Sequence[int], inputs: int = 1, batch: int = 0) -> Layout:
    """Return the layout of a kernel `(batch…, in…, out…)` as a weight `(batch…, out, in)`.

    Args:
        shape: the kernel's.
        inputs: how many of its axes are input features: one in `Dense`, more in `DenseGeneral` and `LinearGeneral`.
        batch: how many axes before them are not contracted.

    >>> linear((4, 2, 8), inputs=2).shape  # what an attention's `out` has: heads, features of each, out
    (8, 8)
    """
    shape = tuple(shape)
    ins, outs = tuple(range(batch, batch + inputs)), tuple(range(batch + inputs, len(shape)))
    return contraction(shape, outs, ins, tuple(range(batch)))


def contraction(shape: Sequence[int], outs: Shape, ins: Shape, batch: Shape = ()) -> Layout:
    """Return the layout of a kernel, such as `Einsum`'s, as a weight `(batch…, out, in)`, given which axes are which.

    >>> contraction((8, 2, 4), outs=(0, 2), ins=(1,)).shape  # nta,hab->nthb
    (32, 2)
    """
    shape = tuple(shape)
    features = math.prod(shape[axis] for axis in outs), math.prod(shape[axis] for axis in ins)
    return Layout(shape, shape, (*batch, *outs, *ins), (*(shape[axis] for axis in batch), *features))


def flattened(shape: Sequence[int], channels: int) -> Layout:
    """Return the layout of a linear kernel whose inputs are a flattened image: channels last in Flax, first in PyTorch.

    >>> flattened((12, 5), channels=3).split
    (4, 3, 5)
    """
    features, outs = shape
    return Layout((features, outs), (features // channels, channels, outs), (2, 1, 0), (outs, features))


def convolution(shape: Sequence[int]) -> Layout:
    """Return the layout of a kernel `(space…, in / groups, out)` as a weight `(out, in / groups, space…)`.

    >>> convolution((3, 5, 4, 8)).shape
    (8, 4, 3, 5)
    """
    shape = tuple(shape)
    space = len(shape) - 2
    axes = (space + 1, space, *range(space))
    return Layout(shape, shape, axes, tuple(shape[axis] for axis in axes))


def transposed_convolution(shape: Sequence[int], transpose_kernel: bool = False) -> Layout:
    """Return the layout of a transposed convolution's kernel as a weight `(in, out, space…)`.

    PyTorch's is the gradient of a convolution, so its kernel runs backwards over the stretched input. Flax's does so only
    with `transpose_kernel`, where it is `(space…, out, in)`; otherwise it is `(space…, in, out)` and runs forwards
    (`jax.lax.conv_transpose`).

    >>> transposed_convolution((3, 4, 8)).shape, transposed_convolution((3, 8, 4), transpose_kernel=True).shape
    ((4, 8, 3), (4, 8, 3))
    """
    shape = tuple(shape)
    space = len(shape) - 2
    first, second = (space + 1, space) if transpose_kernel else (space, space + 1)
    axes = (first, second, *range(space))
    flips = () if transpose_kernel else tuple(range(space))
    return Layout(shape, shape, axes, tuple(shape[axis] for axis in axes), flips)


def channels_first(shape: Sequence[int]) -> Layout:
    """Return the layout of an array of images without a batch, `(space…, channels)`, as `(channels, space…)`.

    >>> channels_first((28, 30, 3)).shape
    (3, 28, 30)
    """
    shape = tuple(shape)
    axes = (len(shape) - 1, *range(len(shape) - 1))
    return Layout(shape, shape, axes, tuple(shape[axis] for axis in axes))


def images_to_torch(array: Any) -> Any:
    """Return a batch of a convolution's inputs or outputs, `(batch, space…, channels)`, as `(batch, channels, space…)`.

    An array of fewer than three axes has no space, and stays as it is.

    >>> import numpy as np
    >>> images_to_torch(np.zeros((2, 28, 30, 3))).shape
    (2, 3, 28, 30)
    """
    last = array.ndim - 1
    return array if last < 2 else array.transpose((0, last, *range(1, last)))


def images_to_flax(array: Any) -> Any:
    """Return a batch `(batch, channels, space…)` as `(batch, space…, channels)`: what `images_to_torch` undoes.

    >>> import numpy as np
    >>> images_to_flax(np.zeros((2, 3, 28, 30))).shape
    (2, 28, 30, 3)
    """
    return array if array.ndim < 3 else array.transpose((0, *range(2, array.ndim), 1))
