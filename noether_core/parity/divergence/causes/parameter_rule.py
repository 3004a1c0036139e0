"""Name why parameters differ before anything else does: layout, what was not loaded, other starts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import numpy as np

from noether_core.parity.divergence.causes.case import Array, Case
from noether_core.parity.divergence.causes.measures import correlation, distance, factor, same_values, short_share
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

_SAME = 1e-5


def parameter_causes(case: Case) -> list[Cause]:
    """Name why the parameters that first differ do."""
    key = case.first.key
    pair = case.raw(key)
    if pair is None:
        return [Cause("weight-not-loaded", f"{inert(key)} is in one of the trainings alone.", (), 0.5)]
    a, b = (side.astype(np.float64) for side in pair)
    found = list(_laid_out(key, a, b))
    if min(share := (short_share(pair[0]), short_share(pair[1]))) < 0.5 < 0.9 < max(share):
        found.append(Cause("low-precision", f"{inert(key)} holds values of lower precision in one.", (), 0.95))
    if case.update > 1:
        found += list(_changed(case, key))
    elif not found:
        found += list(_started(case, key, a, b))
    found.append(Cause("initial-weights", f"{inert(key)} differs before the update's step.", (), 0.25))
    return found


def _laid_out(key: str, a: Array, b: Array) -> Iterator[Cause]:
    if a.size != b.size or (a.shape == b.shape and distance(a, b) < _SAME) or not same_values(a, b):
        return
    for order in permutations(range(a.ndim)) if a.ndim <= 5 else ():
        for flips in ((), tuple(range(2, a.ndim)), *((axis,) for axis in range(a.ndim))):
            turned = np.flip(a.transpose(order), flips)
            if turned.shape == b.shape and distance(turned, b) < _SAME:
                words = f"axes {order}" + (f", flipped along {flips}" if flips else "")
                yield Cause(
                    "weight-layout",
                    f"{inert(key)} of the second is the first's with {words}.",
                    ("equal after that",),
                    0.98,
                )
                return
    yield Cause(
        "weight-layout", f"{inert(key)} holds the same values in another order.", ("the sorted values agree",), 0.93
    )


def _started(case: Case, key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Tell a weight that was not carried over from trainings that start from others altogether."""
    names = case.keys("param")
    apart = [name for name in names if not case.agrees(name)]
    random = [name for name in names if (pair := case.some(name)) is not None and np.ptp(pair[0]) > 0]
    share = len(apart) / max(1, len(random))
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    like = correlation(a, b) if a.shape == b.shape else 0.0
    lines = (f"{len(apart)} of {len(names)} parameters differ", f"correlation {number(like)}")
    few = share < 0.7
    yield Cause(
        "weight-not-loaded",
        f"{inert(key)} was not carried over: it has other values, and {len(names) - len(apart)} parameters have the same.",
        lines,
        0.9 if few or constant else 0.35,
    )
    yield Cause(
        "initial-weights",
        f"{inert(key)} starts from other values, with {len(apart)} of {len(names)} parameters.",
        lines,
        0.5 if few else 0.9,
    )
    constant_factor, left = factor(a, b) if a.shape == b.shape else (1.0, 1.0)
    if left < 1e-4:
        yield Cause(
            "initial-weights",
            f"{inert(key)} starts from {number(constant_factor)} times the first's values.",
            lines,
            0.95,
        )


def _changed(case: Case, key: str) -> Iterator[Cause]:
    """Ask whether a parameter moved by something else than the update before."""
    name = key.partition("/")[2]
    for who, side in (("first", case.a), ("second", case.b)):
        before, update, now = (
            side.array(at, each)
            for at, each in ((case.update - 1, key), (case.update - 1, f"update/{name}"), (case.update, key))
        )
        if before is None or update is None or now is None:
            continue
        stepped = before.astype(np.float64) + update
        if distance(stepped, now.astype(np.float64)) > _SAME:
            lines = (f"{number(distance(stepped, now.astype(np.float64)))} away from the old value and its update",)
            for cause, score in (("weight-averaging", 0.6), ("optimizer-other", 0.4), ("weight-not-loaded", 0.35)):
                yield Cause(
                    cause, f"{inert(key)} was changed by something else than its update in the {who}.", lines, score
                )
