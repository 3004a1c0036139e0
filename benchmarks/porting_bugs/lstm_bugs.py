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
from benchmarks.porting_bugs.jax_layers import as_bfloat16, as_tf32
from benchmarks.porting_bugs.jax_optimizers import Adam, CenteredRmsProp, Tree, corrected
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.lstm import BATCH, LENGTH, WIDTH
from benchmarks.porting_bugs.truth import FORWARD, OPT, STATE, loaded, model, optimizer, planted, recipe


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


BUGS = (
    # data and weights
    planted(
        "lstm-two-batches-swapped", recipe(prepare=_two_batches_swapped), "data/x", "batch-order batch-content", first=3
    ),
    planted("lstm-sorted-by-length", recipe(prepare=_sorted_by_length), "data/x", "batch-order"),
    planted(
        "lstm-padded-otherwise", recipe(prepare=_padded_with_last_token), "data/x", "batch-preprocessing batch-content"
    ),
    planted(
        "lstm-mask-one-longer",
        recipe(prepare=_mask_one_longer),
        "data/mask",
        "loss-mask batch-preprocessing batch-content",
    ),
    planted(
        "lstm-gates-swapped",
        loaded(
            lstm__weight_ih_l0=_input_and_forget_swapped,
            lstm__weight_hh_l0=_input_and_forget_swapped,
            lstm__bias_ih_l0=_input_and_forget_swapped,
            lstm__bias_hh_l0=_input_and_forget_swapped,
        ),
        "param/lstm.weight_ih_l0",
        "weight-layout",
    ),
    planted(
        "lstm-bias-not-loaded",
        loaded(lstm__bias_hh_l0=np.zeros_like),
        "param/lstm.bias_hh_l0",
        "weight-not-loaded initial-weights",
    ),
    # forward
    planted("lstm-keras-gates", model(gates=_gates_in_keras_order), "act/lstm", "weight-layout forward-other"),
    planted("lstm-forget-gate-open", model(gates=_forget_gate_open), "act/lstm", "bias-missing forward-other"),
    planted("lstm-hard-sigmoid", model(gates=_hard_gates), "act/lstm", "activation-function forward-other"),
    planted(
        "lstm-one-bias", model(bias=lambda of_inputs, of_states: of_inputs), "act/lstm", "bias-missing forward-other"
    ),
    planted(
        "lstm-output-without-tanh",
        model(output=lambda o, cell: o * cell),
        "act/lstm",
        "activation-function forward-other",
    ),
    planted(
        "lstm-state-carried", _carried, "act/lstm", "state-reset forward-other", first=2, culprits=(*FORWARD, *STATE)
    ),
    planted(
        "lstm-padding-embedded-as-zero",
        model(embed=lambda table, x: jnp.where(x[..., None] == 0, 0, table[x])),
        "act/embedding",
        "forward-other",
    ),
    planted("lstm-state-after-padding", model(final=lambda states, mask: states[:, -1]), "act/final", "forward-other"),
    planted("lstm-sigmoid-for-tanh", model(activation=jax.nn.sigmoid), "act/tanh", "activation-function"),
    planted("lstm-dropout-left-on", model(dropout=jax_layers.dropout), "act/tanh", "dropout"),
    planted("lstm-tf32", model(product=lambda x, weight: as_tf32(x) @ as_tf32(weight)), "act/lstm", "low-precision"),
    planted("lstm-bfloat16-activations", recipe(precision=as_bfloat16), "act/embedding", "low-precision"),
    # loss and backward
    planted("lstm-loss-with-padding", model(mean=lambda losses, mask: losses.mean()), "loss/total", "loss-mask"),
    planted(
        "lstm-loss-over-padded-count",
        model(mean=lambda losses, mask: (losses * mask).mean()),
        "loss/total",
        "loss-reduction loss-mask",
    ),
    planted("lstm-loss-mean-of-means", model(mean=_mean_of_means), "loss/total", "loss-reduction loss-mask"),
    planted(
        "lstm-value-loss-absolute",
        model(value_loss=lambda value, target: jnp.mean(abs(value - target))),
        "loss/total",
        "loss-function",
    ),
    planted(
        "lstm-value-loss-halved",
        model(value_loss=lambda value, target: jnp.mean((value - target) ** 2) / 2),
        "loss/total",
        "loss-function loss-factor",
    ),
    planted(
        "lstm-not-through-time",
        model(between=jax.lax.stop_gradient),
        "grad/embedding.weight",
        "gradient-stopped gradient-other",
    ),
    planted(
        "lstm-final-stopped",
        model(final=lambda states, mask: jax.lax.stop_gradient(lstm.at_the_end(states, mask))),
        "grad/embedding.weight",
        "gradient-stopped gradient-other",
    ),
    # optimizer
    planted(
        "lstm-epsilon-inside", optimizer(root=lambda nu, epsilon: jnp.sqrt(nu + epsilon)), "update/*", "epsilon-place"
    ),
    planted("lstm-epsilon-value", optimizer(epsilon=1e-5), "update/*", "epsilon-value"),
    planted("lstm-alpha", optimizer(alpha=0.9), "update/*", "beta"),
    planted("lstm-centered", recipe(optimizer=CenteredRmsProp()), "update/*", "second-moment"),
    planted("lstm-second-moment-from-one", optimizer(start=1.0), "update/*", "second-moment"),
    planted("lstm-bias-corrected", optimizer(correct=corrected), "update/*", "bias-correction"),
    planted(
        "lstm-no-momentum", optimizer(buffer=lambda trace, scaled, rate: scaled), "update/*", "momentum-value", first=2
    ),
    planted(
        "lstm-rate-in-momentum",
        optimizer(
            buffer=lambda trace, scaled, rate: 0.9 * trace + rate * scaled, step=lambda trace, scaled, rate: -trace
        ),
        "opt/trace/*",
        "momentum-convention",
    ),
    planted(
        "lstm-nesterov",
        optimizer(step=lambda trace, scaled, rate: -rate * (0.9 * trace + scaled)),
        "update/*",
        "nesterov",
    ),
    planted("lstm-adam", recipe(optimizer=Adam()), "update/*", "optimizer-other"),
    planted("lstm-decay", optimizer(decay=1e-2), "update/*", "decay-value"),
    planted(
        "lstm-schedule-early",
        recipe(rate=lambda update: lstm.rate_in_jax(update + 1)),
        "update/*",
        "schedule-offset schedule-shape learning-rate",
    ),
    planted(
        "lstm-schedule-by-steps",
        recipe(rate=lambda update: lstm.RATE * lstm.FADING ** (4 * ((update - 1) // 4))),
        "update/*",
        "schedule-shape",
        first=2,
    ),
    planted("lstm-rate-constant", recipe(rate=lambda update: lstm.RATE), "update/*", "schedule-shape", first=2),
    planted(
        "lstm-learning-rate",
        recipe(rate=lambda update: lstm.rate_in_jax(update) * (1 - 1e-4)),
        "update/*",
        "learning-rate",
    ),
    planted(
        "lstm-embedding-frozen",
        optimizer(trained=lambda name: name != "embedding.weight"),
        "update/embedding.weight",
        "frozen-parameter",
    ),
    planted(
        "lstm-moments-lost",
        optimizer(remember=_moments_lost),
        "update/*",
        "state-reset",
        first=5,
        culprits=(*OPT, *STATE),
    ),
    planted(
        "lstm-torch-centered",
        recipe(optimizer=partial(lstm.rmsprop, centered=True)),
        "update/*",
        "second-moment",
        side="torch",
    ),
    planted(
        "lstm-torch-decay",
        recipe(optimizer=partial(lstm.rmsprop, weight_decay=1e-2)),
        "update/*",
        "decay-value",
        side="torch",
    ),
    planted(
        "lstm-torch-value-loss-absolute",
        recipe(model=partial(lstm.Lstm, value_loss=functional.l1_loss)),
        "loss/total",
        "loss-function",
        side="torch",
    ),
)

LSTM = Family("lstm", lstm.weights, lstm.batches, lstm.TORCH, lstm.JAX, BUGS)
