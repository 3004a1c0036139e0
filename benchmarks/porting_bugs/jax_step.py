"""Train a JAX function for one step, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.porting_bugs import layouts
from benchmarks.porting_bugs.jax_optimizers import Optimizer, Tree
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.stepped import Stepped, shares


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
        prepare: what is done to the batches, load to the weights, both in PyTorch's layouts.
        buffers: adds to the buffers of the first step.
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


class JaxStep:
    """Compute steps of a recipe, each compiled as a whole; see `stepped.Step`."""

    def __init__(self, recipe: JaxRecipe) -> None:
        self.recipe = recipe
        self._grads = jax.jit(self._backward)
        self._apply = jax.jit(self._clip_and_update)

    def __call__(
        self, batch: Arrays, params: Arrays, opt_state: Arrays, buffers: Arrays, update: int, grads: Arrays | None = None
    ) -> Stepped:
        """Return what one update computes."""
        recipe, number = self.recipe, np.int32(update)
        native = layouts.weights_to_jax(params, recipe.embeddings)
        state = layouts.weights_to_jax(opt_state, recipe.embeddings)
        seen, loss, parts = {}, {}, [layouts.weights_to_jax(grads or {}, recipe.embeddings)]
        if grads is None:
            batches = [layouts.images_to_jax(share) for share in shares(batch, recipe.accumulation)]
            parts, seen, value, buffers = self._grads(native, buffers, batches, number)
            seen, loss = {name[4:]: seen[name] for name in sorted(seen)}, {"total": np.asarray(value)}
        mean, clipped, after, state = self._apply(parts, native, state, number)
        after = {name: after[name] for name in params}  # JAX sorted them
        to_torch = layouts.weights_to_torch
        return Stepped(
            layouts.images_to_torch(seen),
            loss,
            to_torch(mean, recipe.embeddings),
            None if recipe.clip is None else to_torch(clipped, recipe.embeddings),
            to_torch(after, recipe.embeddings),
            to_torch(state, recipe.embeddings),
            {name: np.asarray(each) for name, each in buffers.items()},
        )

    def _backward(
        self, params: Tree, buffers: Tree, batches: list[Tree], update: jax.Array
    ) -> tuple[list[Tree], Tree, jax.Array, Tree]:
        """Return each micro-batch's gradients, their activations, the mean loss, and the buffers."""

        def loss(params: Tree, buffers: Tree, batch: Tree) -> tuple[jax.Array, tuple[Tree, Tree]]:
            tap = Tap(self.recipe.precision)
            value, after = self.recipe.forward(self.recipe.model, params, buffers, batch, update, tap)
            return value, (tap.seen, after)

        grads, seen, losses = [], [], []
        for batch in batches:
            (value, (activations, buffers)), grad = jax.value_and_grad(loss, has_aux=True)(params, buffers, batch)
            grads.append(grad)
            seen.append(activations)
            losses.append(value)
        activations = {name: jnp.concatenate([each[name] for each in seen]) for name in seen[0]}
        return grads, activations, jnp.stack(losses).mean(), buffers

    def _clip_and_update(
        self, grads: list[Tree], params: Tree, state: Tree, update: jax.Array
    ) -> tuple[Tree, Tree, Tree, Tree]:
        recipe = self.recipe
        mean = recipe.average(grads)
        clipped = mean if recipe.clip is None else recipe.clip(grads, mean)
        after, moments = recipe.optimizer.update(clipped, params, state, recipe.rate(update), update)
        if recipe.averaging is not None:
            averages = {name: recipe.averaging(state[f"ema/{name}"], value) for name, value in after.items()}
            moments |= {f"ema/{name}": value for name, value in averages.items()}
        return mean, clipped, after, moments
