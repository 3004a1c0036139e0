"""Every way of reducing the steps of one interval. Each gives the finished values of every key, in the reductions' order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import noether_jax
import noether_torch
from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig, UpdateCounter
from noether_jax.output_tracker import OutputTracker as JaxTracker
from parity_tests.devices import to_torch

STEPS, WIDTH = 4, 8
Config = TrackAdditionalOutputsCallbackConfig
Values = dict[str, np.ndarray[Any, Any]]  # key -> [STEPS, WIDTH]
Finished = dict[str, list[Any]]
COMPILED = ("mean", "last", "sum", "min", "max", "std", "var", "count")
HOOKS = (*COMPILED, "stack")


class Way(NamedTuple):
    """Describe a way of running: how the values are cut into steps, what reduces them, and what it can."""

    cut: Callable[[Values], list[Values]]
    run: Callable[[list[Values], Config], Finished]
    reductions: tuple[str, ...] = COMPILED


def arrays(values: Values) -> list[Values]:
    return [{key: value[step] for key, value in values.items()} for step in range(STEPS)]


def scalars(values: Values) -> list[Values]:
    flat = {key: value.reshape(-1) for key, value in values.items()}
    return [{key: np.asarray(value[step]) for key, value in flat.items()} for step in range(STEPS * WIDTH)]


# ---------------------------------------------------------------------- hooks


def hooks(
    module: Any, make: Callable[[Any], Any], after: Callable[[Any], None] | None, steps: list[Values], config: Config
) -> Finished:
    counter = UpdateCounter()
    callback = module.TrackAdditionalOutputsCallback(
        config, log_writer=LogWriter(update_counter=counter), output_path="nothing is written"
    )
    callback.before_training(update_counter=counter)
    for outputs in steps:
        given = {key: make(value) for key, value in outputs.items()}
        callback.track_after_accumulation_step(update_counter=counter, update_outputs=given)
        counter.next_update()
        if after is not None:
            after(given)
    return dict(callback.tracked_values)


def overwrite(outputs: dict[str, torch.Tensor]) -> None:
    """Do what the next replay of a CUDA graph does to its outputs."""
    for value in outputs.values():
        value.fill_(1)


@cache
def identity() -> Any:
    return torch.compile(torch.clone, backend="aot_eager", dynamic=False)


def compiled_hooks(steps: list[Values], config: Config) -> Finished:
    return hooks(noether_torch, lambda value: identity()(to_torch(value)), overwrite, steps, config)


# ---------------------------------------------------------------------- compiled functions


@cache
def compiled(keys: tuple[str, ...], weight: str | None, precision: Any, axis_name: Any) -> dict[str, Any]:
    """Return where the compiled functions of such configs are kept: what `nonfinite` says matters at the end only."""
    return {}


def tracker_of(config: Config, precision: Any = None, axis_name: Any = None) -> tuple[JaxTracker, dict[str, Any]]:
    tracker = JaxTracker(config, axis_name, precision, mesh=None if axis_name is None else mesh())
    return tracker, compiled(tuple(config.keys or ()), config.weight, precision, axis_name)


def computed(tracker: JaxTracker, state: Any) -> Finished:
    results = tracker.compute(state)
    names = {key: [f"{key}/{reduction}" for reduction in COMPILED] for key in tracker.config.keys or ()}
    return {key: [results[name] for name in wanted if name in results] for key, wanted in names.items()}


def jit(steps: list[Values], config: Config, precision: Any = None) -> Finished:
    tracker, functions = tracker_of(config, precision)
    update = functions.setdefault("jit", jax.jit(tracker.update, donate_argnums=0))
    state = tracker.init(steps[0])
    for outputs in steps:
        state = update(state, outputs)
    return computed(tracker, state)


def scan(steps: list[Values], config: Config) -> Finished:
    tracker, functions = tracker_of(config)
    whole = functions.setdefault(
        "scan",
        jax.jit(lambda state, xs: jax.lax.scan(lambda carry, x: (tracker.update(carry, x), None), state, xs)[0]),
    )
    return computed(tracker, whole(tracker.init(steps[0]), jax.tree.map(lambda *leaves: np.stack(leaves), *steps)))


def vmap(steps: list[Values], config: Config) -> Finished:
    """Give each lane a part of the steps, and merge the lanes' states."""
    tracker, functions = tracker_of(config)
    update = functions.setdefault("vmap", jax.jit(jax.vmap(tracker.update)))
    state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tracker.init(steps[0]))
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        state = update(state, {key: np.stack([first[key], second[key]]) for key in first})
    lanes = [jax.tree.map(lambda leaf, lane=lane: leaf[lane], state) for lane in range(2)]
    return computed(tracker, tracker.merge(*lanes))


@cache
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((WIDTH,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu"))


def shard_map(steps: list[Values], config: Config) -> Finished:
    tracker, functions = tracker_of(config, axis_name="data")
    update = functions.setdefault(
        "shard_map",
        jax.jit(jax.shard_map(tracker.update, mesh=mesh(), in_specs=P("data"), out_specs=P("data")), donate_argnums=0),
    )
    local = {key: jax.ShapeDtypeStruct((1,), value.dtype) for key, value in steps[0].items()}
    state = tracker.init(local)
    for outputs in steps:
        state = update(state, outputs)
    return computed(tracker, state)


def gspmd(steps: list[Values], config: Config) -> Finished:
    tracker, functions = tracker_of(config)
    update = functions.setdefault("gspmd", jax.jit(tracker.update, donate_argnums=0))
    state = jax.device_put(tracker.init(steps[0]), NamedSharding(mesh(), P()))
    for outputs in steps:
        state = update(state, jax.device_put(outputs, NamedSharding(mesh(), P("data"))))
    return computed(tracker, state)


WAYS: dict[str, Way] = {
    "torch hooks, arrays": Way(arrays, partial(hooks, noether_torch, to_torch, None), HOOKS),
    "torch hooks, scalars, buffers reused": Way(scalars, partial(hooks, noether_torch, to_torch, overwrite), HOOKS),
    "torch compiled": Way(arrays, compiled_hooks, HOOKS),
    "jax hooks, arrays": Way(arrays, partial(hooks, noether_jax, jnp.asarray, None), HOOKS),
    "jax hooks, scalars": Way(scalars, partial(hooks, noether_jax, jnp.asarray, None), HOOKS),
    "jit, arrays": Way(arrays, jit),
    "jit, scalars": Way(scalars, jit),
    "jit, pairs of binary32": Way(arrays, partial(jit, precision="binary32")),
    "scan": Way(scalars, scan),
    "vmap and merge": Way(arrays, vmap),
    # each member of the axis has a last value of its own
    "shard_map on 8 devices": Way(arrays, shard_map, tuple(name for name in COMPILED if name != "last")),
    "GSPMD on 8 devices": Way(arrays, gspmd),
}
