"""Ask for functions between an input and a layer, which are no activations of their own: such as a ReLU before a convolution.

Hooks and intermediates keep what modules return. What stands between two modules, written as functions, is seen in the next
one's output alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes import layers, sequences
from noether_core.parity.divergence.causes.activations import ACTIVATIONS
from noether_core.parity.divergence.causes.layers import Way
from noether_core.parity.divergence.causes.measures import distance
from noether_core.parity.divergence.causes.norms import norms
from noether_core.parity.divergence.causes.sources import Sources, with_parameters
from noether_core.parity.divergence.causes.transposed import transposed_convolutions

Array = np.ndarray[Any, Any]

_ROWS = 3  # of a batch, with which chains are tried
_INPUTS = 5
_MOST = 300_000  # elements of those rows
_NEAR = 0.3  # relative distance of a chain that may be right but for what differs
_USUAL = ("ReLU", "GELU (erf)", "GELU (tanh)", "SiLU", "tanh", "sigmoid", "ELU")
_PLAIN = tuple((f"{name} of " if name else "", ACTIVATIONS[name or "the identity"]) for name in ("", *_USUAL))
_SLOPES = (0.01, 0.1, 0.2, 0.3)

Chain = tuple[Way, ...]  # without outputs: what is done, in order
_NOTHING = np.zeros(0)


@dataclass(frozen=True)
class _Candidate:
    """Hold what may be done to inputs, and do it when asked."""

    chain: Chain
    value: Callable[[], Array | None]

    def then(self, kind: str, options: dict[str, str], function: Callable[[Array], Array | None]) -> _Candidate:
        """Return the candidate with one thing more done."""

        def value() -> Array | None:
            before = self.value()
            return None if before is None else function(before)

        return _Candidate((*self.chain, Way(kind, options, _NOTHING)), value)


def chained(given: Sources, output: Array) -> Iterator[Way]:
    """Yield ways from the chain of functions that comes nearest to an output on a few rows.

    What ends the chain is the layer whose output it is, or, where that has no parameters, pooling, flattening or nothing.

    Args:
        given: what the layer can have been computed from.
        output: what it is.
    """
    if output.ndim < 2:
        return
    rows = len(output) if given.own and _is_of_a_norm(given) else _ROWS
    few = [x[:rows] if len(x) == len(output) else x for x in given.inputs if x.ndim][:_INPUTS]
    if not few or output[:rows].size > _MOST or max(x.size for x in few) > _MOST:
        return
    best: Chain | None = None
    least = _NEAR
    width = _width(given) if given.own else 0
    candidates = partial(_candidates, width=width) if given.own else _lone_candidates
    for candidate in candidates(few, output[:rows].shape):
        value = candidate.value()
        left = float("inf") if value is None else _left(given, value, output[:rows])
        if left < 0.7 * least:
            best, least = candidate.chain, left
        if least < 1e-6:
            break
    full = [x for x in given.inputs if x.ndim][:_INPUTS]
    for candidate in candidates(full, output.shape) if best is not None else ():
        value = candidate.value() if candidate.chain == best else None
        if value is not None:
            ends = with_parameters(given, value, output) if given.own else _lone(value, output)
            yield from (replace(way, before=candidate.chain) for way in ends)
            return


def _is_of_a_norm(given: Sources) -> bool:
    return all(value.ndim == 1 for value in given.parameters.values())


def _left(given: Sources, value: Array, output: Array) -> float:
    """Return how far a layer with its usual options is from an output."""
    least = float("inf")
    for way in _plainly(given, value, output) if given.own else _lone(value, output):
        if way.output.shape == output.shape:
            least = min(least, distance(np.nan_to_num(way.output), output))
    return least


def _plainly(given: Sources, value: Array, output: Array) -> Iterator[Way]:
    for name, weight in given.parameters.items():
        bias = given.parameters.get(name.removesuffix("weight") + "bias") if name.endswith("weight") else None
        if name.endswith("bias"):
            continue
        if weight.ndim == 1:
            yield from norms(value, output, weight, bias, None)
        elif weight.ndim == 2 and value.shape[-1] == weight.shape[1] and value.shape[:-1] == output.shape[:-1]:
            yield Way("linear", {}, value @ weight.T + (0 if bias is None else bias))
        elif weight.ndim in (3, 4):
            yield from filter(_is_usual, layers.convolutions(value, output.shape, weight, bias))
            yield from filter(_is_usual, transposed_convolutions(value, output.shape, weight, bias))


def _lone(value: Array, output: Array) -> Iterator[Way]:
    """Yield what is made of a value without parameters."""
    if value.shape == output.shape:
        yield Way("nothing more", {}, value)
    yield from layers.reshapings(value, output.shape)
    yield from layers.poolings(value, output.shape)


def _is_usual(way: Way) -> bool:
    return (
        way.options["kernel"] == "as it is" and way.options["bias"] != "twice" and way.options["precision"] == "float32"
    )


def _width(given: Sources) -> int:
    """Return how many features a layer reads; 0 where its parameters do not say it."""
    found = {weight.shape[1] for name, weight in given.parameters.items() if weight.ndim > 1}
    return found.pop() if len(found) == 1 else 0


def _candidates(inputs: Sequence[Array], shape: tuple[int, ...], width: int) -> Iterator[_Candidate]:
    """Yield what functions between modules do: activations, pooling, flattening, sums, attention, and some of these in turn."""
    starts = [*_singles(inputs), *_sums(inputs)]
    for start in starts:
        yield from _activated(start, tuple(ACTIVATIONS))
    for start in starts:
        for active in (start, *_activated(start, _USUAL)):
            yield from _pooled(active, shape)
    yield from (each for each in starts if each.chain)
    yield from _attended(inputs)
    yield from _concatenated(inputs, width)


def _lone_candidates(inputs: Sequence[Array], shape: tuple[int, ...]) -> Iterator[_Candidate]:
    """Yield what may come before pooling, flattening or nothing more: activations and sums."""
    for start in (*_singles(inputs), *_sums(inputs)):
        yield from _activated(start, tuple(ACTIVATIONS))
    yield from _sums(inputs)


def _singles(inputs: Sequence[Array]) -> Iterator[_Candidate]:
    for x in inputs:
        yield _Candidate((), lambda x=x: x)  # type: ignore[misc]


def _sums(inputs: Sequence[Array]) -> Iterator[_Candidate]:
    """Add two inputs, of which one may be the same for all rows, as positions are, and one times the root of its width."""
    for i, x in enumerate(inputs):
        for j, y in enumerate(inputs):
            is_wider = x.ndim >= y.ndim and x.shape[x.ndim - y.ndim :] == y.shape
            if i == j or not is_wider or (x.shape == y.shape and j < i) or not x.ndim:
                continue
            for scale, by in (("", 1.0), ("√d × ", x.shape[-1] ** 0.5)):
                words = {"terms": f"{scale}input {i + 1} + input {j + 1}"}
                yield _Candidate((Way("sum", words, _NOTHING),), lambda x=x, y=y, by=by: by * x + y)  # type: ignore[misc]


def _concatenated(inputs: Sequence[Array], width: int) -> Iterator[_Candidate]:
    """Put two inputs' features, as they are or activated, beside one another: as many as a layer reads."""
    for i, x in enumerate(inputs):
        for j, y in enumerate(inputs):
            axis = 1 if x.ndim == 4 else -1
            if i == j or x.ndim != y.ndim or x.ndim < 2 or x.shape[axis] + y.shape[axis] != width:
                continue
            if np.delete(x.shape, axis).tolist() != np.delete(y.shape, axis).tolist():
                continue
            for (one, f), (other, g) in product(_PLAIN, repeat=2):
                if not one or not other or one == other:
                    functions = (f"{one}input {i + 1}", f"{other}input {j + 1}")
                    words = {"order": f"{i + 1}, {j + 1}", "functions": ", ".join(sorted(functions, key=_by_input))}
                    value = partial(_beside, x, y, f, g, axis)
                    yield _Candidate((Way("concatenation", words, _NOTHING),), value)


def _by_input(words: str) -> str:
    return words.rpartition(" ")[2]


def _beside(x: Array, y: Array, f: Callable[[Array], Array], g: Callable[[Array], Array], axis: int) -> Array:
    return np.concatenate([f(x), g(y)], axis)


def _activated(start: _Candidate, names: Sequence[str]) -> Iterator[_Candidate]:
    for name in names:
        if name != "the identity":
            yield start.then("activation", {"function": name}, ACTIVATIONS[name])
    for slope in _SLOPES if len(names) > len(_USUAL) else ():
        words = {"function": f"leaky ReLU with slope {slope:g}"}
        yield start.then("activation", words, lambda x, slope=slope: np.where(x < 0, slope * x, x))  # type: ignore[misc]


def _pooled(start: _Candidate, shape: tuple[int, ...]) -> Iterator[_Candidate]:
    """Pool windows or whole axes of images or sequences, and flatten what a matrix takes."""
    kinds: dict[str, Callable[..., Array]] = {"maximum": np.max, "mean": np.mean}
    yield from _flattened(start, shape)
    for name, reduce in kinds.items():
        for size, stride in ((2, 2), (3, 2), (3, 3), (4, 4)):
            words = {"kind": name, "over": f"{size} × {size}, stride {stride}"}
            pooled = start.then("pooling", words, _windowed(reduce, size, stride))
            yield pooled
            yield from _flattened(pooled, shape)
        for axes in ((2, 3), (1,), (2,), (1, 2)):
            words = {"kind": name, "over": str(axes)}
            yield start.then("pooling", words, lambda x, axes=axes, reduce=reduce: _over(x, axes, reduce))  # type: ignore[misc]
    for words_of, index in (("first", 0), ("last", -1)):
        words = {"kind": words_of, "over": "(1,)"}
        yield start.then("pooling", words, lambda x, index=index: x[:, index] if x.ndim == 3 else None)  # type: ignore[misc]


def _over(x: Array, axes: tuple[int, ...], reduce: Callable[..., Array]) -> Array | None:
    return reduce(x, axis=axes) if x.ndim > max(axes) else None


def _windowed(reduce: Callable[..., Array], size: int, stride: int) -> Callable[[Array], Array | None]:
    def pool(x: Array) -> Array | None:
        if x.ndim != 4 or min(x.shape[2:]) < size:
            return None
        view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
        return reduce(view, axis=(-1, -2))

    return pool


def _flattened(start: _Candidate, shape: tuple[int, ...]) -> Iterator[_Candidate]:
    if len(shape) != 2:
        return
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (0, 1, 3, 2), (0, 1, 2), (0, 2, 1)):
        words = {"order of axes": str(order)}
        yield start.then("reshaping", words, lambda x, order=order: _in_order(x, order))  # type: ignore[misc]


def _in_order(x: Array, order: tuple[int, ...]) -> Array | None:
    return x.transpose(order).reshape(len(x), -1) if x.ndim == len(order) else None


def _attended(inputs: Sequence[Array]) -> Iterator[_Candidate]:
    for x in inputs:
        if x.ndim == 3 and x.shape[2] % 3 == 0:
            for way in sequences.attentions(x, (*x.shape[:2], x.shape[2] // 3)):
                yield _Candidate((replace(way, output=_NOTHING),), lambda way=way: way.output)  # type: ignore[misc]
    for v, k, q in zip(inputs, inputs[1:], inputs[2:], strict=False):
        for way in sequences.separate_attentions(q, k, v, q.shape) if q.ndim == 3 else ():
            yield _Candidate((replace(way, output=_NOTHING),), lambda way=way: way.output)  # type: ignore[misc]
