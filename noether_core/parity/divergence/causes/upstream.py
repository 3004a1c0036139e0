"""Find which of two trainings' differing activations was computed first, where their order is not known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from noether_core.parity.divergence.causes.case import Case, KnowsNoise
from noether_core.parity.divergence.causes.forward_ways import best_way
from noether_core.parity.divergence.causes.sources import sources_among
from noether_core.parity.divergence.ordering import InOrder, by_name, in_one_order, is_by_name
from noether_core.parity.divergence.result import Divergence
from noether_core.parity.divergence.training import Training
from noether_core.silence import SILENT
from noether_core.text import inert

_FITS = 2e-5  # relative: an output that was found
_MOST = 60  # activations that differ, among which the first is looked for
_ALIKE = 4  # of an output's shape, that may be added up to it


@dataclass(frozen=True)
class Upstream:
    """Hold two trainings with their activations in the order that was found, and say how sure it is.

    Attributes:
        a, b: the trainings: what agrees, then the first that differs, then what may follow from it.
        key: the first that differs.
        note: a sentence for people.
    """

    a: Training
    b: Training
    key: str
    note: str


@SILENT
def upstream(a: Training, b: Training, noise: KnowsNoise | None, first: Divergence) -> Upstream | None:
    """Find the activation that differs first, if both trainings have theirs in no order but that of names.

    From the first by name, it goes to an activation that differs too and from which both trainings computed it in a known way,
    and on from there: what follows from another difference is not the first. It stays where an output is explained by none.

    Args:
        a: one training, both in JAX.
        b: the other.
        noise: of their twins.
        first: where they first differ in the order of names.

    Returns:
        None where the order is known, or the first difference is no activation's.
    """
    if first.stage != "act" or not (is_by_name(a) and is_by_name(b)):
        return None
    case = Case(*in_one_order(a, b), noise, first)
    apart = case.differing("act")[:_MOST]
    key, seen = first.key, [first.key]
    while (found := next(_before(case, key, [each for each in apart if each not in seen]), None)) is not None:
        key = found
        seen.append(key)
    agreeing = {each for each in case.keys("act") if each not in apart}

    def place(each: str) -> tuple[int, object]:
        return (0 if each in agreeing else 1 if each == key else 2), by_name(each)

    return Upstream(InOrder(a, place), InOrder(b, place), key, _note(key, seen, apart))


def _note(key: str, seen: Sequence[str], apart: Sequence[str]) -> str:
    others = [each for each in apart if each not in seen]
    if not others:
        return ""
    listed = ", ".join(inert(each) for each in others[:3])
    found = "as far as their inputs tell" if len(seen) > 1 else "by its name alone"
    return (
        "JAX's compiled functions return activations sorted by name, so the order in which they were computed is not known."
        f" {inert(key)} is named first {found}; {len(others)} more differ at that update: {listed}"
        f"{', …' if len(others) > 3 else ''}. An OrderedDict of activations keeps its order"
    )


def _before(case: Case, key: str, others: Sequence[str]) -> Iterator[str]:
    """Yield the activations that differ from which both trainings computed one, alone or with others added to them."""
    shapes = {each: None if (pair := case.raw(each)) is None else pair[0].shape for each in case.keys("act")}
    for each in others:
        if _explain(case, key, [each]):
            yield each
    alike = [each for each in shapes if each != key and shapes[each] == shapes[key]]
    for each in others if len(alike) > 1 else ():
        rest = [other for other in alike if other != each][:_ALIKE]
        if each in alike and _explain(case, key, [each, *rest]) and not _explain(case, key, rest):
            yield each


def _explain(case: Case, key: str, inputs: Sequence[str]) -> bool:
    """Tell whether both trainings computed an activation in a known way from inputs among these."""
    outputs = case.raw(key)
    if outputs is None or not inputs:
        return False
    for side, output in zip((case.a, case.b), outputs, strict=True):
        if not output.any():
            return False
        way, left = best_way(sources_among(case, side, key, inputs), output.astype(np.float64))
        if way is None or left > _FITS:
            return False
    return True
