"""Compute what a schedule must give, exactly and by other means: Python's fractions and `math.fsum`, no code of ours.

The reference knows the whole schedule at once. It groups the steps into intervals by their counts alone, pools the values
as exact fractions, and rounds once by trying the neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
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
    weight: str | None = None

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
            "weight": self.weight,
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


Seen = list[tuple[int, Any, Any]]  # update, value, and its weight or None


def _seen(schedule: Schedule, tracker: Tracker, start: int, end: int) -> dict[str, Seen]:
    """Return each tracked key's values and their updates, the keys in the order they came."""
    seen: dict[str, Seen] = {}
    for update in range(start, end):
        for outputs in schedule.steps[update]:
            values = flat(outputs or {})
            named = [key for key in tracker.keys if key in values]
            for key in dict.fromkeys([*named, *(key for key in values if any(p in key for p in tracker.patterns))]):
                weight = values[tracker.weight] if tracker.weight not in (None, key) else None
                seen.setdefault(key, []).append((update + 1, values[key], weight))
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
            arrays[key] = as_array(result) if isinstance(result, int) else result
        if tracker.log_output:
            entry = by_update.setdefault(end, {})
            if result is not None and np.size(result) == 1 and tracker.reduce != "stack":
                entry[f"{key}/{tracker.reduce}/{label}"] = result if isinstance(result, int) else result.item()
            bad = sum(not math.isfinite(number) for number, _ in pooled(seen[key]))
            if bad:
                entry[f"{key}/nonfinite/{label}"] = bad
    if tracker.save_output and arrays:
        iteration = "_".join(f"{name[0].upper()}{count}" for name, count in _iteration(schedule, end).items())
        files[f"c{number}/{label}/{iteration}"] = arrays


def as_array(whole: int) -> np.ndarray[Any, Any]:
    for dtype in (np.int64, np.uint64):
        if np.iinfo(dtype).min <= whole <= np.iinfo(dtype).max:
            return np.asarray(whole, dtype)
    return np.asarray(float(whole))


def pooled(seen: Seen) -> list[tuple[Any, Any]]:
    """Return every element with its weight; what weighs 0 is left out, and what weighs no finite number is NaN."""
    pairs = []
    for _, value, weight in seen:
        numbers = elements(value)
        weights = [1] * len(numbers) if weight is None else elements(weight)
        weights = weights * len(numbers) if len(weights) == 1 else weights
        pairs += [(x if math.isfinite(w) else math.nan, w) for x, w in zip(numbers, weights, strict=True) if w != 0]
    return pairs


def reduced(tracker: Tracker, seen: Seen, end: int) -> Any:
    skip = tracker.nonfinite == "skip"
    if tracker.reduce == "last":
        update, value, _ = seen[-1]
        array = np.asarray(value)
        if update != end or (skip and array.size == 1 and not np.isfinite(array.astype(np.float64)).all()):
            return None
        return array
    if tracker.reduce == "stack":
        return np.stack([np.asarray(value) for _, value, _ in seen])
    dtype = np.float64 if any(is_wide(value) for _, value, _ in seen) else np.float32
    is_whole = all(np.asarray(value).dtype.kind in "iub" for _, value, _ in seen)
    pairs = pooled(seen)
    bad = sum(not math.isfinite(x) for x, _ in pairs)
    if tracker.reduce == "count":
        return sum(np.size(value) for _, value, _ in seen) - (bad if skip else 0)
    if skip:
        pairs = [(x, w) for x, w in pairs if math.isfinite(x)]
    numbers = [x for x, _ in pairs]
    if tracker.reduce in ("min", "max"):
        return extreme(tracker.reduce, numbers, dtype, is_whole)
    if tracker.reduce == "sum":
        odd = not_finite(numbers)
        if odd is not None:
            return np.asarray(odd, dtype)
        total = sum(map(Fraction, numbers), Fraction(0))
        return int(total) if is_whole else np.asarray(nearest(total, dtype), dtype)
    if not pairs:  # the mean of no elements at all is NaN
        is_empty = not any(np.size(value) for _, value, _ in seen)
        return np.asarray(math.nan, dtype) if is_empty and not skip else None
    value = moment(tracker.reduce, pairs, dtype)
    return None if value is None else np.asarray(value, dtype)


def extreme(reduce: str, numbers: list[Any], dtype: Any, is_whole: bool) -> Any:
    if not numbers:
        return None
    if any(x != x for x in numbers):
        return np.asarray(math.nan, dtype)
    value = min(numbers) if reduce == "min" else max(numbers)
    return value if is_whole else np.asarray(value + 0.0, dtype)


def not_finite(numbers: list[Any]) -> float | None:
    odd = {"nan" if x != x else x for x in numbers if not math.isfinite(x)}
    if not odd:
        return None
    return odd.pop() if len(odd) == 1 and "nan" not in odd else math.nan


def moment(reduce: str, pairs: list[tuple[Any, Any]], dtype: Any) -> Any:
    odd = not_finite([x for x, _ in pairs])
    if odd is not None:
        return odd if reduce == "mean" else math.nan
    exact = [(Fraction(x), Fraction(w)) for x, w in pairs]
    mass = sum((w for _, w in exact), Fraction(0))
    mean = sum((x * w for x, w in exact), Fraction(0)) / mass
    if reduce == "mean":
        return nearest(mean, dtype)
    variance = sum(((x - mean) ** 2 * w for x, w in exact), Fraction(0)) / mass
    return nearest(variance if reduce == "var" else root(variance), dtype)


def root(value: Fraction) -> Fraction:
    with localcontext(prec=120):
        return Fraction((Decimal(value.numerator) / Decimal(value.denominator)).sqrt())


def is_wide(value: Any) -> bool:
    return type(value) in (bool, int, float) or np.asarray(value).dtype == np.float64


def elements(value: Any) -> list[Any]:
    array = np.asarray(value).reshape(-1)
    return [int(x) for x in array] if array.dtype.kind in "iub" else [float(x) for x in array]


def nearest(exact: Fraction, dtype: type[np.floating[Any]]) -> Any:
    """Round an exact number by comparing the neighbours of a first guess, ties to the even mantissa."""
    guess = dtype(float(exact))  # float() rounds fractions correctly; the cast may be one off, hence the neighbours
    candidates = {guess, np.nextafter(guess, dtype(np.inf)), np.nextafter(guess, dtype(-np.inf))}
    view = np.int64 if dtype is np.float64 else np.int32
    best = min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(view)) & 1))
    return best if best else abs(best)  # no negative zero from a sum
