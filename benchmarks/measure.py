"""Time functions side by side: in turns within one run, so that what else the machine does falls on all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median


def side_by_side(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float = 0.02
) -> dict[str, list[float]]:
    """Return each function's time per call, in µs, for each of many rounds.

    Args:
        functions: what to time; each is called once before.
        rounds: how many turns each gets.
        seconds: how long a turn lasts, about.
    """
    calls = {}
    for name, function in functions.items():
        function()
        started = time.perf_counter()
        function()
        calls[name] = max(1, int(seconds / max(time.perf_counter() - started, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name].append((time.perf_counter() - started) / calls[name] * 1e6)
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """Return how many times as long the others took, as the median over the rounds."""
    return median(other / own for own, other in zip(times, others, strict=True))
