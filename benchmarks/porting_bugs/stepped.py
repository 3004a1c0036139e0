"""Hold what one step of either framework gives, in NumPy and PyTorch's layouts, and the keys that it is recorded under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from benchmarks.porting_bugs.layouts import Array, Arrays
from noether_core.parity.between_runs.step import Inputs

__all__ = ["Step", "Stepped", "shares"]


@dataclass(frozen=True)
class Stepped:
    """Hold what a step computed, and what the next one starts from.

    Attributes:
        activations, loss: in the order of the forward pass; empty if gradients were given.
        grads: after averaging over accumulation steps, before clipping.
        clipped: None where nothing is clipped.
        params, opt_state, buffers: after the step. `opt_state` has `mu/NAME` and the like, and `count`.
    """

    activations: Arrays
    loss: Arrays
    grads: Arrays
    clipped: Arrays | None
    params: Arrays
    opt_state: Arrays
    buffers: Arrays = field(default_factory=dict)

    def keys(self, batch: Mapping[str, Array], before: Mapping[str, Array]) -> Arrays:
        """Return all under its key, in order, given the batch and the parameters that the step started from."""
        order = {name: index for index, name in enumerate(before)}

        def place(key: str) -> tuple[str, int]:
            moment, _, name = key.rpartition("/")
            return moment, order.get(name, -1)

        stages: dict[str, Arrays] = {
            "data": batch,
            "param": before,
            "act": self.activations,
            "loss": self.loss,
            "grad": {name: self.grads[name] for name in before},
            "clip": {} if self.clipped is None else {name: self.clipped[name] for name in before},
            "update": {name: np.asarray(self.params[name] - value) for name, value in before.items()},
            "opt": {**{key: self.opt_state[key] for key in sorted(self.opt_state, key=place)}, **self.buffers},
        }
        return {f"{stage}/{name}": value for stage, arrays in stages.items() for name, value in arrays.items()}


Step = Callable[[Inputs], Stepped]
"""Compute one step of a training; nothing is kept between calls.

Where gradients are given, there is neither forward nor backward pass: they are clipped and applied, and buffers stay.
"""


def shares(batch: Mapping[str, Array], steps: int) -> list[dict[str, Array]]:
    """Return a batch's rows in as many equal shares as there are accumulation steps."""
    split = {name: np.split(value, steps) for name, value in batch.items()}
    return [{name: parts[step] for name, parts in split.items()} for step in range(steps)]
