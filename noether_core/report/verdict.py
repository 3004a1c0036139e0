"""Turn a comparison into plain data for the page: the ladder of stages, causes, differences and their course."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from noether_core.parity.divergence.causes.names import CAUSES
from noether_core.parity.divergence.result import Comparison, Divergence
from noether_core.probes.stages import STAGES

_WORDS = {
    "data": "batches",
    "param": "weights",
    "act": "forward pass",
    "loss": "loss",
    "grad": "backward pass",
    "clip": "clipping",
    "update": "optimizer step",
    "opt": "optimizer state",
}


def verdict(comparison: Comparison, recorded: Sequence[str]) -> dict[str, Any]:
    """Return what the page says of a comparison.

    Args:
        comparison: what was found.
        recorded: the stages of which the runs have any key; empty if that is not known.
    """
    first = comparison.first
    return {
        "outcome": comparison.outcome,
        "sentence": comparison.sentence,
        "labels": list(comparison.labels),
        "same_through": comparison.same_through,
        "compared": comparison.compared,
        "has_twins": comparison.has_twins,
        "warnings": list(comparison.warnings),
        "first": None if first is None else {"update": first.update, "key": first.key},
        "ladder": [_rung(stage, comparison, recorded) for stage in STAGES],
        "causes": [
            {
                "title": CAUSES.get(cause.id, cause.id),
                "sentence": cause.sentence,
                "evidence": list(cause.evidence),
                "score": min(1.0, max(0.0, cause.score)) if math.isfinite(cause.score) else 0.0,
            }
            for cause in comparison.causes
        ],
        "differences": [_row(each) for each in comparison.differences],
        "courses": _courses(comparison.differences),
    }


def _row(each: Divergence) -> list[Any]:
    times = each.times_noise
    return [each.update, each.stage, each.key, *map(_number, (each.distance, each.noise, times, each.ulps)), each.shape]


def _number(value: float | None) -> float | str | None:
    """Return a number for JSON, which has none that is not finite."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "∞"


def _rung(stage: str, comparison: Comparison, recorded: Sequence[str]) -> dict[str, Any]:
    """Say what became of a stage at the first update that differs.

    That is `first` or `also` where it differs there, `later` where it is the same there and differs after, `after` where it
    comes after the first difference and so is not judged there, `same`, `missing` or `unknown`.
    """
    first = comparison.first
    found = [each for each in comparison.differences if each.stage == stage]
    rung: dict[str, Any] = {"stage": stage, "words": _WORDS[stage]}
    if first is not None and first.stage == stage:
        same_update = {each.key for each in found if each.update == first.update} | {first.key}
        return rung | {"state": "first", "update": first.update, "key": first.key, "keys": len(same_update)}
    if found:
        update = min(each.update for each in found)
        keys = len({each.key for each in found if each.update == update})
        at_once = first is not None and update == first.update
        state = "also" if at_once else "later" if comparison.is_judged(stage) else "after"
        return rung | {"state": state, "update": update, "keys": keys}
    if recorded and stage not in recorded:
        return rung | {"state": "missing"}
    if first is not None:
        return rung | ({"state": "same", "update": first.update} if comparison.is_judged(stage) else {"state": "after"})
    return rung | {"state": "unknown" if comparison.outcome == "cannot say" else "same"}


def _courses(differences: Sequence[Divergence]) -> list[dict[str, Any]]:
    """Return the difference and the noise over updates of the key of each stage that differs first."""
    first_of = {each.stage: each.key for each in reversed(differences)}
    by_key: dict[str, list[Divergence]] = {}
    for each in differences:
        if first_of[each.stage] == each.key:
            by_key.setdefault(each.key, []).append(each)
    return [
        {
            "key": key,
            "stage": found[0].stage,
            "update": [each.update for each in found],
            "distance": [_number(each.distance) for each in found],
            "noise": [_number(each.noise) for each in found],
        }
        for key, found in by_key.items()
    ]
