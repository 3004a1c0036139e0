"""Run whole trainings in virtual processes, which are threads, and as one process would."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import noether_jax
import noether_torch
from noether_core.reduce.threads import ThreadExchange, run_threads

FRONT_ENDS = [noether_torch, noether_jax]
HOSTILE = ["loss", "🙂", "\ud800 alone", "nul\0", "x" * 3000, "a/b", " ", "ключ", "loss ", "'\"\\", "\n"]


class Outcome(NamedTuple):
    """Hold what a process's run came to: its entries, and what it raised."""

    entries: list[dict[str, Any]]
    error: Exception | None
    calls: list[str]


def train(
    path: Path,
    count: int,
    configs: Any,
    loop: Callable[[Any, int], None],
    *,
    front_end: Any = noether_torch,
    time_limit: float = 30.0,
    **arguments: Any,
) -> tuple[list[Outcome], list[str]]:
    """Run a loop, given the run and the process's number, in each process; return what each came to, and the warnings."""

    def body(exchange: ThreadExchange) -> Outcome:
        error, run = None, None
        try:
            own = configs(exchange.index) if callable(configs) else configs
            with front_end.Run(path, own, processes=exchange, **arguments) as run:
                loop(run, exchange.index)
        except Exception as raised:
            error = raised
        return Outcome([] if run is None else run.log_writer.log_entries, error, exchange.calls)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run_threads(count, body, time_limit=time_limit)
    return found, [str(each.message) for each in caught]


def steps_of(outputs: list[list[Any]]) -> Callable[[Any, int], None]:
    def loop(run: Any, index: int) -> None:
        for each in outputs[index]:
            run.step(each)

    return loop


def reference(path: Path, configs: Any, outputs: list[list[Any]], front_end: Any, **arguments: Any) -> list[Any]:
    """Return the entries of one process that has all of their values: its accumulation steps are the processes."""
    with (
        warnings.catch_warnings(),
        front_end.Run(path, configs, processes=1, accumulation_steps=len(outputs), **arguments) as run,
    ):
        warnings.simplefilter("ignore")
        for update in range(max(map(len, outputs))):
            for own in outputs:
                run.step(own[update] if update < len(own) else None)
    return list(run.log_writer.log_entries)


def drawn_value(rng: np.random.Generator, front_end: Any) -> Any:
    dtype = [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, bool, np.float64, np.int64][
        rng.integers(8)
    ]
    shape = [(), (), (2,), (1,), (0,), (3, 2)][rng.integers(6)]
    value = np.asarray(rng.normal(size=shape) * 50).astype(dtype)
    if rng.random() < 0.1 and value.dtype.kind == "f":
        value = np.full_like(value, [np.nan, np.inf, -np.inf][rng.integers(3)])
    if rng.random() < 0.4 and value.dtype != bool:
        return front_end.Run.backend.from_numpy(value)
    if rng.random() < 0.2 and value.ndim == 0:
        return value.item()
    return value


def in_key_order(entries: list[dict[str, Any]]) -> list[str]:
    return [repr(sorted(entry.items(), key=lambda pair: repr(pair[0]))) for entry in entries]
