"""The same numbers, however they are split: every reduction and dtype, through every way of running, bit for bit.

A case is 32 numbers of each dtype. They come as 4 arrays of 8 or as 32 scalars, through hooks or compiled functions, whole or
over 8 devices; each finished value must be the exact reference's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import noether_jax
import noether_torch
from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig, UpdateCounter
from noether_jax.tracker import Tracker as JaxTracker
from parity_tests import reference
from parity_tests.test_schedules import draw_value

STEPS, WIDTH = 4, 8
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.int8, np.uint8, np.bool_]
REDUCTIONS = ["mean", "sum", "min", "max", "std", "var", "count"]
KEYS = {np.dtype(dtype).name: dtype for dtype in DTYPES}
Values = dict[str, np.ndarray[Any, Any]]  # key -> [STEPS, WIDTH]
Finished = dict[str, list[Any]]
Way = Callable[[Values, TrackAdditionalOutputsCallbackConfig], Finished]


def config(*, weighted: bool, nonfinite: str) -> TrackAdditionalOutputsCallbackConfig:
    return TrackAdditionalOutputsCallbackConfig(
        every_n_updates=10**6,
        keys=list(KEYS),
        reduce=REDUCTIONS,
        weight="weight" if weighted else None,
        nonfinite=nonfinite,
    )


def draw(seed: int) -> Values:
    rng = np.random.default_rng(seed)
    scale = ("unit", "offset", "wild", "whole", "nonfinite")[seed % 5]
    values = {key: draw_value(rng, dtype, (STEPS, WIDTH), scale) for key, dtype in KEYS.items()}
    weight = np.where(rng.random((STEPS, WIDTH)) < 0.2, 0.0, rng.random((STEPS, WIDTH)))
    return values | {"weight": weight.astype(np.float32)}


def exact(values: Values, config: TrackAdditionalOutputsCallbackConfig) -> Finished:
    found: Finished = {}
    for key in KEYS:
        weights = values["weight"].reshape(-1) if config.weight else [None] * (STEPS * WIDTH)
        seen = [(1, value, weight) for value, weight in zip(values[key].reshape(-1), weights, strict=True)]
        results = [
            reference.reduced(
                reference.Tracker("update", 1, (key,), (), reduction, True, False, config.nonfinite, config.weight),
                seen,
                1,
            )
            for reduction in REDUCTIONS
        ]
        found[key] = [result if isinstance(result, int) else result.item() for result in results if result is not None]
    return found


# ---------------------------------------------------------------------- ways


def _arrays(values: Values) -> list[Values]:
    return [{key: value[step] for key, value in values.items()} for step in range(STEPS)]


def _scalars(values: Values) -> list[Values]:
    flat = {key: value.reshape(-1) for key, value in values.items()}
    return [{key: np.asarray(value[step]) for key, value in flat.items()} for step in range(STEPS * WIDTH)]


def through_hooks(
    module: Any, steps: list[Values], config: Any, make: Callable[[Any], Any], after: Any = None
) -> Finished:
    counter = UpdateCounter()
    callback = module.TrackAdditionalOutputsCallback(config, log_writer=LogWriter(update_counter=counter))
    callback.before_training(update_counter=counter)
    for outputs in steps:
        given = {key: make(value) for key, value in outputs.items()}
        callback.track_after_accumulation_step(update_counter=counter, update_outputs=given)
        counter.next_update()
        if after is not None:
            after(given)
    return dict(callback.tracked_values)


def _overwrite(outputs: dict[str, torch.Tensor]) -> None:
    """Do what the next replay of a CUDA graph does to its outputs."""
    for value in outputs.values():
        value.fill_(1)


def _torch(value: Any) -> torch.Tensor:
    return noether_torch.Run.backend.from_numpy(np.asarray(value))


@cache
def _compiled_identity() -> Any:
    return torch.compile(lambda value: torch.where(value == value, value, value), backend="aot_eager", dynamic=False)


@cache
def _tracker(config: str, precision: Any = None, axis_name: Any = None) -> tuple[JaxTracker, dict[Any, Any]]:
    parsed = TrackAdditionalOutputsCallbackConfig.model_validate_json(config)
    return JaxTracker(parsed, axis_name, precision), {}


def _computed(tracker: JaxTracker, state: Any) -> Finished:
    results = tracker.compute(state)
    return {key: [results[name].item() for r in REDUCTIONS if (name := f"{key}/{r}") in results] for key in KEYS}


def through_jit(steps: list[Values], config: Any, precision: Any = None) -> Finished:
    tracker, compiled = _tracker(config.model_dump_json(), precision)
    update = compiled.setdefault("jit", jax.jit(tracker.update, donate_argnums=0))
    state = tracker.init(steps[0])
    for outputs in steps:
        state = update(state, outputs)
    return _computed(tracker, state)


def through_scan(steps: list[Values], config: Any) -> Finished:
    tracker, compiled = _tracker(config.model_dump_json())
    scan = compiled.setdefault(
        "scan",
        jax.jit(lambda state, xs: jax.lax.scan(lambda carry, x: (tracker.update(carry, x), None), state, xs)[0]),
    )
    return _computed(tracker, scan(tracker.init(steps[0]), jax.tree.map(lambda *leaves: np.stack(leaves), *steps)))


def through_vmap(steps: list[Values], config: Any) -> Finished:
    """Give each lane a part of the steps, and merge the lanes' states."""
    tracker, compiled = _tracker(config.model_dump_json())
    update = compiled.setdefault("vmap", jax.jit(jax.vmap(tracker.update)))
    blank = tracker.init(steps[0])
    state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), blank)
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        state = update(state, {key: np.stack([first[key], second[key]]) for key in first})
    lanes = [jax.tree.map(lambda leaf, lane=lane: leaf[lane], state) for lane in range(2)]
    return _computed(tracker, tracker.merge(*lanes))


@cache
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((WIDTH,), ("data",), axis_types=(AxisType.Auto,))


def through_shard_map(steps: list[Values], config: Any) -> Finished:
    tracker, compiled = _tracker(config.model_dump_json(), axis_name="data")
    update = compiled.setdefault(
        "shard_map",
        jax.jit(jax.shard_map(tracker.update, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P()), donate_argnums=0),
    )
    local = {key: jax.ShapeDtypeStruct((1,), value.dtype) for key, value in steps[0].items()}
    state = jax.device_put(tracker.init(local), NamedSharding(mesh(), P()))
    for outputs in steps:
        state = update(state, outputs)
    return _computed(tracker, state)


def through_gspmd(steps: list[Values], config: Any) -> Finished:
    tracker, compiled = _tracker(config.model_dump_json())
    update = compiled.setdefault("gspmd", jax.jit(tracker.update, donate_argnums=0))
    state = jax.device_put(tracker.init(steps[0]), NamedSharding(mesh(), P()))
    for outputs in steps:
        state = update(state, jax.device_put(outputs, NamedSharding(mesh(), P("data"))))
    return _computed(tracker, state)


WAYS: dict[str, Way] = {
    "torch hooks, arrays": lambda v, c: through_hooks(noether_torch, _arrays(v), c, _torch),
    "torch hooks, scalars, buffers reused": lambda v, c: through_hooks(
        noether_torch, _scalars(v), c, _torch, _overwrite
    ),
    "torch compiled": lambda v, c: through_hooks(
        noether_torch, _arrays(v), c, lambda value: _compiled_identity()(_torch(value)), _overwrite
    ),
    "jax hooks, arrays": lambda v, c: through_hooks(noether_jax, _arrays(v), c, jnp.asarray),
    "jax hooks, scalars": lambda v, c: through_hooks(noether_jax, _scalars(v), c, jnp.asarray),
    "jit, arrays": lambda v, c: through_jit(_arrays(v), c),
    "jit, scalars": lambda v, c: through_jit(_scalars(v), c),
    "jit, pairs of binary32": lambda v, c: through_jit(_arrays(v), c, "binary32"),
    "scan": lambda v, c: through_scan(_scalars(v), c),
    "vmap and merge": lambda v, c: through_vmap(_arrays(v), c),
    "shard_map on 8 devices": lambda v, c: through_shard_map(_arrays(v), c),
    "GSPMD on 8 devices": lambda v, c: through_gspmd(_arrays(v), c),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_split_gives_the_exact_numbers(way: str, full: bool) -> None:
    seeds = int(os.environ.get("PARITY_SPLITS", "300" if full else "40"))
    values_compared = 0
    for seed in range(seeds):
        values = draw(seed)
        chosen = config(weighted=seed % 2 == 1, nonfinite="skip" if seed % 3 == 0 else "propagate")
        found, wanted = WAYS[way](values, chosen), exact(values, chosen)
        for key in KEYS:
            assert repr(found[key]) == repr(wanted[key]), f"{way}, seed {seed}, {key}"
            values_compared += len(wanted[key])
    assert values_compared >= 40 * seeds
