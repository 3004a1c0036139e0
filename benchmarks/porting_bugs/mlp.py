"""Learn the flow around airfoils at points: layer norms and Adam with coupled weight decay, weights averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks.porting_bugs import jax_layers, torch_step
from benchmarks.porting_bugs.family import linear_weights, norm_weights
from benchmarks.porting_bugs.jax_optimizers import Adam, Tree
from benchmarks.porting_bugs.jax_step import JaxRecipe, Tap
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.torch_step import TorchRecipe
from examples.airfoil import data

BATCH, WIDTH, RATE, DECAY, AVERAGING = 48, 40, 2e-3, 1e-2, 0.9


@cache
def _points() -> tuple[Any, Any]:
    airfoils, _ = data.load()
    conditions = np.repeat(airfoils.conditions[:, None], airfoils.volume_position.shape[1], axis=1)
    inputs = np.concatenate([conditions, airfoils.volume_position], axis=-1).reshape(-1, 5)
    return (inputs - inputs.mean(0)) / inputs.std(0), airfoils.volume_velocity.reshape(-1, 2)


def batches(seed: int, updates: int) -> list[Arrays]:
    """Return batches of points: standardized conditions and positions, and velocities."""
    inputs, velocities = _points()
    chosen = np.random.default_rng([seed, 1]).integers(len(inputs), size=(updates, BATCH))
    return [{"x": inputs[rows], "y": velocities[rows]} for rows in chosen]


def weights(seed: int) -> Arrays:
    """Return three hidden layers with norms, and the output layer."""
    generator = np.random.default_rng([seed, 2])
    layers: Arrays = {}
    for index, inputs in enumerate((5, WIDTH, WIDTH)):
        layers |= linear_weights(generator, f"layers.{index}", WIDTH, inputs)
        layers |= norm_weights(generator, f"norms.{index}", WIDTH)
    return layers | linear_weights(generator, "head", 2, WIDTH)


def as_tf32(x: torch.Tensor) -> torch.Tensor:
    """Return what is left of x in TF32: ten bits of mantissa, rounded to nearest; the gradient passes."""
    bits = (x.detach().view(torch.int32) + 0x1000) & -0x2000
    return x + (bits.view(torch.float32) - x).detach()


class Mlp(torch.nn.Module):
    """Compute velocities of points, and their mean squared error; `precision` is that of products' inputs."""

    def __init__(
        self,
        slope: float = 0.01,
        approximate: str = "none",
        reduction: str = "mean",
        precision: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(inputs, WIDTH) for inputs in (5, WIDTH, WIDTH)])
        self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(WIDTH) for _ in range(3)])
        self.head = torch.nn.Linear(WIDTH, 2)
        gelu = torch.nn.GELU(approximate=approximate)
        self.activations = torch.nn.ModuleList([torch.nn.SiLU(), gelu, torch.nn.LeakyReLU(slope)])
        self.reduction, self.precision = reduction, precision

    def forward(self, batch: torch_step.Batch, tap: torch_step.Tap) -> torch.Tensor:
        """Return the loss."""
        x = batch["x"]
        for index, (layer, norm, activation) in enumerate(zip(self.layers, self.norms, self.activations, strict=True)):
            x = tap(f"layers.{index}", functional.linear(self.precision(x), self.precision(layer.weight), layer.bias))
            x = tap(f"norms.{index}", norm(x))
            x = tap(f"activations.{index}", activation(x))
        return functional.mse_loss(tap("head", self.head(x)), batch["y"], reduction=self.reduction)


@dataclass(frozen=True)
class Options:
    """Say what the port computes; the defaults are right."""

    first: Callable[[Any], Any] = jax.nn.silu
    second: Callable[[Any], Any] = lambda x: jax.nn.gelu(x, approximate=False)
    third: Callable[[Any], Any] = lambda x: jax.nn.leaky_relu(x, 0.01)
    linear: Callable[[Tree, str, Any], Any] = jax_layers.linear
    norm: Callable[[Tree, str, Any], Any] = jax_layers.layer_norm
    backward: Callable[[Any], Any] = lambda x: x  # what the second hidden layer's output passes through
    loss: Callable[[Any, Any], Any] = lambda outputs, targets: jnp.mean((outputs - targets) ** 2)


def forward(
    options: Options, params: Tree, buffers: Tree, batch: Tree, update: Any, tap: Tap
) -> tuple[jax.Array, Tree]:
    """Return the loss, and no buffers."""
    x = batch["x"]
    for index, activation in enumerate((options.first, options.second, options.third)):
        x = tap(f"layers.{index}", options.linear(params, f"layers.{index}", x))
        x = tap(f"norms.{index}", options.norm(params, f"norms.{index}", x))
        x = tap(f"activations.{index}", activation(x))
        x = options.backward(x) if index == 1 else x
    return options.loss(tap("head", options.linear(params, "head", x)), batch["y"]), buffers


def adam(module: torch.nn.Module, rate: float, **changes: Any) -> torch.optim.Optimizer:
    """Return Adam with decay in the gradient."""
    return torch.optim.Adam(module.parameters(), **{"lr": rate, "weight_decay": DECAY, **changes})


TORCH = TorchRecipe(model=Mlp, optimizer=adam, rate=lambda update: RATE, averaging=AVERAGING)
JAX = JaxRecipe(
    forward=forward,
    model=Options(),
    optimizer=Adam(decay=DECAY),
    rate=lambda update: RATE,
    averaging=lambda average, value: AVERAGING * average + (1 - AVERAGING) * value,
)
