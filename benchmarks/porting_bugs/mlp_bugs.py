"""Plant bugs in the airfoils' network: activations, layer norms, Adam, averaged weights."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.porting_bugs import jax_layers, mlp
from benchmarks.porting_bugs.family import Family
from benchmarks.porting_bugs.jax_layers import as_bfloat16
from benchmarks.porting_bugs.jax_optimizers import Adam, AmsGrad, Tree, corrected, corrected_as_in_optax
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.truth import OPT, STATE, Way, loaded, model, optimizer, planted, recipe


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
    for one, other in pairwise(mixed[5:]):
        for name in one:
            one[name][-1], other[name][0] = other[name][0].copy(), one[name][-1].copy()
    return mixed


def _nesterov(mu: Any, grad: Any, adam: Adam, count: Any) -> Any:
    ahead = adam.correct(mu, adam.beta1, count + 1) * adam.beta1
    return ahead + (1 - adam.beta1) * adam.correct(grad, adam.beta1, count)


BUGS = (
    # data and weights
    planted("mlp-one-other-batch", recipe(prepare=_one_other_batch), "data/x", "batch-content batch-order", first=4),
    planted("mlp-input-scale", recipe(prepare=_unscaled), "data/x", "batch-preprocessing"),
    planted("mlp-half-inputs", recipe(prepare=_half_inputs), "data/x", "batch-dtype low-precision"),
    planted("mlp-rows-swapped", recipe(prepare=_swapped_rows), "data/x", "batch-content batch-order", first=6),
    planted(
        "mlp-kernel-not-transposed", loaded(layers__1__weight=np.transpose), "param/layers.1.weight", "weight-layout"
    ),
    planted(
        "mlp-norm-not-loaded",
        loaded(norms__2__weight=np.ones_like),
        "param/norms.2.weight",
        "weight-not-loaded initial-weights",
    ),
    # forward
    planted(
        "mlp-kernel-used-transposed", model(linear=_transposed_linear), "act/layers.1", "weight-layout forward-other"
    ),
    planted("mlp-relu-for-silu", model(first=jax.nn.relu), "act/activations.0", "activation-function"),
    planted("mlp-tanh-gelu", model(second=jax.nn.gelu), "act/activations.1", "activation-function"),
    planted(
        "mlp-leaky-slope", model(third=lambda x: jax.nn.leaky_relu(x, 0.2)), "act/activations.2", "activation-function"
    ),
    planted(
        "mlp-norm-epsilon", model(norm=partial(jax_layers.layer_norm, epsilon=1e-6)), "act/norms.0", "norm-epsilon"
    ),
    planted(
        "mlp-norm-epsilon-outside",
        model(norm=partial(jax_layers.layer_norm, normalize=_outside)),
        "act/norms.0",
        "norm-epsilon",
    ),
    planted("mlp-norm-unbiased", model(norm=_unbiased), "act/norms.0", "forward-other norm-axes"),
    planted("mlp-bfloat16-activations", recipe(precision=as_bfloat16), "act/layers.0", "low-precision"),
    planted("mlp-tf32", model(linear=jax_layers.tf32_linear), "act/layers.0", "low-precision"),
    # loss and backward
    planted(
        "mlp-loss-sum-over-outputs",
        model(loss=lambda y, t: jnp.mean(jnp.sum((y - t) ** 2, -1))),
        "loss/total",
        "loss-factor loss-reduction",
    ),
    planted(
        "mlp-loss-half", model(loss=lambda y, t: jnp.mean((y - t) ** 2) / 2), "loss/total", "loss-factor loss-reduction"
    ),
    planted(
        "mlp-loss-huber",
        model(loss=lambda y, t: jnp.mean(jnp.where(abs(y - t) < 1, (y - t) ** 2, 2 * abs(y - t) - 1))),
        "loss/total",
        "loss-function",
    ),
    planted("mlp-gradient-stopped", model(backward=jax.lax.stop_gradient), "grad/layers.0.weight", "gradient-stopped"),
    # optimizer
    planted("mlp-learning-rate", recipe(rate=lambda update: mlp.RATE * (1 + 1e-5)), "update/*", "learning-rate"),
    planted(
        "mlp-bias-rate-doubled",
        optimizer(rates=lambda name: 2.0 if name.endswith("bias") else 1.0),
        "update/layers.0.bias",
        "learning-rate-groups",
    ),
    planted(
        "mlp-epsilon-inside", optimizer(root=lambda nu, epsilon: jnp.sqrt(nu + epsilon)), "update/*", "epsilon-place"
    ),
    planted("mlp-epsilon-value", optimizer(epsilon=1e-6), "update/*", "epsilon-value"),
    planted("mlp-decay-decoupled", optimizer(coupled=False), "update/*", "decay-coupled"),
    planted("mlp-decay-missing", optimizer(decay=0.0), "update/*", "decay-value"),
    planted(
        "mlp-no-bias-correction", optimizer(correct=lambda moment, beta, count: moment), "update/*", "bias-correction"
    ),
    planted(
        "mlp-bias-correction-late",
        optimizer(correct=lambda moment, beta, count: corrected(moment, beta, count + 1)),
        "update/*",
        "bias-correction",
    ),
    planted("mlp-beta1", optimizer(beta1=0.95), "opt/mu/*", "beta"),
    planted("mlp-beta2", optimizer(beta2=0.99), "opt/nu/*", "beta"),
    planted("mlp-nesterov", optimizer(first=_nesterov), "update/*", "nesterov optimizer-other"),
    planted("mlp-amsgrad", recipe(optimizer=AmsGrad(decay=mlp.DECAY)), "update/*", "second-moment", first=2),
    planted("mlp-bfloat16-momentum", optimizer(store=as_bfloat16), "opt/mu/*", "low-precision"),
    planted(
        "mlp-state-reset",
        optimizer(
            remember=lambda state, update: jax.tree.map(
                lambda each: jnp.where(update == 5, 0, each).astype(each.dtype), state
            )
        ),
        "update/*",
        "state-reset",
        first=5,
        culprits=(*OPT, *STATE),
    ),
    planted(
        "mlp-averaging",
        recipe(averaging=lambda average, value: 0.99 * average + 0.01 * value),
        "opt/ema/*",
        "weight-averaging",
    ),
    planted(
        "mlp-torch-tanh-gelu",
        recipe(model=partial(mlp.Mlp, approximate="tanh")),
        "act/activations.1",
        "activation-function",
        side="torch",
    ),
    planted(
        "mlp-torch-tf32",
        recipe(model=partial(mlp.Mlp, precision=mlp.as_tf32)),
        "act/layers.0",
        "low-precision",
        side="torch",
    ),
    planted(
        "mlp-torch-loss-sum",
        recipe(model=partial(mlp.Mlp, reduction="sum")),
        "loss/total",
        "loss-reduction loss-factor",
        side="torch",
    ),
    planted(
        "mlp-torch-amsgrad",
        recipe(optimizer=partial(mlp.adam, amsgrad=True)),
        "update/*",
        "second-moment",
        first=2,
        side="torch",
    ),
    planted(
        "mlp-torch-epsilon-value",
        recipe(optimizer=partial(mlp.adam, eps=1e-5)),
        "update/*",
        "epsilon-value",
        side="torch",
    ),
)

WAYS = (
    Way("mlp-flax-norm", model(norm=jax_layers.layer_norm_as_in_flax)),
    Way("mlp-optax-adam", optimizer(correct=corrected_as_in_optax)),
)

MLP = Family("mlp", mlp.weights, mlp.batches, mlp.TORCH, mlp.JAX, BUGS, WAYS)
