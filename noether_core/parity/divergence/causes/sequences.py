"""Compute embeddings and attention in the ways that ports compute them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.activations import ACTIVATIONS
from noether_core.parity.divergence.causes.layers import Way

Array = np.ndarray[Any, Any]

_MOST_OUTPUT = 400_000
_HEADS = (1, 2, 3, 4, 6, 8, 12, 16)


def embeddings(x: Array, shape: tuple[int, ...], parameters: Mapping[str, Array]) -> Iterator[Way]:
    """Look whole numbers up in a table, scaled or not, and add another table's first rows, or some from a later one on."""
    if x.shape != shape[:-1] or int(np.prod(shape)) > _MOST_OUTPUT or (x != np.floor(x)).any() or x.min() < 0:
        return
    width = shape[-1]
    tables = [table for table in parameters.values() if table.ndim == 2 and table.shape[1] == width]
    ids = x.astype(np.int64)
    for table in (each for each in tables if len(each) > ids.max()):
        for scale, by in (("none", 1.0), ("√d", width**0.5), ("1/√d", width**-0.5)):
            looked = table[ids] * by
            yield Way("embedding", {"scale": scale, "positions": "none"}, looked)
            for other in (each for each in tables if each is not table and x.ndim == 2):
                for start in range(min(3, len(other) - x.shape[1] + 1)):
                    words = {"scale": scale, "positions": f"from {start} on"}
                    yield Way("embedding", words, looked + other[start : start + x.shape[1]])


def attentions(x: Array, shape: tuple[int, ...]) -> Iterator[Way]:
    """Attend with what one projection gave, rows × length × three widths, its axes in several orders.

    Source: Vaswani et al. 2017, section 3.2.
    """
    if (
        x.ndim != 3
        or len(shape) != 3
        or x.shape[2] != 3 * shape[2]
        or x.shape[:2] != shape[:2]
        or x.size > _MOST_OUTPUT
    ):
        return
    rows, length, width = shape
    for heads in (each for each in _HEADS if width % each == 0):
        size = width // heads
        splits = {
            "three × heads × width": x.reshape(rows, length, 3, heads, size).transpose(2, 0, 3, 1, 4),
            "heads × three × width": x.reshape(rows, length, heads, 3, size).transpose(3, 0, 2, 1, 4),
            "heads × width × three": x.reshape(rows, length, heads, size, 3).transpose(4, 0, 2, 1, 3),
            "three × width × heads": x.reshape(rows, length, 3, size, heads).transpose(2, 0, 4, 1, 3),
        }
        for layout, (q, k, v) in splits.items():
            yield from _attended({"heads": str(heads), "layout": layout}, q, k, v, shape)


def separate_attentions(q: Array, k: Array, v: Array, shape: tuple[int, ...]) -> Iterator[Way]:
    """Attend with queries, keys and values of their own, each rows × length × width."""
    if not q.ndim == k.ndim == v.ndim == 3 or q.shape != shape or k.shape != v.shape or q.size > _MOST_OUTPUT:
        return
    if k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2]:
        return
    for heads in (each for each in _HEADS if shape[2] % each == 0):
        split = [each.reshape(*each.shape[:2], heads, -1).swapaxes(1, 2) for each in (q, k, v)]
        yield from _attended({"heads": str(heads), "layout": "heads × width"}, split[0], split[1], split[2], shape)


def _attended(words: Mapping[str, str], q: Array, k: Array, v: Array, shape: tuple[int, ...]) -> Iterator[Way]:
    """Attend, each rows × heads × length × width of a head, with several scales, masks, and orders of the result's axes."""
    size, scores = q.shape[-1], q @ k.swapaxes(-1, -2)
    upper = np.triu(np.ones(scores.shape[-2:]), 1) > 0
    none = np.zeros_like(upper)
    masks = {
        "none": none,
        "causal": upper,
        "anticausal": upper.T,
        "causal, without itself": upper | (np.eye(len(upper)) > 0),
    }
    masks["causal, with the next"] = np.triu(np.ones(upper.shape), 2) > 0
    scales = {"1/√d of a head": size**-0.5, "none": 1.0, "1/√d of all": shape[-1] ** -0.5, "1/d of a head": 1 / size}
    for mask, hidden in masks.items():
        for scale, by in scales.items():
            weights = ACTIVATIONS["softmax"](np.where(hidden, -1e9, scores * by))
            output = weights @ v
            options = {**words, "scale": scale, "mask": mask}
            yield Way("attention", {**options, "merged": "heads × width"}, output.swapaxes(1, 2).reshape(shape))
            if mask == "causal" or scale[0] == "1":
                yield Way(
                    "attention", {**options, "merged": "width × heads"}, output.transpose(0, 2, 3, 1).reshape(shape)
                )
                yield Way("attention", {**options, "merged": "without exchanging axes"}, output.reshape(shape))
