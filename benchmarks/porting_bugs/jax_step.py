"""Train a JAX function for one step, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.porting_bugs import layouts
from benchmarks.porting_bugs.jax_optimizers import Optimizer, Tree
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.stepped import Stepped, shares
from noether_core.parity.between_runs.step import Inputs


class Tap:
    """Keep what a forward pass computes, by name, in its order: JAX sorts the names of a dict, so a number goes before."""

    def __init__(self, precision: Callable[[jax.Array], jax.Array]) -> None:
        self.precision = precision
        self.seen: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """Keep a value and return it, in the precision that activations have."""
        self.seen[f"{len(self.seen):03d} {name}"] = rounded = self.precision(value)
        return rounded


def average(grads: list[Tree]) -> Tree:
    """Return the gradients' mean over accumulation steps."""
    return jax.tree.map(lambda *each: sum(each) / len(each), *grads)


@dataclass(frozen=True)
class JaxRecipe:
    """Say how a function is trained.

    Attributes:
        forward: from the model's options, parameters, buffers, a batch, the update and a tap to the loss and new buffers.
        model: the options.
        rate: the learning rate of an update.
        clip: from the gradients of the accumulation steps, and their average, to clipped ones.
        accumulation: into how many micro-batches a batch is split.
        average: how the micro-batches' gradients come to one.
        averaging: from averaged weights and new ones to averaged weights, kept as `ema/NAME`.
        precision: what activations are rounded to.
        embeddings: the matrices that are not transposed.
        prepare: what is done to the batches, load to the weights, buffers to the first step's; in PyTorch's layouts.
    """

    forward: Callable[..., tuple[jax.Array, Tree]]
    model: Any
    optimizer: Optimizer
    rate: Callable[[Any], Any]
    clip: Callable[[list[Tree], Tree], Tree] | None = None
    accumulation: int = 1
    average: Callable[[list[Tree]], Tree] = average
    averaging: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    precision: Callable[[jax.Array], jax.Array] = lambda x: x
    embeddings: frozenset[str] = frozenset()
    prepare: Callable[[list[Arrays]], list[Arrays]] = lambda batches: batches
    load: Callable[[Arrays], Arrays] = lambda weights: weights
    buffers: Callable[[Arrays], Arrays] = lambda buffers: buffers

    def state(self, params: Arrays) -> Arrays:
        """Return the state before the first update."""
        averages = params.items() if self.averaging is not None else ()
        return {**self.optimizer.init(params), **{f"ema/{name}": value.copy() for name, value in averages}}


@dataclass(frozen=True)
class Forward:
    """Hold all of a recipe that its gradients depend on, so that recipes that share it are compiled once."""

    forward: Callable[..., tuple[jax.Array, Tree]]
    model: Any
    precision: Callable[[jax.Array], jax.Array]

    def __call__(
        self, params: Tree, buffers: Tree, batch: Tree, update: jax.Array
    ) -> tuple[jax.Array, tuple[Tree, Tree]]:
        """Return the loss; beside it the activations and the new buffers."""
        tap = Tap(self.precision)
        loss, after = self.forward(self.model, params, buffers, batch, update, tap)
        return loss, (tap.seen, after)


@dataclass(frozen=True)
class Applied:
    """Hold all of a recipe that comes after the gradients."""

    average: Callable[[list[Tree]], Tree]
    clip: Callable[[list[Tree], Tree], Tree] | None
    optimizer: Optimizer
    rate: Callable[[Any], Any]
    averaging: Callable[[jax.Array, jax.Array], jax.Array] | None


@partial(jax.jit, static_argnums=0)
def backward(
    forward: Forward, params: Tree, buffers: Tree, batches: list[Tree], update: jax.Array
) -> tuple[list[Tree], Tree, jax.Array, Tree]:
    """Return each micro-batch's gradients, the activations of all, the mean loss, and the buffers."""
    grads, seen, losses = [], [], []
    for batch in batches:
        (value, (activations, buffers)), grad = jax.value_and_grad(forward, has_aux=True)(
            params, buffers, batch, update
        )
        grads.append(grad)
        seen.append(activations)
        losses.append(value)
    joined = {name: jnp.concatenate([each[name] for each in seen]) for name in seen[0]}
    return grads, joined, jnp.stack(losses).mean(), buffers


@partial(jax.jit, static_argnums=0)
def apply(
    applied: Applied, grads: list[Tree], params: Tree, state: Tree, update: jax.Array
) -> tuple[Tree, Tree, Tree, Tree]:
    """Return the averaged gradients, the clipped ones, and the parameters and the state after the update."""
    mean = applied.average(grads)
    clipped = mean if applied.clip is None else applied.clip(grads, mean)
    after, moments = applied.optimizer.update(clipped, params, state, applied.rate(update), update)
    if applied.averaging is not None:
        averages = {name: applied.averaging(state[f"ema/{name}"], value) for name, value in after.items()}
        moments |= {f"ema/{name}": value for name, value in averages.items()}
    return mean, clipped, after, moments


class JaxStep:
    """Compute steps of a recipe, each compiled in two parts; see `stepped.Step`."""

    def __init__(self, recipe: JaxRecipe) -> None:
        self.recipe = recipe
        self._forward = Forward(recipe.forward, recipe.model, recipe.precision)
        self._applied = Applied(recipe.average, recipe.clip, recipe.optimizer, recipe.rate, recipe.averaging)

    def __call__(self, given: Inputs) -> Stepped:
        """Return what one update computes."""
        embeddings, number = self.recipe.embeddings, np.int32(given.update)
        native = layouts.weights_to_jax(given.params, embeddings)
        state = layouts.weights_to_jax(given.opt_state, embeddings)
        seen, loss, parts, buffers = {}, {}, [layouts.weights_to_jax(given.grads or {}, embeddings)], given.buffers
        if given.grads is None:
            batches = [layouts.images_to_jax(share) for share in shares(given.batch, self.recipe.accumulation)]
            parts, seen, value, buffers = backward(self._forward, native, buffers, batches, number)
            seen, loss = {name[4:]: seen[name] for name in sorted(seen)}, {"total": np.asarray(value)}
        mean, clipped, after, state = apply(self._applied, parts, native, state, number)
        after = {name: after[name] for name in given.params}  # JAX sorted them
        return Stepped(
            layouts.images_to_torch(seen),
            loss,
            layouts.weights_to_torch(mean, embeddings),
            None if self.recipe.clip is None else layouts.weights_to_torch(clipped, embeddings),
            layouts.weights_to_torch(after, embeddings),
            layouts.weights_to_torch(state, embeddings),
            {name: np.asarray(each) for name, each in buffers.items()},
        )
