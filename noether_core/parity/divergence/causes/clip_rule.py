"""Name how clipping differs: by what norm, from where on, in one side alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from noether_core.parity.divergence.causes.case import Case
from noether_core.parity.divergence.causes.clippings import Clipping, clipping
from noether_core.parity.divergence.result import Cause
from noether_core.text import number

_MOST = 200_000_000  # gradients that are looked at, over all updates


def clip_causes(case: Case) -> list[Cause]:
    """Name how clipping differs; nothing where gradients or clipped gradients were not kept."""
    updates = _updates(case)
    series = [[each for update in updates if (each := clipping(side, update)) is not None] for side in (case.a, case.b)]
    if not all(series):
        return []
    kinds = [_kind(each) for each in series]
    lines = tuple(_line(who, kind, each) for who, kind, each in zip(("first", "second"), kinds, series, strict=True))
    found = list(_kinds(kinds, lines))
    if kinds == ["global", "global"]:
        found += list(_globals(series[0], series[1], lines))
    elif kinds[0] == kinds[1] and kinds[0] in ("by array", "by value"):
        a, b = (float(np.median([each.clipped for each in side if each.kind != "none"])) for side in series)
        found.append(
            Cause("clip-threshold", f"The threshold is {number(a)} in one and {number(b)} in the other.", lines, 0.9)
        )
    found.append(
        Cause(
            "clip-order", "Gradients are clipped elsewhere in the step, such as before they are averaged.", lines, 0.3
        )
    )
    return found


def _updates(case: Case) -> list[int]:
    """Return the updates to look at, from a little before the first that differs on: few of a large model."""
    size = sum(array.size for key in case.keys("clip") if (array := case.a.array(case.update, key)) is not None)
    most = max(2, min(12, _MOST // max(1, size)))
    return [update for update in case.updates() if update >= case.update - 1][:most]


def _kind(series: list[Clipping]) -> str:
    """Return what a side does, over all updates: the kind that says most."""
    kinds = {each.kind for each in series}
    return next((kind for kind in ("by value", "by array", "global") if kind in kinds), "none")


def _line(who: str, kind: str, series: list[Clipping]) -> str:
    shown = [each for each in series if each.kind == kind][:4]
    return f"{who}: {kind}; norms {', '.join(f'{number(each.norm)} → {number(each.clipped)}' for each in shown)}"


def _kinds(kinds: list[str], lines: tuple[str, ...]) -> Iterator[Cause]:
    if kinds[0] == kinds[1]:
        return
    words = f"Gradients are clipped {_words(kinds[0])} in one and {_words(kinds[1])} in the other."
    if "none" in kinds:
        yield Cause("clip-missing", words, lines, 0.95)
        yield Cause("clip-threshold", f"{words} The threshold may be out of reach.", lines, 0.5)
    if "by value" in kinds:
        yield Cause("clip-by-value", words, lines, 0.9 if "none" in kinds else 0.95)
    if "by array" in kinds:
        yield Cause("clip-by-array", words, lines, 0.9 if "none" in kinds else 0.95)


def _words(kind: str) -> str:
    return {"none": "not at all", "global": "by their global norm"}.get(kind, kind)


def _globals(a: list[Clipping], b: list[Clipping], lines: tuple[str, ...]) -> Iterator[Cause]:
    """Compare two global clippings: what norm they leave, and how that moves."""
    pairs = [(one, other) for one, other in zip(a, b, strict=False) if "global" in (one.kind, other.kind)]
    clipped = [[each.clipped for each in side if each.kind == "global"] for side in (a, b)]
    steady = [float(np.ptp(each) / max(each)) < 1e-4 for each in clipped]
    one, other = (float(np.median(each)) for each in clipped)
    gaps = np.array([y.scale / x.scale - 1 for x, y in pairs if x.kind == y.kind == "global"])
    if gaps.size and np.abs(gaps).max() < 2e-4:
        order = [pair for pair in pairs if pair[0].kind == pair[1].kind == "global"]
        sizes = np.array([x.norm for x, _ in order])
        epsilon = float(np.median(gaps * sizes))
        gap = number(float(np.median(gaps)))
        sentence = f"The clip's factors differ by {gap}: about {number(abs(epsilon))} is added to the norm in one."
        yield Cause("clip-epsilon", sentence, lines, 0.93)
        yield Cause("clip-threshold", f"The clip's factors differ by {number(float(np.median(gaps)))}.", lines, 0.6)
        return
    if all(steady):
        yield Cause(
            "clip-threshold", f"The threshold is {number(one)} in one and {number(other)} in the other.", lines, 0.95
        )
    else:
        moving = "first" if not steady[0] else "second"
        yield Cause(
            "clip-order",
            f"The norm that clipping leaves moves in the {moving}: it is not the norm of these gradients that is bound.",
            lines,
            0.85,
        )
        yield Cause("clip-by-array", f"The norm that clipping leaves moves in the {moving}.", lines, 0.4)
        yield Cause(
            "clip-threshold",
            f"The norm that clipping leaves moves in the {moving}: the threshold may be scheduled.",
            lines,
            0.45,
        )
