"""Train the PyTorch side of a pair with probes, as a user's script does, and replay its steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.porting_exam.pair import Arrays, Options, Pair, losses_by_name, under
from noether_core.parity.between_runs.replayable import micro_batches
from noether_core.parity.between_runs.step import Inputs
from noether_torch import Run, probe, twin, twin_batch, twin_path
from noether_torch.probes import stage_values

FIELDS = {
    "mu": "exp_avg",
    "nu": "exp_avg_sq",
    "nu_max": "max_exp_avg_sq",
    "trace": "momentum_buffer",
    "sum_of_squares": "sum",
}


class TorchSide:
    """Train, and replay steps.

    Args:
        pair: the pair.
        options: its own, with a bug's changes or without.
    """

    def __init__(self, pair: Pair, options: Options) -> None:
        self.pair, self.options = pair, options
        self.steps = options.get("accumulation", 1)
        self.shares = 1 if options.get("summed") else self.steps

    def train(self, path: Path, seed: int) -> None:
        """Train into a run directory, or a twin of that run into its own."""
        torch.manual_seed(1000 + seed)
        model, optimizer = self._made(self.pair.weights(seed))
        with Run(twin_path(path), [{"kind": "ProbeCallback"}], accumulation_steps=self.steps) as run:
            run.probe(twin(model), optimizer)
            averages = _averages(model)
            for update, batch in enumerate(self.pair.batches(seed, self.options), 1):
                self._set_rate(optimizer, update)
                for step in range(self.steps):
                    parts = {name: np.array_split(value, self.steps)[step] for name, value in batch.items()}
                    micro = twin_batch({name: torch.from_numpy(value) for name, value in parts.items()})
                    losses = losses_by_name(self.pair.torch_losses(model, micro, self.options))
                    (losses["total"] / self.shares).backward()
                    outputs = {"loss": losses["total"]}
                    if step == self.steps - 1:
                        self._optimize(model, optimizer)
                        outputs |= probe(run.probes_due, buffers=self._averaged(model, averages))
                    run.step(outputs, batch=micro, losses=losses)
                if not self.options.get("keep_grads"):
                    optimizer.zero_grad()

    def step(self, given: Inputs) -> Arrays:
        """Compute a step from what was recorded, of either side; see `noether_core.parity.between_runs.Step`."""
        torch.manual_seed(7)
        model, optimizer = self._made(given.params)
        before = {
            name: value.detach().clone() for name, value in model.named_parameters()
        }  # the forward may change them
        self._set_rate(optimizer, given.update)
        self._restore(model, optimizer, given.opt_state)
        averages = {name: _tensor(value) for name, value in given.buffers.items()} or _averages(model)
        found: Arrays = {}
        for number, micro in enumerate(micro_batches(given.batch) if given.grads is None else ()):
            losses = losses_by_name(
                self.pair.torch_losses(model, {name: _tensor(value) for name, value in micro.items()}, self.options)
            )
            (losses["total"] / self.shares).backward()
            ending = f"@{number}" if number else ""
            found |= {key + ending: value.detach().clone() for key, value in stage_values(losses=losses).items()}
        for name, parameter in model.named_parameters():
            if given.grads is not None and parameter.requires_grad and name in given.grads:
                parameter.grad = _tensor(given.grads[name])
        found |= _copies(stage_values(grads=model))
        if self._optimize(model, optimizer):
            found |= _copies(stage_values(clipped=model))
        updates = {name: value.detach() - before[name] for name, value in model.named_parameters()}
        state = stage_values(
            params=model, opt_state=optimizer, updates=updates, buffers=self._averaged(model, averages)
        )
        found |= {key: value for key, value in state.items() if not key.startswith("param/")}
        return {key: value.detach().numpy().copy() for key, value in found.items()}

    def _made(self, weights: Mapping[str, Any]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = self.pair.torch_model(self.options)
        given = {name: _tensor(value) for name, value in weights.items()}
        model.load_state_dict({**model.state_dict(), **given})
        return model, self.pair.torch_optimizer(model, self.options)

    def _set_rate(self, optimizer: torch.optim.Optimizer, update: int) -> None:
        if self.pair.rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.pair.rate(self.options, update)

    def _optimize(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Clip, if the pair does, and step; tell whether the gradients were clipped."""
        limit = self.options.get("clip")
        if limit is not None:
            parameters = list(model.parameters())
            for each in [[one] for one in parameters] if self.options["clip_by"] == "array" else [parameters]:
                torch.nn.utils.clip_grad_norm_(each, limit)
        optimizer.step()
        return limit is not None

    def _averaged(self, model: torch.nn.Module, averages: Arrays) -> Arrays | None:
        """Move the averaged weights on, in place, if the pair has any."""
        decay = self.options.get("average")
        if decay is None:
            return None
        for name, value in model.named_parameters():
            averages[f"ema.{name}"] = averages[f"ema.{name}"] * decay + value.detach() * (1 - decay)
        return averages

    def _restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, opt_state: Mapping[str, Any]) -> None:
        fields = {**FIELDS, **self.pair.state}
        for name, parameter in model.named_parameters() if opt_state else ():
            named = {ours: under(opt_state, theirs) for theirs, ours in fields.items()}
            kept = {field: _tensor(values[name]) for field, values in named.items() if name in values}
            if "count" in opt_state:
                kept["step"] = torch.tensor(float(opt_state["count"]))
            if self.pair.complete is not None:
                self.pair.complete(kept, self.options)
            if kept and parameter.requires_grad:
                optimizer.state[parameter] = kept


def _averages(model: torch.nn.Module) -> Arrays:
    return {f"ema.{name}": value.detach().clone() for name, value in model.named_parameters()}


def _copies(tensors: Mapping[str, Any]) -> Arrays:
    return {key: value.clone() for key, value in tensors.items()}


def _tensor(array: Any) -> torch.Tensor:
    """Return a tensor of an array; whole numbers are int64, as PyTorch's losses want them: JAX's are int32."""
    found = torch.tensor(np.asarray(array))
    return found if found.is_floating_point() else found.long()
