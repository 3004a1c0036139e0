"""Name why an activation differs: the way that leads from its inputs to each side's output, or the shape of the difference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from noether_core.parity.divergence.causes.case import Array, Case
from noether_core.parity.divergence.causes.forward_shapes import ADVICE, SLIGHT, shape_causes
from noether_core.parity.divergence.causes.forward_ways import best_way
from noether_core.parity.divergence.causes.layers import Way
from noether_core.parity.divergence.causes.sources import sources
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

_FITS = 2e-5  # relative: an output that was found
_CERTAIN = 0.8  # the score of what both sides' arrays say, beside which nothing else is worth reading
_UNEXPLAINED = 0.3
_CAUSES = {
    "activation": "activation-function",
    "attention": "attention-scale",
    "concatenation": "flatten-order",
    "convolution": "padding",
    "dropout": "dropout",
    "embedding": "forward-other",
    "recurrence": "forward-other",
    "factor": "forward-other",
    "linear": "weight-layout",
    "norm": "norm-epsilon",
    "nothing more": "forward-other",
    "pooling": "pooling",
    "reshaping": "flatten-order",
    "sum": "layer-order",
}
_OPTION_CAUSES = {
    ("attention", "mask"): "attention-mask",
    ("convolution", "bias"): "bias-missing",
    ("convolution", "kernel"): "weight-layout",
    ("convolution", "precision"): "low-precision",
    ("linear", "bias"): "bias-missing",
    ("linear", "precision"): "low-precision",
    ("attention", "layout"): "flatten-order",
    ("concatenation", "functions"): "activation-function",
    ("attention", "merged"): "flatten-order",
    ("norm", "statistics"): "norm-axes",
    ("recurrence", "bias"): "bias-missing",
    ("recurrence", "forget bias"): "bias-missing",
    ("recurrence", "gates"): "weight-layout",
    ("recurrence", "gate"): "activation-function",
    ("recurrence", "content"): "activation-function",
    ("recurrence", "output"): "activation-function",
    ("recurrence", "precision"): "low-precision",
}


_NOTHING = Way("nothing", {}, np.zeros(0))


def forward_causes(case: Case) -> list[Cause]:
    """Name why the first activation that differs does; its inputs are the data and the activations before it."""
    key = case.first.key
    outputs = case.raw(key)
    if outputs is None:
        return []
    found = list(_by_ways(case, key, outputs))
    found += shape_causes(case, key, outputs)
    certain = any(cause.score > _CERTAIN for cause in found)
    score = _UNEXPLAINED if not certain else 0.2
    found.append(
        Cause("forward-other", f"{inert(key)} is computed otherwise, from inputs that are the same.", (), score)
    )
    return found


def _by_ways(case: Case, key: str, outputs: tuple[Array, Array]) -> Iterator[Cause]:
    found = []
    for side, output in zip((case.a, case.b), outputs, strict=True):
        given = sources(case, side, key)
        found.append(best_way(given, output.astype(np.float64)))
    (way_a, left_a), (way_b, left_b) = found
    fits_a, fits_b = (way is not None and left < _FITS for way, left in found)
    if way_a is None or way_b is None or not (fits_a or fits_b):
        return
    if fits_a and fits_b:
        yield from _compared(way_a, way_b, max(left_a, left_b))
        return
    known, left, who = (way_a, left_a, "first") if fits_a else (way_b, left_b, "second")
    yield from _other(known, left, who, min(1.0, left_b if fits_a else left_a), case.update)


def _compared(a: Way, b: Way, left: float) -> Iterator[Cause]:
    evidence = (f"the first: {_words(a)}", f"the second: {_words(b)}", f"left over at most {number(left)}")
    if a.before != b.before:
        yield _before(a, b, evidence)
        return
    if a.kind != b.kind:
        cause = "layer-order" if {a.kind, b.kind} & {"sum"} else _kinds(a, b)
        yield Cause(cause, f"The first computes {_words(a)}, the second {_words(b)}.", evidence, 0.85)
        return
    options = [name for name in a.options if a.options[name] != b.options.get(name)]
    options = [name for name in options if not (a.kind == "norm" and name != "statistics" and "statistics" in options)]
    for name in options:
        cause = _OPTION_CAUSES.get((a.kind, name), _CAUSES[a.kind])
        if cause == "norm-axes" and any("running" in way.options["statistics"] for way in (a, b)):
            cause = "norm-mode"
        sentence = f"The {a.kind}'s {name} is {a.options[name]} in one and {b.options[name]} in the other."
        advice = (ADVICE,) if "TF32" in sentence else ()
        yield Cause(cause, sentence, (*evidence, *advice), 0.95)


def _before(a: Way, b: Way, evidence: tuple[str, ...]) -> Cause:
    """Name the first that differs of what is done to a layer's input."""
    pairs = zip_longest(a.before, b.before, fillvalue=_NOTHING)
    one, other = next(pair for pair in pairs if pair[0] != pair[1])
    sentence = f"Before the {a.kind}, the first computes {_words(one)}, the second {_words(other)}."
    if one.kind != other.kind:
        lone = [each for each in (one, other) if each is not _NOTHING]
        return Cause(_CAUSES[lone[0].kind] if len(lone) == 1 else _kinds(one, other), sentence, evidence, 0.9)
    name = next(name for name in one.options if one.options[name] != other.options.get(name))
    return Cause(_OPTION_CAUSES.get((one.kind, name), _CAUSES[one.kind]), sentence, evidence, 0.93)


def _kinds(a: Way, b: Way) -> str:
    kinds = {a.kind, b.kind}
    named = {"dropout": "dropout", "norm": "norm-axes", "activation": "activation-function"}
    return next((cause for kind, cause in named.items() if kind in kinds), "forward-other")


def _other(known: Way, left: float, who: str, rest: float, update: int) -> Iterator[Cause]:
    """Name what a layer is that one side computes as layers of its kind do, and the other in no known way."""
    evidence = (f"the {who}: {_words(known)}, left over {number(left)}",)
    other = "second" if who == "first" else "first"
    sentence = f"The {who} computes {_words(known)}; the {other} computes something else, {number(rest)} away."
    kinds = {
        "activation": ("activation-function",),
        "attention": ("attention-mask", "attention-scale"),
        "convolution": ("padding", "weight-layout", "bias-missing"),
        "linear": ("weight-layout", "bias-missing"),
        "recurrence": (
            "forward-other",
            *(("state-reset",) if update > 1 else ()),
            "weight-layout",
            "activation-function",
        ),
        "norm": ("norm-axes", "norm-mode", "norm-epsilon"),
    }
    likeliest = 0.85 if known.kind == "embedding" else 0.5  # nothing else that an embedding differs in has a name
    if rest < SLIGHT and known.kind in ("attention", "convolution", "linear", "recurrence"):
        likeliest = 0.35
    first = [cause for way in known.before for cause in kinds.get(way.kind, (_CAUSES[way.kind],))]
    causes = list(dict.fromkeys([*first, *kinds.get(known.kind, (_CAUSES[known.kind],))]))
    if "forward-other" not in causes:  # what these kinds are known to do was tried, on the other side too
        causes.insert(2, "forward-other")
    for index, cause in enumerate(causes):
        yield Cause(cause, sentence, evidence, likeliest - 0.05 * index)


def _words(way: Way) -> str:
    options = ", ".join(f"{name} {value}" for name, value in way.options.items())
    words = f"{way.kind} ({options})" if options else way.kind
    if way.kind == "nothing more" and way.before:
        return " of ".join(map(_words, reversed(way.before)))
    return f"{words} of {' of '.join(map(_words, reversed(way.before)))}" if way.before else words
