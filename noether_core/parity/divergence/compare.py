"""Compare two trainings, and say in a sentence where they first part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from noether_core.parity.divergence.distance import median_ulps
from noether_core.parity.divergence.first import Search
from noether_core.parity.divergence.noise import Noise
from noether_core.parity.divergence.ordering import in_one_order
from noether_core.parity.divergence.result import Comparison, Divergence
from noether_core.parity.divergence.sentences import differs, nothing_shared, same, warnings_of
from noether_core.parity.divergence.shape import shape_of
from noether_core.parity.divergence.table import Table, measured
from noether_core.parity.divergence.training import Training
from noether_core.silence import SILENT
from noether_core.text import inert

LOOKED_AT = 20  # differences whose elements are looked at, for their ulps and their shape


@SILENT
def compare(
    a: Training, b: Training, noise: Noise | None = None, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Compare two trainings: find the first update, stage and key that differ by more than noise.

    Args:
        a: a training; arrays are read one pair at a time.
        b: the other.
        noise: what twins drift. Without it the floors stand in, and the answer is less sure.
        progress: called with how many updates are done, and of how many.

    >>> from noether_core.parity.divergence import MemoryTraining
    >>> import numpy as np
    >>> a = MemoryTraining("a", "jax", {1: {"loss/total": np.float32(0.5), "grad/w": np.float32([1, 2])}})
    >>> b = MemoryTraining("b", "torch", {1: {"loss/total": np.float32(0.5), "grad/w": np.float32([2, 4])}})
    >>> compare(a, b).sentence
    'Differs from update 1 on, first in grad/w, 2,500,000 × noise (b is 2 × a); loss matched.'
    """
    known = noise or Noise()
    a, b = in_one_order(a, b)
    table = measured(a, b, progress)
    labels = a.label or "A", b.label or "B"
    warnings = tuple(warnings_of(a, b, table, known))
    common = Comparison(
        "cannot say",
        "",
        labels,
        compared=table.compared,
        has_twins=known.twins > 0,
        warnings=warnings,
        settings=(dict(a.settings), dict(b.settings)),
    )
    if not table.columns:
        return replace(common, sentence=nothing_shared(a, b, table))
    return _judged(a, b, table, known, common)


def _judged(a: Training, b: Training, table: Table, known: Noise, common: Comparison) -> Comparison:
    found = Search(a, b, table, known).found()
    if not found.differences:
        outcome, sentence = same(a, b, table, known, found)
        return replace(common, outcome=outcome, sentence=sentence, same_through=table.updates[-1])
    differences = tuple(
        _looked_at(a, b, table, each) if place < LOOKED_AT else each for place, each in enumerate(found.differences)
    )
    first = differences[0]
    before = [update for update in table.updates if update < first.update]
    return replace(
        common,
        outcome="differs",
        sentence=differs(table, first, differences, before),
        first=first,
        differences=differences,
        same_through=before[-1] if before else 0,
    )


def _looked_at(a: Training, b: Training, table: Table, each: Divergence) -> Divergence:
    array_a, array_b = a.array(each.update, each.key), b.array(each.update, each.key)
    if array_a is None or array_b is None:
        return each
    order = table.orders.get(each.update)
    if order is not None and each.stage == "data":
        return replace(each, shape="the same rows in another order")
    if order is not None and each.stage == "act":
        array_b = order.of_second(array_b)
    labels = (inert(a.label or "A"), inert(b.label or "B"))
    labels = labels if labels[0] != labels[1] else ("A", "B")
    return replace(each, ulps=median_ulps(array_a, array_b), shape=shape_of(array_a, array_b, labels))
