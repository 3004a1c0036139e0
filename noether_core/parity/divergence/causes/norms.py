"""Ask of a norm's input and output over which axes it was taken, with which statistics and which epsilon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.layers import Way

Array = np.ndarray[Any, Any]


def norms(
    x: Array, y: Array, weight: Array | None, bias: Array | None, running: tuple[Array, Array] | None
) -> Iterator[Way]:
    """Normalize over the axes that norms are taken over, with the epsilon that fits the output best.

    Args:
        x: the input.
        y: the output, of the same shape.
        weight: of each channel or feature, or None.
        bias: likewise.
        running: means and variances of the channels that were kept, or None.
    """
    if x.shape != y.shape or x.ndim < 2:
        return
    for axis in dict.fromkeys((1, x.ndim - 1)):
        size = x.shape[axis]
        if weight is not None and weight.shape != (size,):
            continue
        row = [1] * x.ndim
        row[axis] = size
        gain = np.ones(row) if weight is None else weight.reshape(row)
        shift = np.zeros(row) if bias is None or bias.shape != (size,) else bias.reshape(row)
        for name, mean, square, spread in _statistics(x, axis, running):
            yield from _fitted(name, x - mean, square, y, gain, shift)
            if spread is not None:
                yield from _fitted(f"{name}, unbiased variance", x - mean, spread, y, gain, shift)


def _statistics(
    x: Array, axis: int, running: tuple[Array, Array] | None
) -> Iterator[tuple[str, Array, Array, Array | None]]:
    """Yield what each norm subtracts, and the square it divides by the root of; its unbiased estimate too."""
    others = tuple(each for each in range(x.ndim) if each != axis)
    after = tuple(range(1, x.ndim))
    over = {"each row's features": (axis,), "all but channels (a batch norm)": others}
    if x.ndim > 2:
        over["all of a row"] = after
        over["a channel of a row"] = tuple(each for each in after if each != axis)
    for name, axes in over.items():
        count = int(np.prod([x.shape[each] for each in axes]))
        if count < 2:
            continue
        square = x.var(axis=axes, keepdims=True)
        yield f"mean and variance over {name}", x.mean(axis=axes, keepdims=True), square, square * count / (count - 1)
        yield f"the root mean square over {name}", np.zeros(1), (x**2).mean(axis=axes, keepdims=True), None
    yield from _of_groups(x, axis)
    if running is not None and running[0].shape == (x.shape[axis],):
        row = [1] * x.ndim
        row[axis] = -1
        yield "running statistics", running[0].reshape(row), running[1].reshape(row), None


def _of_groups(x: Array, axis: int) -> Iterator[tuple[str, Array, Array, Array | None]]:
    """Yield the statistics of groups of channels. Source: Wu and He 2018, Group Normalization."""
    channels = x.shape[axis]
    moved = np.moveaxis(x, axis, 1)
    for groups in (2, 4, 8, 16, 32):
        if channels % groups or channels == groups:
            continue
        split = moved.reshape(x.shape[0], groups, -1)
        parts = []
        for part in (split.mean(axis=-1), split.var(axis=-1)):
            wide = np.repeat(part, channels // groups, axis=1).reshape(x.shape[0], channels, *([1] * (x.ndim - 2)))
            parts.append(np.moveaxis(wide, 1, axis))
        yield f"mean and variance over {groups} groups", parts[0], parts[1], None


def _fitted(name: str, centred: Array, square: Array, y: Array, gain: Array, shift: Array) -> Iterator[Way]:
    """Solve for epsilon: the output is centred · gain / √(square + epsilon) + shift."""
    basis = np.broadcast_to(centred * gain, y.shape)
    axes = tuple(each for each in range(y.ndim) if square.ndim != y.ndim or square.shape[each] == 1)
    scale = (basis * (y - shift)).sum(axis=axes, keepdims=True) / np.maximum(
        (basis**2).sum(axis=axes, keepdims=True), 1e-300
    )
    usable = scale > 1e-12
    if not usable.any():
        return
    level = np.broadcast_to(square, scale.shape)
    roots = 1 / np.where(usable, scale, 1.0)
    inside = max(0.0, _weighted(roots[usable] ** 2 - level[usable], level[usable] ** 2))
    outside = max(0.0, _weighted(roots[usable] - np.sqrt(level[usable]), level[usable]))
    for place, root, epsilon in (
        ("inside the root", np.sqrt(square + inside), inside),
        ("outside the root", np.sqrt(square) + outside, outside),
    ):
        output = np.nan_to_num(basis / root + shift)
        yield Way("norm", {"statistics": name, "epsilon": f"{epsilon:.2g}", "place": place}, output)


def _weighted(values: Array, squares: Array) -> float:
    """Average values whose errors have these squares, in relative terms."""
    weights = 1 / np.maximum(squares, 1e-30)
    return float((values * weights).sum() / weights.sum())
