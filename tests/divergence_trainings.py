"""Train a small model in PyTorch and in JAX from the same weights and batches, and keep all that each step computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from noether_core.parity.divergence import MemoryTraining, Noise

Arrays = dict[str, np.ndarray]
Forward = Callable[[ModuleType, Any, Any], tuple[dict[str, Any], Any]]
Change = Callable[[int, Arrays], Arrays]


def unchanged(update: int, arrays: Arrays) -> Arrays:
    return arrays


@dataclass(frozen=True)
class Case:
    """Hold a training that both frameworks can do.

    Attributes:
        forward: from the array library (torch or jax.numpy), parameters and a batch to activations by name, and the loss.
        batches: one of each update.
        optimizers: PyTorch's from parameters, and optax's.
        running: from activations, a buffer's new values; None without buffers.
    """

    forward: Forward
    params: Arrays
    batches: Sequence[Arrays]
    optimizers: tuple[Callable[[Any], torch.optim.Optimizer], optax.GradientTransformation]
    change_grads: Change = unchanged
    change_updates: Change = unchanged
    running: Callable[[Any, Mapping[str, Any]], Arrays] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def with_bug(self, **changes: Any) -> Case:
        return replace(self, **changes)


def sgd(rate: float) -> Any:
    return (lambda params: torch.optim.SGD(params, rate)), optax.sgd(rate)


def adam(rate: float, **options: float) -> Any:
    eps = options.get("eps", 1e-8)
    return (lambda params: torch.optim.Adam(params, rate, eps=eps)), optax.adam(rate, eps=eps)


def adamw(rate: float, decay: float) -> Any:
    return (lambda params: torch.optim.AdamW(params, rate, weight_decay=decay)), optax.adamw(rate, weight_decay=decay)


def in_torch(case: Case, label: str = "in torch") -> MemoryTraining:
    params = {name: torch.tensor(value, requires_grad=True) for name, value in case.params.items()}
    optimizer = case.optimizers[0](list(params.values()))
    updates: dict[int, Arrays] = {}
    for update, batch in enumerate(case.batches, 1):
        before = {name: value.detach().numpy().copy() for name, value in params.items()}
        optimizer.zero_grad()
        acts, loss = case.forward(torch, params, {name: torch.from_numpy(value) for name, value in batch.items()})
        loss.backward()
        grads = case.change_grads(update, {name: value.grad.numpy().copy() for name, value in params.items()})
        for name, value in params.items():
            value.grad = torch.from_numpy(np.asarray(grads[name]))
        optimizer.step()
        moved = {name: value.detach().numpy() - before[name] for name, value in params.items()}
        moved = case.change_updates(update, moved)
        with torch.no_grad():
            for name, value in params.items():
                value.copy_(torch.from_numpy(before[name] + moved[name]))
        updates[update] = _keys(
            batch, before, {name: each.detach().numpy() for name, each in acts.items()}, loss.item()
        )
        updates[update] |= {f"grad/{name}": value for name, value in grads.items()}
        updates[update] |= {f"update/{name}": value for name, value in moved.items()}
        updates[update] |= _running(case, updates, update)
    return MemoryTraining(label, "torch", updates, case.settings)


@cache
def compiled(forward: Forward, optimizer: optax.GradientTransformation) -> tuple[Any, Any]:
    def gradients(params: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            acts, loss = forward(jnp, params, batch)
            return loss, acts

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    return jax.jit(gradients), jax.jit(optimizer.update)


def in_jax(case: Case, label: str = "in jax") -> MemoryTraining:
    params = {name: jnp.asarray(value) for name, value in case.params.items()}
    state = case.optimizers[1].init(params)
    gradients, step = compiled(case.forward, case.optimizers[1])
    updates: dict[int, Arrays] = {}
    for update, batch in enumerate(case.batches, 1):
        before = {name: np.asarray(value) for name, value in params.items()}
        (loss, acts), found = gradients(params, batch)
        grads = case.change_grads(update, {name: np.asarray(found[name]) for name in params})
        steps, state = step(grads, state, params)
        moved = case.change_updates(update, {name: np.asarray(steps[name]) for name in params})
        params = {name: jnp.asarray(before[name] + moved[name]) for name in params}
        updates[update] = _keys(batch, before, {name: np.asarray(acts[name]) for name in acts}, np.asarray(loss))
        updates[update] |= {f"grad/{name}": value for name, value in grads.items()}
        updates[update] |= {f"update/{name}": value for name, value in moved.items()}
        updates[update] |= _running(case, updates, update)
    return MemoryTraining(label, "jax", updates, case.settings)


def _keys(batch: Arrays, params: Arrays, acts: Mapping[str, Any], loss: Any) -> Arrays:
    return {
        **{f"data/{name}": value for name, value in batch.items()},
        **{f"param/{name}": value for name, value in params.items()},
        **{f"act/{name}": value for name, value in acts.items()},
        "loss/total": np.float32(loss),
    }


def _running(case: Case, updates: Mapping[int, Arrays], update: int) -> Arrays:
    if case.running is None:
        return {}
    before = {key: value for key, value in updates.get(update - 1, {}).items() if key.startswith("opt/")}
    return case.running(before, updates[update])


def nudged(params: Arrays, seed: int, zeros: bool = False) -> Arrays:
    """Return parameters each one float up or down; zeros only if they are asked for."""
    generator = np.random.default_rng(seed)
    towards = {
        name: np.where(generator.random(value.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        for name, value in params.items()
    }
    return {
        name: np.where((value == 0) & (not zeros), value, np.nextafter(value, towards[name])).astype(np.float32)
        for name, value in params.items()
    }


def noise_of(case: Case, twins: int = 2, zeros: bool = False) -> Noise:
    """Return the noise of both frameworks' twins of a case."""
    noise = Noise()
    for train in (in_torch, in_jax):
        others = [train(replace(case, params=nudged(case.params, seed, zeros))) for seed in range(twins)]
        noise = noise | Noise.of_twins(train(case), others)
    return noise


def normal(generator: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * generator.standard_normal(shape)).astype(np.float32)
