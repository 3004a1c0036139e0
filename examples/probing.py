"""Name what an update of Flax NNX and `optax.MultiSteps` computes, for the probes of both workloads in JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noether_core.probes.stages import Pieces

Before = tuple[Any, Any]  # the parameters, and the mean gradient of the micro-batches so far


def before_update(model: nnx.Module, optimizer: nnx.Optimizer[Any]) -> Before:
    """Return what `optimizer.update` changes and a probe wants as it was; call it in the compiled step, before that."""
    return nnx.as_pure(nnx.state(model, nnx.Param)), nnx.as_pure(optimizer.opt_state.acc_grads)


def pieces_of_update(
    before: Before, model: nnx.Module, optimizer: nnx.Optimizer[Any], gradients: Any, steps: int
) -> Pieces:
    """Return the pieces of the update that has just been made, if this was the last of its accumulation steps.

    Args:
        before: what `before_update` returned in this step.
        model: with its new parameters.
        optimizer: one around `optax.MultiSteps`, which gave them.
        gradients: of the last micro-batch. The update is made of the mean of all.
        steps: how many accumulation steps an update has.
    """
    params, mean_so_far = before
    grads = jax.tree.map(lambda mean, last: mean + (last - mean) / steps, mean_so_far, nnx.as_pure(gradients))
    updates = jax.tree.map(jnp.subtract, nnx.as_pure(nnx.state(model, nnx.Param)), params)
    opt_state = nnx.as_pure(optimizer.opt_state.inner_opt_state)
    return {"params": params, "grads": grads, "updates": updates, "opt_state": opt_state}


def of_micro_batch(pieces: Pieces) -> Pieces:
    """Return the pieces that a micro-batch has, whether it ends an update or not."""
    return {"batch": pieces["batch"], "activations": pieces["activations"], "losses": pieces["losses"]}
