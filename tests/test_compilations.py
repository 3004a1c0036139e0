"""A compiled function is never traced or compiled again after its first call with a signature."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noether_jax import Run

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 4, "patterns": [""], "reduce": ["mean", "std", "last"], "missing": "skip"},
    {"every_n_updates": 3, "patterns": [""], "reduce": ["min", "sum"], "weight": "loss", "missing": "skip"},
]


@contextmanager
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Note what JAX traces or compiles, as it says itself."""
    noted: list[str] = []
    caplog.clear()
    with caplog.at_level(logging.DEBUG), jax.log_compiles(True):
        yield noted
    texts = [record.getMessage() for record in caplog.records]
    noted += [text for text in texts if text.startswith(("Finished tracing", "Finished XLA compilation", "Compiling"))]


def outputs(number: int, *more: str) -> dict[str, Any]:
    values = {"loss": 1.0 + number, "norm": 2.0, **dict.fromkeys(more, 3.0)}
    return {key: jax.device_put(np.float32(value)) for key, value in values.items()}


def test_hooks_compile_once_for_each_key_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = [(), ("extra",)]
    with Run(tmp_path, CONFIGS, accumulation_steps=3) as run:
        with compilations(caplog) as first:
            for number in range(36):  # twelve updates: each key set comes within intervals and across their ends
                run.step(outputs(number, *sets[number % 2]))
        with compilations(caplog) as later:
            for number in range(75):  # into an interval
                run.step(outputs(number, *sets[number % 2]))
            assert run.callbacks[0].tracked_values
            run.state_dict()
    assert first
    assert later == []


def test_an_intervals_end_is_compiled_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"every_n_updates": 45, "keys": ["loss"], "reduce": ["mean", "std"]}
    with Run(tmp_path, [config]) as run:
        with compilations(caplog) as first:
            for number in range(45):
                run.step(outputs(number))
        with compilations(caplog) as later:
            for number in range(90):
                run.step(outputs(number))
    assert first
    assert later == []


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_a_fused_step_is_compiled_once(steps_per_call: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stacked = jax.tree.map(lambda *each: np.stack(each), *[outputs(number) for number in range(steps_per_call)])
    with Run(tmp_path, CONFIGS, accumulation_steps=2) as run:
        tracked = run.init(outputs(0), steps_per_call=steps_per_call)

        @jax.jit
        def step(tracked: Any, given: Any) -> Any:
            return jax.lax.scan(lambda carry, each: (run.track(carry, each), None), tracked, given)[0]

        with compilations(caplog) as first:
            for _ in range(8):  # to the first interval's end and past it
                tracked = run.step(step(tracked, stacked), steps=steps_per_call)
        with compilations(caplog) as later:
            for _ in range(48):
                tracked = run.step(step(tracked, stacked), steps=steps_per_call)
            run.state_dict()
        assert step._cache_size() == 1
    assert first
    assert later == []


def test_what_is_compiled_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    double = jax.jit(lambda x: 2 * x)
    with compilations(caplog) as first:
        double(jnp.float32(1))
    with compilations(caplog) as again:
        double(np.float32(2))
    with compilations(caplog) as other:
        double(np.ones(3, np.float32))
    assert first
    assert again == []
    assert other
