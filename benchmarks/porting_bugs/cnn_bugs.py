"""Plant bugs in the digits' network: images' layouts, batch norms, pooling, SGD, epochs and partial batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.porting_bugs import cnn, jax_layers
from benchmarks.porting_bugs.family import Family
from benchmarks.porting_bugs.jax_layers import as_bfloat16, as_tf32
from benchmarks.porting_bugs.jax_optimizers import Tree
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.truth import FORWARD, Way, loaded, model, optimizer, planted, recipe


def _second_epoch_shuffled(batches: list[Arrays]) -> list[Arrays]:
    second = {name: np.concatenate([batch[name] for batch in batches[cnn.EPOCH :]]) for name in batches[0]}
    order = np.random.default_rng(0).permutation(len(second["y"]))
    ends = np.cumsum([len(batch["y"]) for batch in batches[cnn.EPOCH :]])[:-1]
    split = {name: np.split(value[order], ends) for name, value in second.items()}
    again = [{name: split[name][index] for name in split} for index in range(len(ends) + 1)]
    return [*batches[: cnn.EPOCH], *again]


def _first_epoch_again(batches: list[Arrays]) -> list[Arrays]:
    return [batches[index % cnn.EPOCH] for index in range(len(batches))]


def _partial_dropped(batches: list[Arrays]) -> list[Arrays]:
    return [batch for batch in batches if len(batch["y"]) == cnn.BATCH]


def _partial_padded(batches: list[Arrays]) -> list[Arrays]:
    """Return batches that are filled up with their first images."""
    return [
        {name: np.resize(value, (cnn.BATCH, *value.shape[1:])) for name, value in batch.items()} for batch in batches
    ]


def _standardized_each(batches: list[Arrays]) -> list[Arrays]:
    """Return images that are standardized one by one."""
    return [
        {**batch, "x": (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)}
        for batch in batches
        for x in [batch["x"]]
    ]


def _images_turned(batches: list[Arrays]) -> list[Arrays]:
    return [{**batch, "x": batch["x"].swapaxes(2, 3)} for batch in batches]


def _flipped(params: Tree, name: str, x: jax.Array, **options: Any) -> jax.Array:
    """Convolve as mathematics does, with the kernel turned around."""
    return jax_layers.conv({**params, f"{name}.weight": params[f"{name}.weight"][::-1, ::-1]}, name, x, **options)


def _bias_twice(params: Tree, name: str, x: jax.Array) -> jax.Array:
    return jax_layers.linear(params, name, x) + params[f"{name}.bias"]


def _bias_forgotten(params: Tree, name: str, x: jax.Array) -> jax.Array:
    return x @ params[f"{name}.weight"]


def _tf32_convolution(params: Tree, name: str, x: jax.Array, **options: Any) -> jax.Array:
    return jax_layers.conv({**params, f"{name}.weight": as_tf32(params[f"{name}.weight"])}, name, as_tf32(x), **options)


def _fast_statistics(x: Any, mean: Any, var: Any) -> tuple[Any, Any]:
    return x.mean((0, 1, 2)), jax_layers.fast_variance(x, (0, 1, 2))


def _damped(trace: Any, grad: Any, rate: Any) -> Any:
    return 0.9 * trace + 0.1 * grad


BUGS = (
    # data and weights
    planted(
        "cnn-second-epoch-shuffled",
        recipe(prepare=_second_epoch_shuffled),
        "data/x",
        "batch-order batch-content",
        first=7,
    ),
    planted(
        "cnn-same-order-each-epoch", recipe(prepare=_first_epoch_again), "data/x", "batch-order batch-content", first=7
    ),
    planted("cnn-partial-dropped", recipe(prepare=_partial_dropped), "data/x", "batch-partial", first=6),
    planted("cnn-partial-padded", recipe(prepare=_partial_padded), "data/x", "batch-partial", first=6),
    planted("cnn-standardized-each", recipe(prepare=_standardized_each), "data/x", "batch-preprocessing"),
    planted("cnn-images-turned", recipe(prepare=_images_turned), "data/x", "batch-preprocessing"),
    planted(
        "cnn-kernel-flipped", loaded(conv2__weight=lambda w: w[:, :, ::-1, ::-1]), "param/conv2.weight", "weight-layout"
    ),
    planted(
        "cnn-bias-not-loaded", loaded(head__bias=np.zeros_like), "param/head.bias", "weight-not-loaded initial-weights"
    ),
    # forward
    planted("cnn-convolution-flipped", model(conv=_flipped), "act/conv1", "weight-layout forward-other"),
    planted("cnn-same-padding", model(padding="SAME"), "act/conv2", "padding"),
    planted("cnn-norm-epsilon", model(norm_epsilon=1e-3), "act/norm1", "norm-epsilon"),
    planted(
        "cnn-norm-in-evaluation", model(norm_statistics=lambda x, mean, var: (mean, var)), "act/norm1", "norm-mode"
    ),
    planted("cnn-average-pool", model(pool=jax_layers.average_pool), "act/pool", "pooling"),
    planted("cnn-flattened-channels-last", model(flatten=lambda x: x.reshape(len(x), -1)), "act/flat", "flatten-order"),
    planted(
        "cnn-dropout-left-on", model(hidden=lambda x, update: jax_layers.dropout(x, update)), "act/relu3", "dropout"
    ),
    planted("cnn-tf32", model(conv=_tf32_convolution), "act/conv1", "low-precision"),
    planted("cnn-bias-twice", model(linear=_bias_twice), "act/hidden", "bias-missing"),
    planted("cnn-bias-forgotten", model(linear=_bias_forgotten), "act/hidden", "bias-missing"),
    # loss, backward, buffers
    planted("cnn-loss-summed", model(reduce=jnp.sum), "loss/total", "loss-reduction loss-factor"),
    planted(
        "cnn-loss-over-full-batch",
        model(reduce=lambda losses: losses.sum() / cnn.BATCH),
        "loss/total",
        "loss-reduction batch-partial loss-factor",
        first=6,
    ),
    planted(
        "cnn-gradient-stopped",
        model(flatten=lambda x: cnn.Options.flatten(jax.lax.stop_gradient(x))),
        "grad/conv1.weight",
        "gradient-stopped",
    ),
    planted(
        "cnn-norm-statistics-constant",
        model(norm_statistics=lambda x, *running: jax.lax.stop_gradient(cnn.from_batch(x, *running))),
        "grad/conv1.weight",
        "gradient-stopped gradient-other",
    ),
    planted(
        "cnn-norm-momentum",
        model(norm_average=lambda average, new: 0.99 * average + 0.01 * new),
        "opt/norm1.*",
        "buffer-momentum",
        culprits=FORWARD,
    ),
    planted(
        "cnn-norm-momentum-turned",
        model(norm_average=lambda average, new: 0.1 * average + 0.9 * new),
        "opt/norm1.*",
        "buffer-momentum",
        culprits=FORWARD,
    ),
    planted(
        "cnn-norm-variance-biased",
        model(norm_variance=lambda var, count: var),
        "opt/norm1.running_var",
        "buffer-variance",
        culprits=FORWARD,
    ),
    # optimizer
    planted(
        "cnn-rate-in-momentum",
        optimizer(buffer=lambda trace, grad, rate: 0.9 * trace + rate * grad, step=lambda trace, grad, rate: -trace),
        "opt/trace/*",
        "momentum-convention",
    ),
    planted("cnn-momentum-damped", optimizer(buffer=_damped), "update/*", "momentum-convention"),
    planted(
        "cnn-momentum-value",
        optimizer(buffer=lambda trace, grad, rate: 0.95 * trace + grad),
        "update/*",
        "momentum-value",
        first=2,
    ),
    planted(
        "cnn-nesterov", optimizer(step=lambda trace, grad, rate: -rate * (grad + 0.9 * trace)), "update/*", "nesterov"
    ),
    planted("cnn-decay-missing", optimizer(decay=0.0), "update/*", "decay-value"),
    planted("cnn-decay-decoupled", optimizer(coupled=False), "opt/trace/*", "decay-coupled"),
    planted(
        "cnn-decay-not-for-biases",
        optimizer(decays=lambda name: not name.endswith("bias")),
        "update/conv1.bias update/norm1.bias",
        "decay-mask",
    ),
    planted(
        "cnn-schedule-early",
        recipe(rate=lambda update: cnn.rate_in_jax(update + 1)),
        "update/*",
        "schedule-offset schedule-shape",
        first=6,
    ),
    planted(
        "cnn-learning-rate", recipe(rate=lambda update: cnn.rate_in_jax(update) * 1.01), "update/*", "learning-rate"
    ),
    planted("cnn-bfloat16-momentum", optimizer(store=as_bfloat16), "opt/trace/*", "low-precision"),
    planted(
        "cnn-layer-frozen",
        optimizer(trained=lambda name: not name.startswith("conv2")),
        "update/conv2.weight",
        "frozen-parameter",
    ),
    planted(
        "cnn-torch-dampening",
        recipe(optimizer=partial(cnn.sgd, dampening=0.1)),
        "update/*",
        "momentum-convention",
        first=2,
        side="torch",
    ),
    planted(
        "cnn-torch-nesterov", recipe(optimizer=partial(cnn.sgd, nesterov=True)), "update/*", "nesterov", side="torch"
    ),
    planted(
        "cnn-torch-norm-momentum",
        recipe(model=partial(cnn.Cnn, norm_momentum=0.01)),
        "opt/norm1.*",
        "buffer-momentum",
        culprits=FORWARD,
        side="torch",
    ),
    planted(
        "cnn-torch-decay-maximized",
        recipe(optimizer=partial(cnn.sgd, maximize=True)),
        "update/*",
        "update-sign",
        side="torch",
    ),
)

WAYS = (Way("cnn-flax-norm", model(norm_statistics=_fast_statistics)),)

CNN = Family("cnn", cnn.weights, cnn.batches, cnn.TORCH, cnn.JAX, BUGS, WAYS, cnn.buffers)
