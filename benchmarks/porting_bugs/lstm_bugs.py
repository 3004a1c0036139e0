"""Plant bugs in the LSTM: gates, states, masks and lengths, RMSprop."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch.nn import functional

from benchmarks.porting_bugs import jax_layers, lstm
from benchmarks.porting_bugs.family import Family
from benchmarks.porting_bugs.jax_layers import as_bfloat16
from benchmarks.porting_bugs.jax_optimizers import Adam, CenteredRmsProp, Tree, corrected
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.lstm import BATCH, LENGTH, WIDTH
from benchmarks.porting_bugs.truth import Bug, Change, loaded, model, optimizer, recipe


def _two_batches_swapped(batches: list[Arrays]) -> list[Arrays]:
    return [*batches[:2], batches[3], batches[2], *batches[4:]]


def _sorted_by_length(batches: list[Arrays]) -> list[Arrays]:
    orders = [np.argsort(-batch["mask"].sum(1), kind="stable") for batch in batches]
    return [{name: value[order] for name, value in batch.items()} for batch, order in zip(batches, orders, strict=True)]


def _padded_with_last_token(batches: list[Arrays]) -> list[Arrays]:
    padding = lstm.TOKENS - 1
    return [{**batch, "x": np.where(batch["mask"] > 0, batch["x"], padding)} for batch in batches]


def _mask_one_longer(batches: list[Arrays]) -> list[Arrays]:
    lengths = [np.minimum(batch["mask"].sum(1, keepdims=True) + 1, LENGTH) for batch in batches]
    masks = [(np.arange(LENGTH) < length).astype(np.float32) for length in lengths]
    return [{**batch, "mask": mask} for batch, mask in zip(batches, masks, strict=True)]


def _input_and_forget_swapped(weight: Any) -> Any:
    i, f, g, o = np.split(weight, 4)
    return np.concatenate([f, i, g, o])


def _gates_in_keras_order(total: Any) -> tuple[Any, Any, Any, Any]:
    i, f, o, g = jnp.split(total, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _forget_gate_open(total: Any) -> tuple[Any, Any, Any, Any]:
    """Add one to the forget gate, as R. Jozefowicz et al. advise (2015) and some libraries do by themselves."""
    i, f, g, o = jnp.split(total, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f + 1), jnp.tanh(g), jax.nn.sigmoid(o)


def _hard_gates(total: Any) -> tuple[Any, Any, Any, Any]:
    i, f, g, o = jnp.split(total, 4, axis=-1)
    return jax.nn.hard_sigmoid(i), jax.nn.hard_sigmoid(f), jnp.tanh(g), jax.nn.hard_sigmoid(o)


def _carried(correct: Any) -> Any:
    """Start each batch from the last one's states."""
    names = ("cell", "state")
    change = model(start=lambda buffers, rows: {name: buffers[name] for name in names}, carry=True)
    zeros = {name: np.zeros((BATCH, WIDTH), np.float32) for name in names}
    return change(recipe(buffers=lambda buffers: {**buffers, **zeros})(correct))


def _mean_of_means(losses: Any, mask: Any) -> Any:
    return jnp.mean((losses * mask).sum(1) / mask.sum(1))


def _moments_lost(state: Tree, update: Any) -> Tree:
    return {key: jnp.where(update == 5, 0, value).astype(value.dtype) for key, value in state.items()}


def _other(**fields: Any) -> Change:
    """Return the change to another optimizer."""
    return recipe(**fields)


ANY_UPDATE = ("update/*",)
FORWARD, OPT = "forward", "optimizer"

BUGS = (
    # data and weights
    Bug("lstm-two-batches-swapped", recipe(prepare=_two_batches_swapped), "data", ("data/x",), 3, ("batch-order", "batch-content"), "batch"),
    Bug("lstm-sorted-by-length", recipe(prepare=_sorted_by_length), "data", ("data/x",), 1, ("batch-order",), "batch"),
    Bug("lstm-padded-otherwise", recipe(prepare=_padded_with_last_token), "data", ("data/x",), 1, ("batch-preprocessing", "batch-content"), "batch"),
    Bug("lstm-mask-one-longer", recipe(prepare=_mask_one_longer), "data", ("data/mask",), 1, ("loss-mask", "batch-preprocessing", "batch-content"), "batch"),
    Bug("lstm-gates-swapped", loaded(lstm__weight_ih_l0=_input_and_forget_swapped, lstm__weight_hh_l0=_input_and_forget_swapped, lstm__bias_ih_l0=_input_and_forget_swapped, lstm__bias_hh_l0=_input_and_forget_swapped), "param", ("param/lstm.weight_ih_l0",), 1, ("weight-layout",), "params"),
    Bug("lstm-bias-not-loaded", loaded(lstm__bias_hh_l0=np.zeros_like), "param", ("param/lstm.bias_hh_l0",), 1, ("weight-not-loaded", "initial-weights"), "params"),
    # forward
    Bug("lstm-keras-gates", model(gates=_gates_in_keras_order), "act", ("act/lstm",), 1, ("weight-layout", "forward-other"), FORWARD),
    Bug("lstm-forget-gate-open", model(gates=_forget_gate_open), "act", ("act/lstm",), 1, ("bias-missing", "forward-other"), FORWARD),
    Bug("lstm-hard-sigmoid", model(gates=_hard_gates), "act", ("act/lstm",), 1, ("activation-function", "forward-other"), FORWARD),
    Bug("lstm-one-bias", model(bias=lambda of_inputs, of_states: of_inputs), "act", ("act/lstm",), 1, ("bias-missing", "forward-other"), FORWARD),
    Bug("lstm-output-without-tanh", model(output=lambda o, cell: o * cell), "act", ("act/lstm",), 1, ("activation-function", "forward-other"), FORWARD),
    Bug("lstm-state-carried", _carried, "act", ("act/lstm",), 2, ("state-reset", "forward-other"), FORWARD),
    Bug("lstm-padding-embedded-as-zero", model(embed=lambda table, x: jnp.where(x[..., None] == 0, 0, table[x])), "act", ("act/embedding",), 1, ("forward-other",), FORWARD),
    Bug("lstm-state-after-padding", model(final=lambda states, mask: states[:, -1]), "act", ("act/final",), 1, ("forward-other",), FORWARD),
    Bug("lstm-sigmoid-for-tanh", model(activation=jax.nn.sigmoid), "act", ("act/tanh",), 1, ("activation-function",), FORWARD),
    Bug("lstm-dropout-left-on", model(dropout=jax_layers.dropout), "act", ("act/tanh",), 1, ("dropout",), FORWARD),
    Bug("lstm-bfloat16-activations", recipe(precision=as_bfloat16), "act", ("act/embedding",), 1, ("low-precision",), FORWARD),
    # loss and backward
    Bug("lstm-loss-with-padding", model(mean=lambda losses, mask: losses.mean()), "loss", ("loss/total",), 1, ("loss-mask",), FORWARD),
    Bug("lstm-loss-over-padded-count", model(mean=lambda losses, mask: (losses * mask).mean()), "loss", ("loss/total",), 1, ("loss-reduction", "loss-mask"), FORWARD),
    Bug("lstm-loss-mean-of-means", model(mean=_mean_of_means), "loss", ("loss/total",), 1, ("loss-reduction", "loss-mask"), FORWARD),
    Bug("lstm-value-loss-absolute", model(value_loss=lambda value, target: jnp.mean(abs(value - target))), "loss", ("loss/total",), 1, ("loss-function",), FORWARD),
    Bug("lstm-value-loss-halved", model(value_loss=lambda value, target: jnp.mean((value - target) ** 2) / 2), "loss", ("loss/total",), 1, ("loss-function", "loss-factor"), FORWARD),
    Bug("lstm-not-through-time", model(between=jax.lax.stop_gradient), "grad", ("grad/embedding.weight",), 1, ("gradient-stopped", "gradient-other"), FORWARD),
    Bug("lstm-final-stopped", model(final=lambda states, mask: jax.lax.stop_gradient(lstm.at_the_end(states, mask))), "grad", ("grad/embedding.weight",), 1, ("gradient-stopped", "gradient-other"), FORWARD),
    # optimizer
    Bug("lstm-epsilon-inside", optimizer(root=lambda nu, epsilon: jnp.sqrt(nu + epsilon)), "update", ANY_UPDATE, 1, ("epsilon-place",), OPT),
    Bug("lstm-epsilon-value", optimizer(epsilon=1e-5), "update", ANY_UPDATE, 1, ("epsilon-value",), OPT),
    Bug("lstm-alpha", optimizer(alpha=0.9), "update", ANY_UPDATE, 1, ("beta",), OPT),
    Bug("lstm-centered", lambda correct: recipe(optimizer=CenteredRmsProp())(correct), "update", ANY_UPDATE, 1, ("second-moment",), OPT),
    Bug("lstm-second-moment-from-one", optimizer(start=1.0), "update", ANY_UPDATE, 1, ("second-moment",), OPT),
    Bug("lstm-bias-corrected", optimizer(correct=corrected), "update", ANY_UPDATE, 1, ("bias-correction",), OPT),
    Bug("lstm-no-momentum", optimizer(buffer=lambda trace, scaled, rate: scaled), "update", ANY_UPDATE, 2, ("momentum-value",), OPT),
    Bug("lstm-rate-in-momentum", optimizer(buffer=lambda trace, scaled, rate: 0.9 * trace + rate * scaled, step=lambda trace, scaled, rate: -trace), "opt", ("opt/trace/*",), 1, ("momentum-convention",), OPT),
    Bug("lstm-nesterov", optimizer(step=lambda trace, scaled, rate: -rate * (0.9 * trace + scaled)), "update", ANY_UPDATE, 1, ("nesterov",), OPT),
    Bug("lstm-adam", _other(optimizer=Adam()), "update", ANY_UPDATE, 1, ("optimizer-other",), OPT),
    Bug("lstm-decay", optimizer(decay=1e-2), "update", ANY_UPDATE, 1, ("decay-value",), OPT),
    Bug("lstm-schedule-early", recipe(rate=lambda update: lstm.rate_in_jax(update + 1)), "update", ANY_UPDATE, 1, ("schedule-offset", "schedule-shape", "learning-rate"), OPT),
    Bug("lstm-schedule-by-steps", recipe(rate=lambda update: lstm.RATE * lstm.FADING ** (4 * ((update - 1) // 4))), "update", ANY_UPDATE, 2, ("schedule-shape",), OPT),
    Bug("lstm-rate-constant", recipe(rate=lambda update: lstm.RATE), "update", ANY_UPDATE, 2, ("schedule-shape",), OPT),
    Bug("lstm-learning-rate", recipe(rate=lambda update: lstm.rate_in_jax(update) * (1 - 1e-4)), "update", ANY_UPDATE, 1, ("learning-rate",), OPT),
    Bug("lstm-embedding-frozen", optimizer(trained=lambda name: name != "embedding.weight"), "update", ("update/embedding.weight",), 1, ("frozen-parameter",), OPT),
    Bug("lstm-moments-lost", optimizer(remember=_moments_lost), "update", ANY_UPDATE, 5, ("state-reset",), OPT),
    Bug("lstm-torch-centered", recipe(optimizer=partial(lstm.rmsprop, centered=True)), "update", ANY_UPDATE, 1, ("second-moment",), OPT, "torch"),
    Bug("lstm-torch-decay", recipe(optimizer=partial(lstm.rmsprop, weight_decay=1e-2)), "update", ANY_UPDATE, 1, ("decay-value",), OPT, "torch"),
    Bug("lstm-torch-value-loss-absolute", recipe(model=partial(lstm.Lstm, value_loss=functional.l1_loss)), "loss", ("loss/total",), 1, ("loss-function",), FORWARD, "torch"),
)

LSTM = Family("lstm", lstm.weights, lstm.batches, lstm.TORCH, lstm.JAX, BUGS)
