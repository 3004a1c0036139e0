"""The ways to get an interval's means that are measured: ours, and those that people use.

Each is made for a set of keys. `step` takes one accumulation step's update outputs; `finish` returns the means and starts the
next interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import clu.metrics
import jax
import jax.numpy as jnp
import metrax
import numpy as np
import torch
import torchmetrics
from flax import nnx

import noether_jax
import noether_torch
from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig, UpdateCounter

Outputs = Mapping[str, Any]


class Contender(NamedTuple):
    """Hold one way to get means; see the module."""

    step: Callable[[Outputs], None]
    finish: Callable[[], Any]


def torch_outputs(values: Mapping[str, np.ndarray[Any, Any]]) -> Outputs:
    """Return update outputs as tensors on the CPU."""
    return {key: torch.from_numpy(np.array(value)) for key, value in values.items()}


def jax_outputs(values: Mapping[str, np.ndarray[Any, Any]]) -> Outputs:
    """Return update outputs as JAX arrays."""
    return {key: jnp.asarray(value) for key, value in values.items()}


# ---------------------------------------------------------------------- ours


def hooks(module: ModuleType, outputs: Outputs, reduce: list[str] | str = "mean") -> Contender:
    """Track through the hooks of a trainer."""
    counter = UpdateCounter()
    config = TrackAdditionalOutputsCallbackConfig(every_n_updates=10**9, keys=list(outputs), reduce=reduce)
    writer = LogWriter(update_counter=counter)
    callback = module.TrackAdditionalOutputsCallback(config, log_writer=writer)
    callback.before_training(update_counter=counter)

    def step(outputs: Outputs) -> None:
        callback.track_after_accumulation_step(update_counter=counter, update_outputs=outputs)
        counter.next_update()

    def finish() -> Any:
        callback.periodic_callback(interval_type="update", update_counter=counter)
        writer.flush()
        return writer.log_entries[-1]

    return Contender(step, finish)


# ---------------------------------------------------------------------- PyTorch


def torch_lists(outputs: Outputs) -> Contender:
    """Append to lists, and stack at the interval's end."""
    lists: dict[str, list[torch.Tensor]] = {key: [] for key in outputs}

    def step(outputs: Outputs) -> None:
        for key, value in outputs.items():
            lists[key].append(value.detach().clone())

    def finish() -> dict[str, float]:
        means = {key: torch.stack(values).mean().item() for key, values in lists.items()}
        for values in lists.values():
            values.clear()
        return means

    return Contender(step, finish)


def torchmetrics_means(outputs: Outputs) -> Contender:
    """Update a `MeanMetric` per key."""
    metrics = {key: torchmetrics.MeanMetric() for key in outputs}

    def step(outputs: Outputs) -> None:
        for key, value in outputs.items():
            metrics[key].update(value)

    def finish() -> dict[str, float]:
        means = {key: metric.compute().item() for key, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return means

    return Contender(step, finish)


# ---------------------------------------------------------------------- JAX


def jax_lists(outputs: Outputs) -> Contender:
    """Append to lists, and stack at the interval's end."""
    lists: dict[str, list[jax.Array]] = {key: [] for key in outputs}

    def step(outputs: Outputs) -> None:
        for key, value in outputs.items():
            lists[key].append(value)

    def finish() -> dict[str, float]:
        means = {key: float(np.mean(jax.device_get(values))) for key, values in lists.items()}
        for values in lists.values():
            values.clear()
        return means

    return Contender(step, finish)


def _carried(update: Callable[[Any, Outputs], Any], blank: Any, read: Callable[[Any], Any]) -> Contender:
    """Return a pure metric in one compiled call a step, as its library's documentation recommends."""
    compiled = jax.jit(update)
    state = [blank]

    def step(outputs: Outputs) -> None:
        state[0] = compiled(state[0], outputs)

    def finish() -> Any:
        values = jax.device_get(read(state[0]))
        state[0] = blank  # which no step has changed
        return values

    return Contender(step, finish)


def nnx_metrics(outputs: Outputs) -> Contender:
    """Update an `nnx.MultiMetric` of `nnx.metrics.Average`, split and merged around one `jax.jit`."""
    metrics = nnx.MultiMetric(**{key: nnx.metrics.Average(key) for key in outputs})
    graph, blank = nnx.split(metrics)

    def update(state: Any, outputs: Outputs) -> Any:
        merged = nnx.merge(graph, state)
        merged.update(**outputs)
        return nnx.state(merged)

    return _carried(update, blank, lambda state: nnx.merge(graph, state).compute())


def clu_metrics(outputs: Outputs) -> Contender:
    """Merge a `clu.metrics.Collection` of `Average`."""
    collection = clu.metrics.Collection.create(**{key: clu.metrics.Average.from_output(key) for key in outputs})
    return _carried(
        lambda state, outputs: state.merge(collection.single_from_model_output(**outputs)),
        collection.empty(),
        lambda state: state.compute(),
    )


def metrax_metrics(outputs: Outputs) -> Contender:
    """Merge a `metrax.Average` per key."""
    return _carried(
        lambda state, outputs: {
            key: state[key].merge(metrax.Average.from_model_output(value)) for key, value in outputs.items()
        },
        {key: metrax.Average.empty() for key in outputs},
        lambda state: {key: metric.compute() for key, metric in state.items()},
    )


TORCH: dict[str, Callable[[Outputs], Contender]] = {
    "noether_torch, hooks": partial(hooks, noether_torch),
    "lists, stacked at the end": torch_lists,
    "torchmetrics.MeanMetric": torchmetrics_means,
}
JAX: dict[str, Callable[[Outputs], Contender]] = {
    "noether_jax, hooks": partial(hooks, noether_jax),
    "lists, stacked at the end": jax_lists,
    "flax.nnx.metrics": nnx_metrics,
    "clu.metrics": clu_metrics,
    "metrax": metrax_metrics,
}
