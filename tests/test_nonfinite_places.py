"""The first NaN or infinity of an interval is located: its update, accumulation step and process. 540 injections."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import noether_jax
import noether_torch
from noether_core.errors import NonFiniteError

INJECTIONS = 60  # of each way, one an interval
UPDATES, ACCUMULATION_STEPS = 6, 2
STEPS = UPDATES * ACCUMULATION_STEPS
Interval = list[np.ndarray[Any, Any]]
Way = Callable[[Any, tuple[int, ...]], Callable[[Interval], None]]


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Interval, int]:
    """Return an interval's values and at which step the first is that is not finite; some have more later on."""
    values = [np.asarray(rng.normal(size=shape), np.float32) for _ in range(STEPS)]
    bad = int(rng.integers(STEPS))
    for at in (bad, *rng.integers(bad, STEPS, rng.integers(3))):
        values[at].reshape(-1)[rng.integers(values[at].size)] = rng.choice([np.nan, np.inf, -np.inf])
    return values, bad


def hooks(make: Callable[[Any], Any]) -> Way:
    def way(run: Any, shape: tuple[int, ...]) -> Callable[[Interval], None]:
        def interval(values: Interval) -> None:
            for value in values:
                run.step({"loss": make(value)})

        return interval

    return way


def jit(run: Any, shape: tuple[int, ...]) -> Callable[[Interval], None]:
    run.init({"loss": np.zeros(shape, np.float32)})
    step = jax.jit(run.track, donate_argnums=0)

    def interval(values: Interval) -> None:
        for value in values:
            run.step(step(run.tracked, {"loss": value}))

    return interval


def scan(run: Any, shape: tuple[int, ...]) -> Callable[[Interval], None]:
    run.init({"loss": np.zeros(shape, np.float32)}, steps_per_call=STEPS)

    @jax.jit
    def steps(tracked: Any, values: Any) -> Any:
        return jax.lax.scan(lambda carry, each: (run.track(carry, {"loss": each}), None), tracked, values)[0]

    return lambda values: run.step(steps(run.tracked, np.stack(values)), steps=STEPS)


def shard_map(run: Any, shape: tuple[int, ...]) -> Callable[[Interval], None]:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run.init({"loss": np.zeros(shape[0] // 8, np.float32)}, axis_name="data", mesh=mesh, steps_per_call=STEPS)

    def steps(tracked: Any, values: Any) -> Any:
        return jax.lax.scan(lambda carry, each: (run.track(carry, {"loss": each}), None), tracked, values)[0]

    mapped = jax.jit(jax.shard_map(steps, mesh=mesh, in_specs=(P("data"), P(None, "data")), out_specs=P("data")))
    return lambda values: run.step(mapped(run.tracked, np.stack(values)), steps=STEPS)


def to_torch(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value))


WAYS: dict[str, tuple[Any, Way, tuple[int, ...]]] = {
    "torch hooks, numbers": (noether_torch, hooks(to_torch), ()),
    "torch hooks, one element": (noether_torch, hooks(to_torch), (1,)),
    "torch hooks, arrays": (noether_torch, hooks(to_torch), (2, 3)),
    "torch hooks, large arrays": (noether_torch, hooks(to_torch), (1500,)),
    "jax hooks, numbers": (noether_jax, hooks(jnp.asarray), ()),
    "jax hooks, arrays": (noether_jax, hooks(jnp.asarray), (2, 3)),
    "jit": (noether_jax, jit, ()),
    "scan": (noether_jax, scan, (3,)),
    "shard_map on 8 devices": (noether_jax, shard_map, (16,)),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_first_value_that_is_not_finite_is_located(name: str, tmp_path: Path) -> None:
    front_end, way, shape = WAYS[name]
    rng = np.random.default_rng(len(name))
    config = {"every_n_updates": UPDATES, "keys": ["loss"], "nonfinite": "raise"}
    with front_end.Run(tmp_path, [config], accumulation_steps=ACCUMULATION_STEPS) as run:
        train = way(run, shape)
        for number in range(INJECTIONS):
            values, bad = draw(rng, shape)
            with pytest.raises(NonFiniteError) as caught:
                train(values)
            update = number * UPDATES + bad // ACCUMULATION_STEPS + 1
            place = f"first at update {update}, accumulation step {bad % ACCUMULATION_STEPS}, process 0"
            assert re.search(rf"{place}\.", str(caught.value)), f"injection {number}: {place}"


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("bad", [0, 255, 256, 257, 511, 512, 513, 599])
def test_it_is_located_where_pending_steps_are_reduced(shape: tuple[int, ...], bad: int, tmp_path: Path) -> None:
    config = {"every_n_updates": 600, "keys": ["loss"], "nonfinite": "raise"}
    values = [torch.full(shape, torch.inf if number in (bad, 599) else 1.0) for number in range(600)]
    with noether_torch.Run(tmp_path, [config]) as run:
        for value in values[:-1]:
            run.step({"loss": value})
        with pytest.raises(NonFiniteError, match=rf"first at update {bad + 1}, "):
            run.step({"loss": values[-1]})
