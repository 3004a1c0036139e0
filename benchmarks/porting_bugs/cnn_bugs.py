"""Plant bugs in the digits' network: images' layouts, batch norms, pooling, SGD, epochs and partial batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.porting_bugs import cnn, jax_layers
from benchmarks.porting_bugs.family import Family
from benchmarks.porting_bugs.jax_layers import as_bfloat16
from benchmarks.porting_bugs.jax_optimizers import Tree
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.truth import Bug, loaded, model, optimizer, recipe


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
    return [{name: np.resize(value, (cnn.BATCH, *value.shape[1:])) for name, value in batch.items()} for batch in batches]


def _standardized_each(batches: list[Arrays]) -> list[Arrays]:
    """Return images that are standardized one by one."""
    return [{**batch, "x": (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)} for batch in batches for x in [batch["x"]]]


def _images_turned(batches: list[Arrays]) -> list[Arrays]:
    return [{**batch, "x": batch["x"].swapaxes(2, 3)} for batch in batches]


def _flipped(params: Tree, name: str, x: jax.Array, **options: Any) -> jax.Array:
    """Convolve as mathematics does, with the kernel turned around."""
    return jax_layers.conv({**params, f"{name}.weight": params[f"{name}.weight"][::-1, ::-1]}, name, x, **options)


def _bias_twice(params: Tree, name: str, x: jax.Array) -> jax.Array:
    return jax_layers.linear(params, name, x) + params[f"{name}.bias"]


def _bias_forgotten(params: Tree, name: str, x: jax.Array) -> jax.Array:
    return x @ params[f"{name}.weight"]


def _damped(trace: Any, grad: Any, rate: Any) -> Any:
    return 0.9 * trace + 0.1 * grad


FIRST_UPDATE = ("update/*",)
FORWARD, OPT = "forward", "optimizer"
RUNNING = ("opt/norm1.*",)

BUGS = (
    # data and weights
    Bug("cnn-second-epoch-shuffled", recipe(prepare=_second_epoch_shuffled), "data", ("data/x",), 7, ("batch-order", "batch-content"), "batch"),
    Bug("cnn-same-order-each-epoch", recipe(prepare=_first_epoch_again), "data", ("data/x",), 7, ("batch-order", "batch-content"), "batch"),
    Bug("cnn-partial-dropped", recipe(prepare=_partial_dropped), "data", ("data/x",), 6, ("batch-partial",), "batch"),
    Bug("cnn-partial-padded", recipe(prepare=_partial_padded), "data", ("data/x",), 6, ("batch-partial",), "batch"),
    Bug("cnn-standardized-each", recipe(prepare=_standardized_each), "data", ("data/x",), 1, ("batch-preprocessing",), "batch"),
    Bug("cnn-images-turned", recipe(prepare=_images_turned), "data", ("data/x",), 1, ("batch-preprocessing",), "batch"),
    Bug("cnn-kernel-flipped", loaded(conv2__weight=lambda w: w[:, :, ::-1, ::-1]), "param", ("param/conv2.weight",), 1, ("weight-layout",), "params"),
    Bug("cnn-bias-not-loaded", loaded(head__bias=np.zeros_like), "param", ("param/head.bias",), 1, ("weight-not-loaded", "initial-weights"), "params"),
    # forward
    Bug("cnn-convolution-flipped", model(conv=_flipped), "act", ("act/conv1",), 1, ("weight-layout", "forward-other"), FORWARD),
    Bug("cnn-same-padding", model(padding="SAME"), "act", ("act/conv2",), 1, ("padding",), FORWARD),
    Bug("cnn-norm-epsilon", model(norm_epsilon=1e-3), "act", ("act/norm1",), 1, ("norm-epsilon",), FORWARD),
    Bug("cnn-norm-in-evaluation", model(norm_statistics=lambda x, mean, var: (mean, var)), "act", ("act/norm1",), 1, ("norm-mode",), FORWARD),
    Bug("cnn-average-pool", model(pool=jax_layers.average_pool), "act", ("act/pool",), 1, ("pooling",), FORWARD),
    Bug("cnn-flattened-channels-last", model(flatten=lambda x: x.reshape(len(x), -1)), "act", ("act/flat",), 1, ("flatten-order",), FORWARD),
    Bug("cnn-dropout-left-on", model(hidden=lambda x, update: jax_layers.dropout(x, update)), "act", ("act/relu3",), 1, ("dropout",), FORWARD),
    Bug("cnn-bias-twice", model(linear=_bias_twice), "act", ("act/hidden",), 1, ("bias-missing",), FORWARD),
    Bug("cnn-bias-forgotten", model(linear=_bias_forgotten), "act", ("act/hidden",), 1, ("bias-missing",), FORWARD),
    # loss, backward, buffers
    Bug("cnn-loss-summed", model(reduce=jnp.sum), "loss", ("loss/total",), 1, ("loss-reduction", "loss-factor"), FORWARD),
    Bug("cnn-loss-over-full-batch", model(reduce=lambda losses: losses.sum() / cnn.BATCH), "loss", ("loss/total",), 6, ("loss-reduction", "batch-partial", "loss-factor"), FORWARD),
    Bug("cnn-gradient-stopped", model(flatten=lambda x: cnn.Options.flatten(jax.lax.stop_gradient(x))), "grad", ("grad/conv1.weight",), 1, ("gradient-stopped",), FORWARD),
    Bug("cnn-norm-statistics-constant", model(norm_statistics=lambda x, *running: jax.lax.stop_gradient(cnn.from_batch(x, *running))), "grad", ("grad/conv1.weight",), 1, ("gradient-stopped", "gradient-other"), FORWARD),
    Bug("cnn-norm-momentum", model(norm_average=lambda average, new: 0.99 * average + 0.01 * new), "opt", RUNNING, 1, ("buffer-momentum",), FORWARD),
    Bug("cnn-norm-momentum-turned", model(norm_average=lambda average, new: 0.1 * average + 0.9 * new), "opt", RUNNING, 1, ("buffer-momentum",), FORWARD),
    Bug("cnn-norm-variance-biased", model(norm_variance=lambda var, count: var), "opt", ("opt/norm1.running_var",), 1, ("buffer-variance",), FORWARD),
    # optimizer
    Bug("cnn-rate-in-momentum", optimizer(buffer=lambda trace, grad, rate: 0.9 * trace + rate * grad, step=lambda trace, grad, rate: -trace), "opt", ("opt/trace/*",), 1, ("momentum-convention",), OPT),
    Bug("cnn-momentum-damped", optimizer(buffer=_damped), "update", FIRST_UPDATE, 1, ("momentum-convention",), OPT),
    Bug("cnn-momentum-value", optimizer(buffer=lambda trace, grad, rate: 0.95 * trace + grad), "update", FIRST_UPDATE, 2, ("momentum-value",), OPT),
    Bug("cnn-nesterov", optimizer(step=lambda trace, grad, rate: -rate * (grad + 0.9 * trace)), "update", FIRST_UPDATE, 1, ("nesterov",), OPT),
    Bug("cnn-decay-missing", optimizer(decay=0.0), "update", FIRST_UPDATE, 1, ("decay-value",), OPT),
    Bug("cnn-decay-decoupled", optimizer(coupled=False), "opt", ("opt/trace/*",), 1, ("decay-coupled",), OPT),
    Bug("cnn-decay-not-for-biases", optimizer(decays=lambda name: not name.endswith("bias")), "update", ("update/conv1.bias", "update/norm1.bias"), 1, ("decay-mask",), OPT),
    Bug("cnn-schedule-early", recipe(rate=lambda update: cnn.rate_in_jax(update + 1)), "update", FIRST_UPDATE, 6, ("schedule-offset", "schedule-shape"), OPT),
    Bug("cnn-learning-rate", recipe(rate=lambda update: cnn.rate_in_jax(update) * 1.01), "update", FIRST_UPDATE, 1, ("learning-rate",), OPT),
    Bug("cnn-bfloat16-momentum", optimizer(store=as_bfloat16), "opt", ("opt/trace/*",), 1, ("low-precision",), OPT),
    Bug("cnn-layer-frozen", optimizer(trained=lambda name: not name.startswith("conv2")), "update", ("update/conv2.weight",), 1, ("frozen-parameter",), OPT),
    Bug("cnn-torch-dampening", recipe(optimizer=partial(cnn.sgd, dampening=0.1)), "update", FIRST_UPDATE, 2, ("momentum-convention",), OPT, "torch"),
    Bug("cnn-torch-nesterov", recipe(optimizer=partial(cnn.sgd, nesterov=True)), "update", FIRST_UPDATE, 1, ("nesterov",), OPT, "torch"),
    Bug("cnn-torch-norm-momentum", recipe(model=partial(cnn.Cnn, norm_momentum=0.01)), "opt", RUNNING, 1, ("buffer-momentum",), FORWARD, "torch"),
    Bug("cnn-torch-decay-maximized", recipe(optimizer=partial(cnn.sgd, maximize=True)), "update", FIRST_UPDATE, 1, ("update-sign",), OPT, "torch"),
)

CNN = Family("cnn", cnn.weights, cnn.batches, cnn.TORCH, cnn.JAX, BUGS, cnn.buffers)
