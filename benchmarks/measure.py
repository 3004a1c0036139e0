"""Time functions side by side: in turns within one run, so that what else the machine does falls on all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any


def side_by_side(
    functions: Mapping[str, Callable[..., object]],
    *,
    rounds: int,
    seconds: float = 0.02,
    fresh: Callable[[int], Sequence[Any]] | None = None,
    least: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Return each function's time per call, in µs, for each of many rounds.

    Args:
        functions: what to time; each is called three times before.
        rounds: how many turns each gets.
        seconds: how long a turn lasts, about.
        fresh: returns so many new arguments, one for each call of a turn, before the turn; None: the functions take none. (An
            array of JAX keeps what was once brought to the host, so that a second time costs nothing.)
        least: how many calls a turn has at the least, by the function's name.
    """

    def turn(function: Callable[..., object], calls: int) -> float:
        arguments = [()] * calls if fresh is None else [(each,) for each in fresh(calls)]
        started = time.perf_counter()
        for each in arguments:
            function(*each)
        return (time.perf_counter() - started) / calls

    calls = {}
    for name, function in functions.items():
        turn(function, 2)
        calls[name] = max((least or {}).get(name, 1), int(seconds / max(turn(function, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(turn(function, calls[name]) * 1e6)
    return times


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return how many times as long the others took, as the median over the rounds."""
    return median(other / own for own, other in zip(times, others, strict=True))


def fastest(times: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """Return which of some names took the least, by the median."""
    return min(names, key=lambda name: median(times[name]))
