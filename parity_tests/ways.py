"""Every way of running a schedule. Each gives what it logged and saved, read back from its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.run import Run
from parity_tests.devices import to_framework
from parity_tests.reference import Outputs, Result, Schedule

_STEPS_PER_CALL = 5  # of the scanned way: not a divisor of most intervals


def _make(run_class: type[Run], schedule: Schedule, path: Path) -> Any:
    return run_class(
        path,
        [tracker.config(number) for number, tracker in enumerate(schedule.trackers)],
        updates_per_epoch=schedule.updates_per_epoch,
        effective_batch_size=schedule.effective_batch_size,
        accumulation_steps=schedule.accumulation_steps,
    )


def _result(path: Path) -> Result:
    read = read_run(path)
    assert not read.problems
    return Result(read.entries, {f"{file.interval}/{file.iteration}": file.load() for file in read.arrays})


def _steps(schedule: Schedule) -> Iterator[Outputs]:
    for update in schedule.steps:
        yield from update


def _hooks(run_class: type[Run]) -> Callable[[Schedule, Path], Result]:
    def run_schedule(schedule: Schedule, path: Path) -> Result:
        with _make(run_class, schedule, path) as run:
            for outputs in _steps(schedule):
                run.step(update_outputs=_to_framework(run_class, outputs))
        return _result(path)

    return run_schedule


def _to_framework(run_class: type[Run], outputs: Outputs) -> Any:
    """Return outputs with each NumPy array as an array of the framework."""
    if isinstance(outputs, Mapping):
        return {key: _to_framework(run_class, value) for key, value in outputs.items()}
    if isinstance(outputs, np.ndarray) and outputs.dtype not in (np.float64, np.int64):
        return to_framework(run_class, outputs)
    return outputs  # Python numbers, None, and 64-bit NumPy values, which JAX would narrow


def can_be_fused(schedule: Schedule) -> bool:
    """Tell whether a compiled step can give these outputs: the same keys every time, nothing wider than 32 bits."""
    names = {_signature(outputs) for outputs in _steps(schedule)}
    return len(names) == 1 and None not in names and all(tracker.reduce != "stack" for tracker in schedule.trackers)


def _signature(outputs: Outputs) -> Any:
    leaves = jax.tree_util.tree_flatten_with_path(outputs, is_leaf=lambda leaf: leaf is None)[0]
    if not leaves or any(leaf is None or np.asarray(leaf).dtype.itemsize == 8 for _, leaf in leaves):
        return None
    return tuple((jax.tree_util.keystr(path), leaf.dtype, leaf.shape) for path, leaf in leaves)


def _fused(schedule: Schedule, path: Path) -> Result:
    """Run as a jitted step, whose state is donated."""
    outputs = list(_steps(schedule))
    with _make(noether_jax.Run, schedule, path) as run:
        tracked = run.init(outputs[0])
        step = jax.jit(run.track, donate_argnums=0)
        for each in outputs:
            tracked = run.step(step(tracked, each))
        assert step._cache_size() == 1
    return _result(path)


def _scanned(schedule: Schedule, path: Path) -> Result:
    """Run as one compiled scan over several steps, which may hold several intervals' ends."""
    steps = _steps(schedule)
    with _make(noether_jax.Run, schedule, path) as run:
        tracked = run.init(next(_steps(schedule)), steps_per_call=_STEPS_PER_CALL)

        @jax.jit
        def call(tracked: Any, outputs: Any) -> Any:
            return jax.lax.scan(lambda carry, each: (run.track(carry, each), None), tracked, outputs)[0]

        while part := list(islice(steps, _STEPS_PER_CALL)):
            stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *part)
            tracked = run.step(call(tracked, stacked), steps=len(part))
    return _result(path)


WAYS: dict[str, Callable[[Schedule, Path], Result]] = {
    "jax hooks": _hooks(noether_jax.Run),
    "torch hooks": _hooks(noether_torch.Run),
}
FUSED_WAYS: dict[str, Callable[[Schedule, Path], Result]] = {"jax jit": _fused, "jax scan": _scanned}
