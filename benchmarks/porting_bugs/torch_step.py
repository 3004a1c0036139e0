"""Train a PyTorch module for one step, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.porting_bugs.layouts import Array, Arrays
from benchmarks.porting_bugs.stepped import Stepped, shares
from noether_core.parity.between_runs.step import Inputs

MOMENTS: dict[type[torch.optim.Optimizer], dict[str, str]] = {
    torch.optim.SGD: {"momentum_buffer": "trace"},
    torch.optim.Adam: {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"},
    torch.optim.AdamW: {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"},
    torch.optim.RMSprop: {"square_avg": "nu", "momentum_buffer": "trace", "grad_avg": "mean"},
}
"""What PyTorch's optimizers call what the records, as optax does, call `mu`, `nu` and so on."""

Batch = dict[str, torch.Tensor]


class Tap:
    """Keep what a forward pass computes, by name, in its order."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Keep a value and return it."""
        self.seen[name] = value.detach().clone()
        return value


@dataclass(frozen=True)
class TorchRecipe:
    """Say how a module is trained.

    Attributes:
        model: makes the module; called with a batch and a tap, it returns the loss.
        optimizer: makes the optimizer of a module, given the learning rate.
        rate: the learning rate of an update.
        clip: clips the gradients of parameters in place.
        accumulation: into how many micro-batches a batch is split.
        averaging: the decay of averaged weights, kept as `ema/NAME`.
        prepare: what is done to the batches, load to the weights, buffers to the first step's.
    """

    model: Callable[[], torch.nn.Module]
    optimizer: Callable[[torch.nn.Module, float], torch.optim.Optimizer]
    rate: Callable[[int], float]
    clip: Callable[[Sequence[torch.nn.Parameter]], Any] | None = None
    accumulation: int = 1
    averaging: float | None = None
    prepare: Callable[[list[Arrays]], list[Arrays]] = lambda batches: batches
    load: Callable[[Arrays], Arrays] = lambda weights: weights
    buffers: Callable[[Arrays], Arrays] = lambda buffers: buffers

    def state(self, params: Arrays) -> Arrays:
        """Return the state before the first update: PyTorch makes its moments at the first."""
        averages = params.items() if self.averaging is not None else ()
        return {"count": np.zeros((), np.int32), **{f"ema/{name}": value.copy() for name, value in averages}}


class TorchStep:
    """Compute steps of a recipe; see `stepped.Step`."""

    def __init__(self, recipe: TorchRecipe) -> None:
        self.recipe = recipe

    def __call__(self, given: Inputs) -> Stepped:
        """Return what one update computes."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # these are small, and threads that wait for busy cores take a hundred times longer
        try:
            return self._compute(given)
        finally:
            torch.set_num_threads(threads)

    def _compute(self, given: Inputs) -> Stepped:
        recipe, opt_state, grads = self.recipe, given.opt_state, given.grads
        module = recipe.model().train()
        module.load_state_dict(
            {name: torch.tensor(value) for name, value in {**given.params, **given.buffers}.items()}, strict=False
        )
        named = dict(module.named_parameters())
        optimizer = recipe.optimizer(module, recipe.rate(given.update))
        _restore(optimizer, named, opt_state)
        activations, loss = ({}, {}) if grads is not None else self._backward(module, given.batch)
        if grads is not None:
            for name, parameter in named.items():
                parameter.grad = torch.tensor(grads[name])
        before_clip = {name: _numpy(_grad(parameter)) for name, parameter in named.items()}
        clipped = None
        if recipe.clip is not None:
            recipe.clip(list(named.values()))
            clipped = {name: _numpy(_grad(parameter)) for name, parameter in named.items()}
        optimizer.step()
        after = {name: _numpy(named[name]) for name in given.params}
        state = _state(optimizer, named, int(opt_state["count"]) + 1)
        if recipe.averaging is not None:
            for name, parameter in named.items():
                average = torch.tensor(opt_state[f"ema/{name}"])
                state[f"ema/{name}"] = _numpy(average.lerp(parameter.detach(), 1 - recipe.averaging))
        statistics = {name: _numpy(value) for name, value in module.named_buffers() if value.is_floating_point()}
        return Stepped(activations, loss, before_clip, clipped, after, state, statistics)

    def _backward(self, module: torch.nn.Module, batch: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        taps, losses = [], []
        for share in shares(batch, self.recipe.accumulation):
            taps.append(Tap())
            loss = module({name: torch.tensor(value) for name, value in share.items()}, taps[-1])
            (loss / self.recipe.accumulation).backward()
            losses.append(loss.detach())
        activations = {name: _numpy(torch.cat([tap.seen[name] for tap in taps])) for name in taps[0].seen}
        return activations, {"total": _numpy(torch.stack(losses).mean())}


def _grad(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a copy, not the memory that the next step writes to."""
    return tensor.detach().float().cpu().numpy().copy()


def _restore(
    optimizer: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter], state: Mapping[str, Array]
) -> None:
    """Give an optimizer the state that it left after the step before."""
    if not state["count"]:
        return
    moments = MOMENTS[type(optimizer)].items()
    for name, parameter in named.items():
        kept = {theirs: torch.tensor(state[f"{ours}/{name}"]) for theirs, ours in moments if f"{ours}/{name}" in state}
        optimizer.state[parameter] = {"step": torch.tensor(float(state["count"])), **kept}


def _state(optimizer: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter], count: int) -> Arrays:
    moments = {
        f"{ours}/{name}": _numpy(optimizer.state[parameter][theirs])
        for theirs, ours in MOMENTS[type(optimizer)].items()
        for name, parameter in named.items()
        if isinstance(optimizer.state[parameter].get(theirs), torch.Tensor)
    }
    return {"count": np.array(count, np.int32), **moments}
