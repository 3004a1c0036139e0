"""Say what an interval's end costs in 8, 1,024 and 16,384 processes: bytes as they are sent, times as they are to be expected.

`python -m benchmarks.scale` prints the tables of docs/scale.md. It makes the states of 16,384 processes, each of which tracked
1,000 keys, adds what they would send, and compares what comes out with exact sums. `--quick` takes 256 processes.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from noether_core.algebra.exact import nearest
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.reduce.accumulate import OutputAccumulator
from noether_core.reduce.agreement import DUE, Offer
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.finish import Computation
from noether_core.reduce.host import HOST
from noether_core.reduce.lasts import lasts_of
from noether_core.reduce.partial import Partials, Vector
from noether_core.reduce.pool import Pool
from noether_core.reduce.threads import run_threads
from noether_core.reduce.wire import (
    NEUTRAL,
    Greatest,
    greatest_words,
    read_windows,
    read_words,
    sum_words,
    window_words,
)

KEYS = 1_000
PROCESSES = (8, 1_024, 16_384)
LATENCY, BANDWIDTH = 20e-6, 10e9  # seconds a message, bytes a second: of a usual cluster's network
STORE = 50e-6  # seconds that the store's host needs for what one process asks of it at an arrival
CONFIGS = {"mean": ["mean"], "mean, std, min, max": ["mean", "std", "min", "max"]}
STEPS = 3  # the most that a process of the simulation made


class Sent(NamedTuple):
    """Hold what a process sends at an interval's end: the bytes of each collective, in order."""

    header: int
    sums: int
    greatest: int


class _Counting:
    """Count the bytes of an exchange's collectives."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.index, self.count = exchange.index, exchange.count
        self.arrive, self.all_gather = exchange.arrive, exchange.all_gather
        self.gather_to_main, self.close = exchange.gather_to_main, exchange.close
        self.sent: list[int] = []

    def all_reduce_sum(self, values: Vector) -> Vector:
        self.sent.append(values.nbytes)
        return self._exchange.all_reduce_sum(values)

    def all_reduce_max(self, values: Vector) -> Vector:
        self.sent.append(values.nbytes)
        return self._exchange.all_reduce_max(values)


def _config(reductions: Sequence[str]) -> TrackAdditionalOutputsCallbackConfig:
    return TrackAdditionalOutputsCallbackConfig(every_n_updates=1, patterns=["layer"], reduce=list(reductions))


def _tracked(accumulator: OutputAccumulator, steps: Sequence[Sequence[float]]) -> Partials:
    names = tuple(f"layer_{at}/grad_norm" for at in range(len(steps[0])))
    accumulator.reset()
    for number, values in enumerate(steps):
        accumulator.add(names, list(map(np.float32, values)), number + 1, 0)
    return accumulator.partials()


def sent(reductions: Sequence[str]) -> Sent:
    """Return what a process sends of 1,000 keys: float32 numbers of a training's sizes."""
    config = _config(reductions)
    values = np.random.default_rng(0).lognormal(sigma=3, size=(2, 1, KEYS)).tolist()

    def body(exchange: Exchange) -> list[int]:
        counting = _Counting(exchange)
        pool = Pool(counting, [config])
        partials = _tracked(OutputAccumulator(HOST, config), values[exchange.index])
        for _ in range(2):  # at the first meeting the keys are agreed on
            counting.sent.clear()
            pool.pool([Offer(partials, DUE, lasts_of(partials, 1))], (0, 1, 1), "measure")
        return counting.sent

    return Sent(*run_threads(2, body)[0])


class Simulated(NamedTuple):
    """Hold what the simulation found: numbers, those that are not the exact ones, and seconds to add what all sent."""

    numbers: int
    wrong: int
    seconds: float


def simulate(processes: int) -> Simulated:
    """Add what so many processes would send, and compare the numbers with exact ones."""
    config = _config(["mean", "sum", "min", "max", "count"])
    source = np.random.default_rng(processes)
    counts = source.integers(0, STEPS + 1, processes)
    counts[0] = STEPS
    values = source.standard_cauchy((STEPS, processes, KEYS)).astype(np.float32)  # of many sizes and both signs
    accumulator = OutputAccumulator(HOST, config)

    def states() -> Iterator[Partials]:
        for process, count in enumerate(counts.tolist()):
            if count:
                yield _tracked(accumulator, values[:count, process])

    windows = read_windows(np.max([window_words([state]) for state in states()], axis=0))
    sums = greatest = own = None
    seconds = 0.0
    for own in states():
        words = sum_words(own, np.ones(KEYS, np.int64), windows)
        most = np.stack(greatest_words(own, np.full(KEYS, NEUTRAL)))
        begin = time.perf_counter()
        sums = words if sums is None else sums + words
        greatest = most if greatest is None else np.maximum(greatest, most)
        seconds += time.perf_counter() - begin
    assert own is not None and sums is not None and greatest is not None
    pooled, _ = read_words(own, windows, sums, Greatest(*greatest), None)
    found = Computation(config).compute(pooled, 1)
    wanted = [number for key in range(KEYS) for number in _exactly(values, counts, key)]
    wrong = sum(number != exact for number, exact in zip(found.values, wanted, strict=True))
    return Simulated(len(wanted), wrong, seconds)


def _exactly(values: np.ndarray, counts: np.ndarray, key: int) -> list[float]:
    given = [float(value) for step in range(STEPS) for value in values[step, counts > step, key].tolist()]
    high = math.fsum(given)
    exact = Fraction(high) + Fraction(math.fsum([*given, -high]))  # what is left fits into one more float
    mean, total = (nearest(value, np.float32) for value in (exact / len(given), exact))
    return [mean, total, min(given), max(given), len(given)]


def tables(simulated: Sequence[tuple[int, Simulated]]) -> str:
    """Return the tables in Markdown."""
    rows = [
        ["reductions", "processes", "bytes a process sends", "of these a key", "messages in a row", "expected time"]
    ]
    for name, reductions in CONFIGS.items():
        parts = sent(reductions)
        for processes in PROCESSES:
            hops = 2 * math.ceil(math.log2(processes))
            seconds = sum(hops * LATENCY + 2 * each / BANDWIDTH for each in parts) + processes * STORE
            cells = [f"{sum(parts):,}", f"{sum(parts[1:]) / KEYS:.0f}", f"{3 * hops}", f"{1e3 * seconds:.1f} ms"]
            rows.append([name, f"{processes:,}", *cells])
    checked = [["processes added", "numbers", "of these not exact", "adding one process's words"]]
    for processes, found in simulated:
        each = f"{1e6 * found.seconds / processes:.0f} µs"
        checked.append([f"{processes:,}", f"{found.numbers:,}", f"{found.wrong:,}", each])
    return "\n\n".join(
        "\n".join(f"| {' | '.join(row)} |" for row in [t[0], ["---"] * len(t[0]), *t[1:]]) for t in (rows, checked)
    )


def _main(arguments: list[str]) -> None:
    counts = (256,) if "--quick" in arguments else PROCESSES
    print(tables([(count, simulate(count)) for count in counts]))


if __name__ == "__main__":
    _main(sys.argv[1:])
