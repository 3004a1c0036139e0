"""Read handwritten digits: convolutions, batch norms, pooling, SGD with momentum, epochs with a partial batch."""

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
from benchmarks.porting_bugs.jax_optimizers import Sgd, Tree
from benchmarks.porting_bugs.jax_step import JaxRecipe, Tap
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.torch_step import TorchRecipe
from examples.digits import data

EPOCH, BATCH, PARTIAL = 6, 32, 20
IMAGES = (EPOCH - 1) * BATCH + PARTIAL
RATE, DECAY = 0.05, 5e-3


@cache
def _digits() -> tuple[Any, Any]:
    digits, _ = data.load()
    standardized = (digits.images - digits.images.mean()) / digits.images.std()
    return standardized.reshape(-1, 1, 8, 8), digits.labels.astype(np.int64)


def batches(seed: int, updates: int) -> list[Arrays]:
    """Return epochs of six batches, in a new order each; the sixth has fewer images."""
    generator = np.random.default_rng([seed, 1])
    images, labels = _digits()
    kept = generator.permutation(len(labels))[:IMAGES]
    epochs = [generator.permutation(kept) for _ in range(-(-updates // EPOCH))]
    rows = [epoch[start : start + BATCH] for epoch in epochs for start in range(0, IMAGES, BATCH)]
    return [{"x": images[chosen], "y": labels[chosen]} for chosen in rows[:updates]]


def weights(seed: int) -> Arrays:
    """Return two convolutions with norms, and two layers."""
    generator = np.random.default_rng([seed, 2])
    return {
        **linear_weights(generator, "conv1", 8, 1, 3, 3),
        **norm_weights(generator, "norm1", 8),
        **linear_weights(generator, "conv2", 16, 8, 3, 3),
        **norm_weights(generator, "norm2", 16),
        **linear_weights(generator, "hidden", 64, 64),
        **linear_weights(generator, "head", 10, 64),
    }


def buffers() -> Arrays:
    """Return running means of zero and variances of one."""
    sizes = {"norm1": 8, "norm2": 16}
    start = {"running_mean": np.zeros, "running_var": np.ones}
    return {f"{norm}.{kind}": fill(size, np.float32) for norm, size in sizes.items() for kind, fill in start.items()}


class Cnn(torch.nn.Module):
    """Classify digits."""

    def __init__(self, norm_momentum: float = 0.1, norm_epsilon: float = 1e-5) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.norm1 = torch.nn.BatchNorm2d(8, momentum=norm_momentum, eps=norm_epsilon)
        self.conv2 = torch.nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.norm2 = torch.nn.BatchNorm2d(16, momentum=norm_momentum, eps=norm_epsilon)
        self.hidden = torch.nn.Linear(64, 64)
        self.head = torch.nn.Linear(64, 10)

    def forward(self, batch: torch_step.Batch, tap: torch_step.Tap) -> torch.Tensor:
        """Return the loss."""
        x = tap("norm1", self.norm1(tap("conv1", self.conv1(batch["x"]))))
        x = tap("relu1", x.relu())
        x = tap("norm2", self.norm2(tap("conv2", self.conv2(x))))
        x = tap("relu2", x.relu())
        x = tap("flat", tap("pool", functional.max_pool2d(x, 2)).flatten(1))
        x = tap("relu3", tap("hidden", self.hidden(x)).relu())
        return functional.cross_entropy(tap("head", self.head(x)), batch["y"])


def from_batch(x: Any, mean: Any, var: Any) -> tuple[Any, Any]:
    """Return the mean and the variance that a batch norm normalizes with: those of the batch."""
    return x.mean((0, 1, 2)), x.var((0, 1, 2))


def unbiased(var: Any, count: int) -> Any:
    """Return the variance that PyTorch averages: over one less, unlike the one that it normalizes with."""
    return var * (count / (count - 1))


@dataclass(frozen=True)
class Options:
    """Say what the port computes; the defaults are right."""

    conv: Callable[..., Any] = jax_layers.conv
    padding: Any = ((1, 1), (1, 1))
    norm_statistics: Callable[[Any, Any, Any], tuple[Any, Any]] = from_batch
    norm_epsilon: float = 1e-5
    norm_variance: Callable[[Any, int], Any] = unbiased
    norm_average: Callable[[Any, Any], Any] = lambda average, new: 0.9 * average + 0.1 * new
    pool: Callable[[Any], Any] = jax_layers.max_pool
    flatten: Callable[[Any], Any] = lambda x: x.transpose(0, 3, 1, 2).reshape(
        len(x), -1
    )  # by channels first, as in PyTorch
    hidden: Callable[[Any, Any], Any] = lambda x, update: x  # what the hidden layer passes through
    linear: Callable[[Tree, str, Any], Any] = jax_layers.linear
    reduce: Callable[[Any], Any] = jnp.mean


def batch_norm(options: Options, params: Tree, buffers: Tree, name: str, x: jax.Array) -> tuple[jax.Array, Tree]:
    """Return what is normalized over all but channels, and the running statistics."""
    running = buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"]
    mean, var = options.norm_statistics(x, *running)
    normal = jax_layers.normalized(x, mean, var, options.norm_epsilon)
    new = x.mean((0, 1, 2)), options.norm_variance(x.var((0, 1, 2)), x.size // x.shape[-1])
    after = [options.norm_average(average, each) for average, each in zip(running, new, strict=True)]
    statistics = {f"{name}.running_mean": after[0], f"{name}.running_var": after[1]}
    return normal * params[f"{name}.weight"] + params[f"{name}.bias"], statistics


def forward(
    options: Options, params: Tree, buffers: Tree, batch: Tree, update: Any, tap: Tap
) -> tuple[jax.Array, Tree]:
    """Return the loss and the running statistics."""
    x = tap("conv1", options.conv(params, "conv1", batch["x"]))
    x, statistics1 = batch_norm(options, params, buffers, "norm1", x)
    x = tap("relu1", jax.nn.relu(tap("norm1", x)))
    x = tap("conv2", options.conv(params, "conv2", x, stride=2, padding=options.padding))
    x, statistics2 = batch_norm(options, params, buffers, "norm2", x)
    x = tap("relu2", jax.nn.relu(tap("norm2", x)))
    x = tap("flat", options.flatten(tap("pool", options.pool(x))))
    x = tap("relu3", options.hidden(jax.nn.relu(tap("hidden", options.linear(params, "hidden", x))), update))
    losses = jax_layers.negative_log_likelihood(tap("head", options.linear(params, "head", x)), batch["y"])
    return options.reduce(losses), {**statistics1, **statistics2}


def sgd(module: torch.nn.Module, rate: float, **changes: Any) -> torch.optim.Optimizer:
    """Return SGD with momentum and with decay in the gradient."""
    return torch.optim.SGD(module.parameters(), **{"lr": rate, "momentum": 0.9, "weight_decay": DECAY, **changes})


def rate(update: int) -> float:
    """Return half the learning rate from the second epoch on."""
    return RATE * 0.5 ** ((update - 1) // EPOCH)


def rate_in_jax(update: Any) -> Any:
    """Return the same for a traced update."""
    return RATE * 0.5 ** ((update - 1) // EPOCH)


TORCH = TorchRecipe(model=Cnn, optimizer=sgd, rate=rate)
JAX = JaxRecipe(forward=forward, model=Options(), optimizer=Sgd(decay=DECAY), rate=rate_in_jax)
