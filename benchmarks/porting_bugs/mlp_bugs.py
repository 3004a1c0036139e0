"""Plant bugs in the airfoils' network: activations, layer norms, Adam, averaged weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.porting_bugs import jax_layers, mlp
from benchmarks.porting_bugs.family import Family
from benchmarks.porting_bugs.jax_layers import as_bfloat16, as_tf32
from benchmarks.porting_bugs.jax_optimizers import Adam, AmsGrad, Tree, corrected
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.truth import Bug, loaded, model, optimizer, recipe


def _tf32_linear(params: Tree, name: str, x: jax.Array) -> jax.Array:
    return as_tf32(x) @ as_tf32(params[f"{name}.weight"]) + params[f"{name}.bias"]


def _transposed_linear(params: Tree, name: str, x: jax.Array) -> jax.Array:
    kernel = params[f"{name}.weight"]
    return x @ (kernel.T if name == "layers.1" else kernel) + params[f"{name}.bias"]


def _outside(x: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float) -> jax.Array:
    return (x - mean) / (jnp.sqrt(var) + epsilon)


def _unbiased(params: Tree, name: str, x: jax.Array) -> jax.Array:
    normal = jax_layers.normalized(x, x.mean(-1, keepdims=True), x.var(-1, keepdims=True, ddof=1), 1e-5)
    return normal * params[f"{name}.weight"] + params[f"{name}.bias"]


def _one_other_batch(batches: list[Arrays]) -> list[Arrays]:
    return [*batches[:3], batches[8], *batches[4:]]


def _unscaled(batches: list[Arrays]) -> list[Arrays]:
    """Return batches that were standardized by the unbiased deviation of few points."""
    return [{**batch, "x": batch["x"] * np.float32(0.995)} for batch in batches]


def _half_inputs(batches: list[Arrays]) -> list[Arrays]:
    return [{**batch, "x": batch["x"].astype(np.float16).astype(np.float32)} for batch in batches]


def _swapped_rows(batches: list[Arrays]) -> list[Arrays]:
    """Return batches whose last row has traded its place with the next batch's first, from the sixth on."""
    mixed = [{name: value.copy() for name, value in batch.items()} for batch in batches]
    for one, other in zip(mixed[5:], mixed[6:], strict=False):
        for name in one:
            one[name][-1], other[name][0] = other[name][0].copy(), one[name][-1].copy()
    return mixed


def _nesterov(mu: Any, grad: Any, adam: Adam, count: Any) -> Any:
    ahead = adam.correct(mu, adam.beta1, count + 1) * adam.beta1
    return ahead + (1 - adam.beta1) * adam.correct(grad, adam.beta1, count)


HEAD_EVERY = ("update/*",)
OPT = "optimizer"

BUGS = (
    # data and weights
    Bug("mlp-one-other-batch", recipe(prepare=_one_other_batch), "data", ("data/x",), 4, ("batch-content", "batch-order"), "batch"),
    Bug("mlp-input-scale", recipe(prepare=_unscaled), "data", ("data/x",), 1, ("batch-preprocessing",), "batch"),
    Bug("mlp-half-inputs", recipe(prepare=_half_inputs), "data", ("data/x",), 1, ("batch-dtype", "low-precision"), "batch"),
    Bug("mlp-rows-swapped", recipe(prepare=_swapped_rows), "data", ("data/x",), 6, ("batch-content", "batch-order"), "batch"),
    Bug("mlp-kernel-not-transposed", loaded(layers__1__weight=np.transpose), "param", ("param/layers.1.weight",), 1, ("weight-layout",), "params"),
    Bug("mlp-norm-not-loaded", loaded(norms__2__weight=np.ones_like), "param", ("param/norms.2.weight",), 1, ("weight-not-loaded", "initial-weights"), "params"),
    # forward
    Bug("mlp-kernel-used-transposed", model(linear=_transposed_linear), "act", ("act/layers.1",), 1, ("weight-layout", "forward-other"), "forward"),
    Bug("mlp-relu-for-silu", model(first=jax.nn.relu), "act", ("act/activations.0",), 1, ("activation-function",), "forward"),
    Bug("mlp-tanh-gelu", model(second=jax.nn.gelu), "act", ("act/activations.1",), 1, ("activation-function",), "forward"),
    Bug("mlp-leaky-slope", model(third=lambda x: jax.nn.leaky_relu(x, 0.2)), "act", ("act/activations.2",), 1, ("activation-function",), "forward"),
    Bug("mlp-norm-epsilon", model(norm=partial(jax_layers.layer_norm, epsilon=1e-6)), "act", ("act/norms.0",), 1, ("norm-epsilon",), "forward"),
    Bug("mlp-norm-epsilon-outside", model(norm=partial(jax_layers.layer_norm, normalize=_outside)), "act", ("act/norms.0",), 1, ("norm-epsilon",), "forward"),
    Bug("mlp-norm-unbiased", model(norm=_unbiased), "act", ("act/norms.0",), 1, ("forward-other", "norm-axes"), "forward"),
    Bug("mlp-bfloat16-activations", recipe(precision=as_bfloat16), "act", ("act/layers.0",), 1, ("low-precision",), "forward"),
    Bug("mlp-tf32", model(linear=_tf32_linear), "act", ("act/layers.0",), 1, ("low-precision",), "forward"),
    # loss and backward
    Bug("mlp-loss-sum-over-outputs", model(loss=lambda y, t: jnp.mean(jnp.sum((y - t) ** 2, -1))), "loss", ("loss/total",), 1, ("loss-factor", "loss-reduction"), "forward"),
    Bug("mlp-loss-half", model(loss=lambda y, t: jnp.mean((y - t) ** 2) / 2), "loss", ("loss/total",), 1, ("loss-factor", "loss-reduction"), "forward"),
    Bug("mlp-loss-huber", model(loss=lambda y, t: jnp.mean(jnp.where(abs(y - t) < 1, (y - t) ** 2, 2 * abs(y - t) - 1))), "loss", ("loss/total",), 1, ("loss-function",), "forward"),
    Bug("mlp-gradient-stopped", model(backward=jax.lax.stop_gradient), "grad", ("grad/layers.0.weight",), 1, ("gradient-stopped",), "forward"),
    # optimizer
    Bug("mlp-learning-rate", recipe(rate=lambda update: mlp.RATE * (1 + 1e-5)), "update", HEAD_EVERY, 1, ("learning-rate",), OPT),
    Bug("mlp-bias-rate-doubled", optimizer(rates=lambda name: 2.0 if name.endswith("bias") else 1.0), "update", ("update/layers.0.bias",), 1, ("learning-rate-groups",), OPT),
    Bug("mlp-epsilon-inside", optimizer(root=lambda nu, epsilon: jnp.sqrt(nu + epsilon)), "update", HEAD_EVERY, 1, ("epsilon-place",), OPT),
    Bug("mlp-epsilon-value", optimizer(epsilon=1e-6), "update", HEAD_EVERY, 1, ("epsilon-value",), OPT),
    Bug("mlp-decay-decoupled", optimizer(coupled=False), "update", HEAD_EVERY, 1, ("decay-coupled",), OPT),
    Bug("mlp-decay-missing", optimizer(decay=0.0), "update", HEAD_EVERY, 1, ("decay-value",), OPT),
    Bug("mlp-no-bias-correction", optimizer(correct=lambda moment, beta, count: moment), "update", HEAD_EVERY, 1, ("bias-correction",), OPT),
    Bug("mlp-bias-correction-late", optimizer(correct=lambda moment, beta, count: corrected(moment, beta, count + 1)), "update", HEAD_EVERY, 1, ("bias-correction",), OPT),
    Bug("mlp-beta1", optimizer(beta1=0.95), "opt", ("opt/mu/*",), 1, ("beta",), OPT),
    Bug("mlp-beta2", optimizer(beta2=0.99), "opt", ("opt/nu/*",), 1, ("beta",), OPT),
    Bug("mlp-nesterov", optimizer(first=_nesterov), "update", HEAD_EVERY, 1, ("nesterov", "optimizer-other"), OPT),
    Bug("mlp-amsgrad", lambda correct: recipe(optimizer=AmsGrad(decay=mlp.DECAY))(correct), "update", HEAD_EVERY, 2, ("second-moment",), OPT),
    Bug("mlp-bfloat16-momentum", optimizer(store=as_bfloat16), "opt", ("opt/mu/*",), 1, ("low-precision",), OPT),
    Bug("mlp-state-reset", optimizer(remember=lambda state, update: jax.tree.map(lambda each: jnp.where(update == 5, 0, each).astype(each.dtype), state)), "update", HEAD_EVERY, 5, ("state-reset",), OPT),
    Bug("mlp-averaging", recipe(averaging=lambda average, value: 0.99 * average + 0.01 * value), "opt", ("opt/ema/*",), 1, ("weight-averaging",), OPT),
    Bug("mlp-torch-tanh-gelu", recipe(model=partial(mlp.Mlp, approximate="tanh")), "act", ("act/activations.1",), 1, ("activation-function",), "forward", "torch"),
    Bug("mlp-torch-loss-sum", recipe(model=partial(mlp.Mlp, reduction="sum")), "loss", ("loss/total",), 1, ("loss-reduction", "loss-factor"), "forward", "torch"),
    Bug("mlp-torch-amsgrad", recipe(optimizer=partial(mlp.adam, amsgrad=True)), "update", HEAD_EVERY, 2, ("second-moment",), OPT, "torch"),
    Bug("mlp-torch-epsilon-value", recipe(optimizer=partial(mlp.adam, eps=1e-5)), "update", HEAD_EVERY, 1, ("epsilon-value",), OPT, "torch"),
)

MLP = Family("mlp", mlp.weights, mlp.batches, mlp.TORCH, mlp.JAX, BUGS)
