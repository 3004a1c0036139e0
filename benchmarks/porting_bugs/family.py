"""Hold a family: its data and weights, the correct recipe of each framework, and the bugs that can be planted in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.porting_bugs.jax_step import JaxRecipe, JaxStep
from benchmarks.porting_bugs.layouts import Array, Arrays
from benchmarks.porting_bugs.stepped import Step
from benchmarks.porting_bugs.torch_step import TorchRecipe, TorchStep
from benchmarks.porting_bugs.truth import Bug, Framework, Way


def no_buffers() -> Arrays:
    """Return the buffers of a model without any."""
    return {}


@dataclass(frozen=True)
class Family:
    """Hold a pair of trainings that compute the same.

    Attributes:
        weights: makes the first weights by a seed, in the order of the layers and in PyTorch's layouts.
        batches: makes that many batches by a seed.
        bugs: what can be planted in one of the two.
        ways: other correct ways that one of the two can go.
        buffers: makes what the model keeps beside its weights.
    """

    name: str
    weights: Callable[[int], Arrays]
    batches: Callable[[int, int], list[Arrays]]
    torch: TorchRecipe
    jax: JaxRecipe
    bugs: tuple[Bug, ...]
    ways: tuple[Way, ...] = ()
    buffers: Callable[[], Arrays] = no_buffers

    def recipe(self, framework: Framework, bug: Bug | Way | None = None) -> TorchRecipe | JaxRecipe:
        """Return a framework's recipe, with a bug if that is one of this framework's."""
        correct = self.torch if framework == "torch" else self.jax
        return correct if bug is None or bug.side != framework else bug.change(correct)

    def step(self, framework: Framework, bug: Bug | Way | None = None) -> Step:
        """Return a framework's step."""
        recipe = self.recipe(framework, bug)
        return TorchStep(recipe) if isinstance(recipe, TorchRecipe) else JaxStep(recipe)


def linear_weights(generator: np.random.Generator, name: str, outputs: int, *inputs: int) -> Arrays:
    """Return a layer's weight and bias, uniform within 1 / √fan-in, as PyTorch draws them."""
    bound = 1 / np.sqrt(np.prod(inputs))
    return {
        f"{name}.weight": uniform(generator, bound, outputs, *inputs),
        f"{name}.bias": uniform(generator, bound, outputs),
    }


def norm_weights(generator: np.random.Generator, name: str, features: int) -> Arrays:
    """Return a norm's weight and bias, near one and zero, as in a model that has been trained for a while."""
    return {
        f"{name}.weight": 1 + uniform(generator, 0.1, features),
        f"{name}.bias": uniform(generator, 0.1, features),
    }


def uniform(generator: np.random.Generator, bound: float, *shape: int) -> Array:
    """Return float32 numbers within a bound."""
    return generator.uniform(-bound, bound, shape).astype(np.float32)
