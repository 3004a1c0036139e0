"""Measure ours beside what people use, in one run, and write the tables and the plot to `docs/`: `python -m benchmarks`.

All is float32 on the CPU; the numbers are ratios of medians over many turns, taken side by side. `--quick` takes fewer turns;
`--before REVISION` adds what has become of the times since.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import before, compilation, fused, logged, long_log, reading, rounding
from benchmarks.contenders import JAX, TORCH, Contender, Outputs, jax_outputs, torch_outputs
from benchmarks.measure import ratio, side_by_side
from benchmarks.memory import growth
from benchmarks.report import Report, plot

NUM_KEYS = (1, 10, 100, 1000)
NUM_ELEMENTS = (10**4, 10**6, 16 * 10**6)
LISTS = "lists, stacked at the end"
OURS = {"PyTorch": "noether_torch, hooks", "JAX": "noether_jax, hooks"}
FRAMEWORKS: dict[str, tuple[dict[str, Callable[[Outputs], Contender]], Callable[..., Outputs]]] = {
    "PyTorch": (TORCH, torch_outputs),
    "JAX": (JAX, jax_outputs),
}


def _scalars(framework: str, num_keys: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the times of a step, and of an interval's end after 100 steps, in µs."""
    contenders, convert = FRAMEWORKS[framework]
    outputs = convert({f"key_{at}": np.float32(at) for at in range(num_keys)})
    made = {name: make(outputs) for name, make in contenders.items()}
    steps = side_by_side(
        {name: lambda c=each: c.step(outputs) for name, each in made.items()},
        rounds=rounds,
        # ours reduces so many steps together, at the most: each turn has its share of that
        least={OURS[framework]: min(256, 1 + 2**15 // num_keys)},
    )
    ends: dict[str, float] = {}
    for name, contender in made.items():
        contender.finish()
        times = []
        for _ in range(3 if num_keys > 100 else 5):
            for _ in range(100 if name in {OURS[framework], LISTS} or num_keys < 1000 else 10):
                contender.step(outputs)
            jax.block_until_ready(jax.live_arrays())
            started = time.perf_counter()
            contender.finish()
            times.append((time.perf_counter() - started) * 1e6)
        ends[name] = median(times)
    return steps, ends


def _array(framework: str, elements: int, rounds: int) -> dict[str, list[float]]:
    """Return the times in µs of a step with one array, until the device has done it; and of the framework's own sum."""
    contenders, convert = FRAMEWORKS[framework]
    rng = np.random.default_rng(0)
    # a training's arrays are new at every step: as many as no cache holds
    count = min(16, max(2, 2**26 // (4 * elements)))
    fields = [convert({"field": rng.standard_normal(elements).astype(np.float32)}) for _ in range(count)]
    turns = cycle(fields)
    functions: dict[str, Callable[[], object]] = {}
    if framework == "PyTorch":
        functions["float32 sum"] = lambda: next(turns)["field"].sum()
    else:
        add = jax.jit(jnp.sum)
        functions["float32 sum"] = lambda: add(next(turns)["field"]).block_until_ready()
    for name, make in contenders.items():
        if name == LISTS:  # copies that are never read; their cost is memory
            continue
        contender = make(fields[0])

        def step(contender: Contender = contender) -> None:
            contender.step(next(turns))
            if framework == "JAX":
                jax.block_until_ready(jax.live_arrays())

        functions[name] = step
    return side_by_side(functions, rounds=rounds, seconds=0.01)


def _scalar_tables(report: Report, rounds: int) -> dict[str, dict[str, dict[int, float]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for framework, ours in OURS.items():
        per_step: dict[str, dict[int, float]] = {name: {} for name in FRAMEWORKS[framework][0]}
        per_end: dict[str, dict[int, float]] = {name: {} for name in per_step}
        ratios: dict[str, dict[int, float]] = {name: {} for name in per_step}
        for num_keys in NUM_KEYS:
            # a step of a metric object per key takes a tenth of a second at 1,000 keys
            steps, ends = _scalars(framework, num_keys, rounds if num_keys < 1000 else max(3, rounds // 8))
            for name, times in steps.items():
                per_step[name][num_keys] = median(times)
                per_end[name][num_keys] = ends[name]
                ratios[name][num_keys] = ratio(steps[ours], times)
        report.steps(framework, per_step, ratios)
        report.ends(framework, per_end)
        found[framework] = per_step
    return found


def _logged_tables(report: Report, rounds: int) -> None:
    for framework, hand in logged.HAND.items():
        times = {}
        for num_keys in NUM_KEYS:
            with tempfile.TemporaryDirectory() as directory:
                turns = rounds if num_keys < 1000 else max(5, rounds // 4)
                times[num_keys] = logged.measure(framework, num_keys, Path(directory), turns)
        report.logged(framework, times, list(hand))


def _array_table(report: Report, rounds: int) -> None:
    for framework in OURS:
        times = {elements: _array(framework, elements, rounds) for elements in NUM_ELEMENTS}
        report.arrays(framework, times)


def _fused_table(report: Report, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        rows = {keys: fused.measure(keys, Path(directory) / str(keys), rounds) for keys in (1, 20, 100)}
    report.fused(rows)


def _compilation_table(report: Report) -> None:
    arrays, shape = 150, (64, 35)
    report.compilation(arrays, shape, compilation.measure(arrays, shape))


def _reading_table(report: Report, quick: bool) -> None:
    keys, updates = 1000, 500 if quick else 10_000
    report.reading(keys, updates, reading.measure(keys, updates))


def _rounding_table(report: Report, quick: bool) -> None:
    number = (10**5 if quick else 10**7) // len(rounding.KINDS)
    report.rounding({kind: rounding.check(kind, number) for kind in rounding.KINDS})


def _memory_table(report: Report, quick: bool) -> None:
    steps = 1000 if quick else 10_000
    rows = []
    for framework, ours in OURS.items():
        for name in FRAMEWORKS[framework][0]:
            grown, peak = growth({"PyTorch": "torch", "JAX": "jax"}[framework], name, 0, 100, steps)
            rows.append((f"{framework}: {name}", "100 scalars", steps, grown, peak))
        for name in (ours, LISTS):
            count = steps if name == ours else 200  # a list of arrays would fill any memory
            grown, peak = growth({"PyTorch": "torch", "JAX": "jax"}[framework], name, 10**6, 1, count)
            rows.append((f"{framework}: {name}", "an array of 1e6", count, grown, peak))
    report.memory(rows)
    updates, keys = 20_000 if quick else 10**6, 10
    report.long_log(updates, keys, long_log.sizes(updates, keys))


def _about(given: argparse.Namespace) -> Mapping[str, str]:
    arguments = ["--quick"] * given.quick + (["--before", given.before] if given.before else [])
    packages = ("jax", "flax", "clu", "google-metrax", "torch", "torchmetrics")
    return {
        "command": " ".join(["python -m benchmarks", *arguments]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "threads": str(torch.get_num_threads()),
        "packages": ", ".join(f"{package} {version(package)}" for package in packages),
    }


def main() -> None:
    """Measure everything, and write `docs/benchmarks.md` and `docs/benchmarks.svg`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--before", metavar="REVISION")
    given = parser.parse_args()
    rounds = 10 if given.quick else 60
    report = Report(_about(given))
    per_step = _scalar_tables(report, rounds)
    _logged_tables(report, rounds)
    if given.before:
        report.before(given.before, before.compare(given.before, rounds=3))
    _array_table(report, max(10, rounds // 2))
    _fused_table(report, rounds * 5)
    _memory_table(report, given.quick)
    _compilation_table(report)
    _reading_table(report, given.quick)
    _rounding_table(report, given.quick)
    (given.out / "benchmarks.md").write_text(report.text(), encoding="utf-8")
    plot(per_step, given.out / "benchmarks.svg")


if __name__ == "__main__":
    main()
