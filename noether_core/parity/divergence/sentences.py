"""Put the outcome of a comparison into words."""

from __future__ import annotations

from collections.abc import Sequence

from noether_core.parity.divergence.first import Found
from noether_core.parity.divergence.noise import TIMES, Noise
from noether_core.parity.divergence.result import Divergence, Outcome
from noether_core.parity.divergence.table import Table
from noether_core.parity.divergence.training import Training, labels_of, stage_of
from noether_core.parity.divergence.twins import Parting
from noether_core.probes.stages import STAGES
from noether_core.text import inert

OF_MODEL = ("param", "grad", "update")
"""The stages whose keys are parameters' names: where none is shared, names are not mapped."""
PLURALS = {
    "data": "data",
    "param": "params",
    "act": "activations",
    "loss": "loss",
    "grad": "gradients",
    "clip": "clipped gradients",
    "update": "updates",
    "opt": "optimizer state",
}
OTHER_BATCH = 0.1  # the distance of data that are other examples, not the same in another precision or scale


def warnings_of(a: Training, b: Training, table: Table, noise: Noise) -> list[str]:
    """Return what a person should know beside the answer."""
    found = []
    names = labels_of(a, b)
    lasts = [max(each.updates(), default=0) for each in (a, b)]
    if table.updates and lasts[0] != lasts[1]:
        shorter, longer = (0, 1) if lasts[0] < lasts[1] else (1, 0)
        found.append(
            f"{names[shorter]} ends at update {lasts[shorter]}, {names[longer]} at {lasts[longer]}: "
            f"what both have was compared, through update {table.updates[-1]}"
        )
    for name, other, keys in zip(names, reversed(names), table.alone, strict=True):
        if table.updates and keys:
            some = ", ".join(inert(key) for key in keys[:3])
            more = f" and {len(keys) - 3:,} more" if len(keys) > 3 else ""
            found.append(f"only {name} has {some}{more}: not compared; if {other} has it under another name, map it")
    if table.orders:
        found.append(
            f"the batches' rows come in another order in {len(table.orders):,} of {len(table.updates):,} updates, from update "
            f"{min(table.orders)} on; activations were compared row by row. Sums over the batch do not depend on that order"
        )
    found += _other_dtypes(table, names)
    found += random_twins(noise.partings)
    if table.columns and not noise.twins:
        found.append("no twins: the noise is taken from measured floors, so a small difference may be noise")
    return found


def _other_dtypes(table: Table, names: Sequence[str]) -> list[str]:
    """Return a sentence for each two dtypes that a key has in the one and in the other."""
    keys: dict[tuple[str, str], list[str]] = {}
    for key, pair in table.dtypes.items():
        keys.setdefault(pair, []).append(inert(key))
    return [
        f"other dtypes: {first} in {names[0]} and {second} in {names[1]} in {len(some):,}"
        f" key{'s' * (len(some) > 1)}, such as {some[0]}. They were compared as numbers"
        for (first, second), some in keys.items()
    ]


def random_twins(partings: Sequence[Parting]) -> list[str]:
    """Return a sentence on each training whose twins part from it, the first of them."""
    firsts: dict[str, list[Parting]] = {}
    for each in partings:
        firsts.setdefault(each.label, []).append(each)
    found = []
    for label, group in firsts.items():
        first = min(group, key=lambda each: each.update)
        found.append(
            f"{len(group)} of the twins of {inert(label)} part from it at update {first.update} in {inert(first.key)}, by"
            f" {first.distance:.2g}, which no rounding explains: from there on it is random, or keeps something by rows, and"
            " these twins tell nothing of its noise"
        )
    return found


def nothing_shared(a: Training, b: Training, table: Table) -> str:
    """Return the sentence for trainings that have no update or no key in common."""
    names = labels_of(a, b)
    if not table.updates:
        spans = [_span(each.updates()) for each in (a, b)]
        return (
            f"Cannot say: no update is in both. {names[0]} has {spans[0]}, {names[1]} has {spans[1]}. "
            "Probe the same updates in both."
        )
    some = [next(iter(keys), "no keys") for keys in table.alone]
    if not any(table.alone):
        return "Cannot say: neither training has arrays or statistics that can be compared."
    return (
        f"Cannot say: no key is in both. {names[0]} has keys such as {inert(some[0])}, {names[1]} such as {inert(some[1])}. "
        "Map the names of one to the other's."
    )


def _span(updates: Sequence[int]) -> str:
    if not updates:
        return "none"
    return f"update {updates[0]}" if len(updates) == 1 else f"updates {updates[0]} to {updates[-1]}"


def same(a: Training, b: Training, table: Table, noise: Noise, found: Found) -> tuple[Outcome, str]:
    """Return the outcome and the sentence where nothing differs."""
    unmapped = [
        stage for stage in OF_MODEL if all(_has(keys, stage) for keys in table.alone) and not table.of_stage(stage)
    ]
    if unmapped:
        some = [next(key for key in keys if stage_of(key) == unmapped[0]) for keys in table.alone]
        return "cannot say", (
            f"Cannot say: the {PLURALS[unmapped[0]]} have no name in common, such as {inert(some[0])} and {inert(some[1])}. "
            f"What both have agrees through update {table.updates[-1]}. Map the names of one to the other's."
        )
    sure = (
        "ten times the noise of twins"
        if noise.twins
        else "ten times the measured floors; without twins this is less sure"
    )
    explained = sum(len(places) for places in found.explained.values())
    more = f" {explained:,} were further apart where rounding explains it." if explained else ""
    return "same", f"Same through update {table.updates[-1]}: {table.compared:,} pairs agree within {sure}.{more}"


def _has(keys: Sequence[str], stage: str) -> bool:
    return any(stage_of(key) == stage for key in keys)


def differs(table: Table, first: Divergence, differences: Sequence[Divergence], before: Sequence[int]) -> str:
    """Return the sentence where something differs."""
    size = _size(first)
    shape = f" ({first.shape})" if first.shape else ""
    matched = _matched(table, first)
    where = inert(first.key)
    opening = (
        f"Same through update {before[-1]}. First differs at update {first.update} in {where}"
        if before
        else f"Differs from update {first.update} on, first in {where}"
    )
    return f"{opening}, {size}{shape}{matched}.{_whole_batches(table, first, differences, before)}"


def _size(first: Divergence) -> str:
    if first.distance == float("inf"):
        return "where they cannot be subtracted"
    times = first.times_noise
    if times < TIMES:
        return "by less than its noise, but in all elements alike"
    return f"{times:,.0f} × noise"


def _matched(table: Table, first: Divergence) -> str:
    """Return the stages of the update that come before the first difference, and agreed."""
    stages = []
    for stage in STAGES[: STAGES.index(first.stage)]:
        columns = table.of_stage(stage).values()
        if any((column.updates == first.update).any() for column in columns):
            stages.append(PLURALS[stage])
    if not stages:
        return ""
    words = stages[0] if len(stages) == 1 else f"{', '.join(stages[:-1])} and {stages[-1]}"
    return f"; {words} matched"


def _whole_batches(table: Table, first: Divergence, differences: Sequence[Divergence], before: Sequence[int]) -> str:
    """Say it where the trainings were not given the same to begin with."""
    if before or first.stage not in ("data", "param") or first.distance < OTHER_BATCH:
        return ""
    stages = {each.stage for each in differences if each.update == first.update and each.distance >= OTHER_BATCH}
    if first.stage == "data":
        if first.update in table.orders:
            return ""
        also = " and the weights they start from are others, too" if "param" in stages else ""
        return f" The batches are not the same{also}: other seeds, another order, or other preprocessing."
    return " The trainings start from other weights: another seed, or weights that were not carried over."
