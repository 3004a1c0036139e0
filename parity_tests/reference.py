"""Compute what a schedule must give, exactly and by other means: Python's fractions and `math.fsum`, no code of ours.

The reference knows the whole schedule at once. It groups the steps into intervals by their counts alone, pools the values
as exact fractions, and rounds once by trying the neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Outputs = dict[str, Any] | None


@dataclass(frozen=True)
class Tracker:
    """One callback of a schedule, as its config says."""

    unit: str
    n: int
    keys: tuple[str, ...]
    patterns: tuple[str, ...]
    reduce: str
    log_output: bool
    save_output: bool
    nonfinite: str

    def config(self, number: int) -> dict[str, Any]:
        return {
            f"every_n_{self.unit}s": self.n,
            "id": f"c{number}",
            "keys": list(self.keys),
            "patterns": list(self.patterns),
            "reduce": {"": self.reduce},  # a dict, so that each callback's log keys name the reduction
            "log_output": self.log_output,
            "save_output": self.save_output,
            "missing": "skip",
            "nonfinite": self.nonfinite,
        }


@dataclass(frozen=True)
class Schedule:
    """A whole training: `steps[u][a]` are the update outputs of update u's accumulation step a."""

    steps: tuple[tuple[Outputs, ...], ...]
    accumulation_steps: int
    updates_per_epoch: int
    effective_batch_size: int
    trackers: tuple[Tracker, ...]


@dataclass(frozen=True)
class Result:
    """What a training logs, entry by entry, and saves, file by file."""

    entries: list[dict[str, Any]]
    files: dict[str, dict[str, np.ndarray[Any, Any]]]


def flat(outputs: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key, value in outputs.items():
        pairs |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return {key: value for key, value in pairs.items() if value is not None}


def expected(schedule: Schedule) -> Result:
    by_update: dict[int, dict[str, Any]] = {}
    files: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    total = len(schedule.steps)
    # at one update the update trigger fires in the callbacks' order, then the samples', then the epochs', then the rest
    for phase in ("update or sample", "epoch", "rest"):
        for number, tracker in enumerate(schedule.trackers):
            ends = [u for u in range(1, total + 1) if _fires(schedule, tracker, u)]
            if phase == "rest":
                chosen = [] if total in ends else [(max(ends, default=0), total)]
            elif (phase == "epoch") == (tracker.unit == "epoch"):
                chosen = list(zip([0, *ends], ends, strict=False))
            else:
                chosen = []
            for start, end in chosen:
                _end(schedule, tracker, number, start, end, by_update, files)
    entries = [
        {**_iteration(schedule, update), **by_update[update]} for update in sorted(by_update) if by_update[update]
    ]
    return Result(entries, files)


def _iteration(schedule: Schedule, update: int) -> dict[str, int]:
    epoch = update // schedule.updates_per_epoch
    return {"epoch": epoch, "update": update, "sample": update * schedule.effective_batch_size}


def _fires(schedule: Schedule, tracker: Tracker, update: int) -> bool:
    now, before = (_iteration(schedule, u)[tracker.unit] for u in (update, update - 1))
    return any(count % tracker.n == 0 for count in range(before + 1, now + 1))


def _seen(schedule: Schedule, tracker: Tracker, start: int, end: int) -> dict[str, list[tuple[int, Any]]]:
    """Return each tracked key's values and their updates, the keys in the order they came."""
    seen: dict[str, list[tuple[int, Any]]] = {}
    for update in range(start, end):
        for outputs in schedule.steps[update]:
            values = flat(outputs or {})
            named = [key for key in tracker.keys if key in values]
            for key in dict.fromkeys([*named, *(key for key in values if any(p in key for p in tracker.patterns))]):
                seen.setdefault(key, []).append((update + 1, values[key]))
    return seen


def _end(
    schedule: Schedule,
    tracker: Tracker,
    number: int,
    start: int,
    end: int,
    by_update: dict[int, dict[str, Any]],
    files: dict[str, dict[str, np.ndarray[Any, Any]]],
) -> None:
    seen = _seen(schedule, tracker, start, end)
    order = [key for key in tracker.keys if key in seen] + [key for key in seen if key not in tracker.keys]
    label = f"{tracker.unit[0].upper()}{tracker.n}"
    arrays = {}
    for key in order:
        result = reduced(tracker, seen[key], end)
        if result is not None:
            arrays[key] = result
        if tracker.log_output:
            entry = by_update.setdefault(end, {})
            if result is not None and result.size == 1:
                entry[f"{key}/{tracker.reduce}/{label}"] = result.item()
            bad = sum(int((~np.isfinite(np.asarray(value, np.float64))).sum()) for _, value in seen[key])
            if bad:
                entry[f"{key}/nonfinite/{label}"] = bad
    if tracker.save_output and arrays:
        iteration = "_".join(f"{name[0].upper()}{count}" for name, count in _iteration(schedule, end).items())
        files[f"c{number}/{label}/{iteration}"] = arrays


def reduced(tracker: Tracker, values: list[tuple[int, Any]], end: int) -> np.ndarray[Any, Any] | None:
    skip = tracker.nonfinite == "skip"
    if tracker.reduce == "last":
        update, value = values[-1]
        array = np.asarray(value)
        if update != end or (skip and array.size == 1 and not np.isfinite(array.astype(np.float64)).all()):
            return None
        return array
    dtype = np.float64 if any(is_wide(value) for _, value in values) else np.float32
    pooled = [number for _, value in values for number in elements(value)]
    if skip:
        pooled = [number for number in pooled if not isinstance(number, float) or math.isfinite(number)]
    if not pooled:
        return None
    return np.asarray(mean(pooled, dtype), dtype)


def is_wide(value: Any) -> bool:
    return type(value) in (bool, int, float) or np.asarray(value).dtype == np.float64


def elements(value: Any) -> list[Any]:
    array = np.asarray(value).reshape(-1)
    return [int(x) for x in array] if array.dtype.kind in "iub" else [float(x) for x in array]


def mean(numbers: list[Any], dtype: type[np.floating[Any]]) -> Any:
    odd = [number for number in numbers if isinstance(number, float) and not math.isfinite(number)]
    if odd:
        return math.fsum(odd) if len({math.isnan(x) or x for x in odd}) == 1 and odd[0] == odd[0] else math.nan
    return nearest(sum(map(Fraction, numbers), Fraction(0)) / len(numbers), dtype)


def nearest(exact: Fraction, dtype: type[np.floating[Any]]) -> Any:
    """Round an exact number by comparing the neighbours of a first guess, ties to the even mantissa."""
    guess = dtype(float(exact))
    candidates = {guess, np.nextafter(guess, dtype(np.inf)), np.nextafter(guess, dtype(-np.inf))}
    view = np.int64 if dtype is np.float64 else np.int32
    best = min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(view)) & 1))
    return best if best else abs(best)  # no negative zero from a sum
