"""Plant bugs in the transformer's model: its data, attention, residuals, ties, smoothing, accumulation."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.porting_bugs import jax_layers, transformer
from benchmarks.porting_bugs.family import Family
from benchmarks.porting_bugs.jax_layers import as_bfloat16, negative_log_likelihood
from benchmarks.porting_bugs.jax_optimizers import Tree, corrected_as_in_optax
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.transformer import HEADS, SMOOTHING, TOKENS, WIDTH
from benchmarks.porting_bugs.transformer_optimizer_bugs import OPTIMIZER_BUGS
from benchmarks.porting_bugs.truth import Way, loaded, model, optimizer, planted, recipe


def _targets_not_shifted(batches: list[Arrays]) -> list[Arrays]:
    return [{**batch, "y": batch["x"]} for batch in batches]


def _queries_and_keys_swapped(weight: Any) -> Any:
    q, k, v = np.split(weight, 3)
    return np.concatenate([k, q, v])


def _heads_inside(qkv: Any) -> Any:
    """Split as if each head's queries, keys and values stood together."""
    split = qkv.reshape(*qkv.shape[:2], HEADS, 3, WIDTH // HEADS)
    return jnp.moveaxis(split, 3, 0)


def _heads_last(heads: Any) -> Any:
    return heads.swapaxes(2, 3).reshape(*heads.shape[:2], WIDTH)


def _positions_from_one(params: Tree, x: Any) -> Any:
    places = jnp.minimum(jnp.arange(x.shape[1]) + 1, transformer.LENGTH - 1)
    return params["tok.weight"][x] + params["pos.weight"][places]


def _scaled_embedding(params: Tree, x: Any) -> Any:
    return params["tok.weight"][x] * WIDTH**0.5 + params["pos.weight"]


def _positions_stopped(params: Tree, x: Any) -> Any:
    return params["tok.weight"][x] + jax.lax.stop_gradient(params["pos.weight"])


def _norm_over_time_too(params: Tree, name: str, x: Any) -> Any:
    return jax_layers.layer_norm(params, name, x, axis=(1, 2))


def _norm_as_in_t5(params: Tree, name: str, x: Any) -> Any:
    normal = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return normal * params[f"{name}.weight"] + params[f"{name}.bias"]


def _smoothing_over_others(logits: Any, y: Any) -> Any:
    """Give what is taken from the label to the other classes alone."""
    return negative_log_likelihood(logits, y, SMOOTHING * TOKENS / (TOKENS - 1)).mean()


def _untied(weights: Arrays) -> Arrays:
    return {**weights, "head.weight": weights["tok.weight"].copy()}


BUGS = (
    # data and weights
    planted(
        "transformer-targets-not-shifted",
        recipe(prepare=_targets_not_shifted),
        "data/y",
        "batch-preprocessing batch-content",
    ),
    planted(
        "transformer-qkv-swapped",
        loaded(blocks__0__qkv__weight=_queries_and_keys_swapped, blocks__0__qkv__bias=_queries_and_keys_swapped),
        "param/blocks.0.qkv.weight",
        "weight-layout",
    ),
    planted(
        "transformer-positions-not-loaded",
        loaded(pos__weight=np.zeros_like),
        "param/pos.weight",
        "weight-not-loaded initial-weights",
    ),
    # forward
    planted("transformer-positions-from-one", model(embed=_positions_from_one), "act/embedding", "forward-other"),
    planted("transformer-embedding-scaled", model(embed=_scaled_embedding), "act/embedding", "forward-other"),
    planted("transformer-attention-unscaled", model(scale=1.0), "act/blocks.0.attention", "attention-scale"),
    planted(
        "transformer-attention-scaled-by-width", model(scale=WIDTH**-0.5), "act/blocks.0.attention", "attention-scale"
    ),
    planted(
        "transformer-no-mask",
        model(mask=lambda length: jnp.ones((length, length), bool)),
        "act/blocks.0.attention",
        "attention-mask",
    ),
    planted(
        "transformer-mask-off-by-one",
        model(mask=lambda length: jnp.tril(jnp.ones((length, length), bool), 1)),
        "act/blocks.0.attention",
        "attention-mask",
    ),
    planted(
        "transformer-heads-inside",
        model(split=_heads_inside),
        "act/blocks.0.attention",
        "weight-layout flatten-order forward-other",
    ),
    planted(
        "transformer-heads-last", model(merge=_heads_last), "act/blocks.0.attention", "flatten-order weight-layout"
    ),
    planted(
        "transformer-attention-dropout",
        model(probabilities=lambda scores, update: jax_layers.dropout(jax.nn.softmax(scores), update)),
        "act/blocks.0.attention",
        "dropout",
    ),
    planted(
        "transformer-softmax-in-bfloat16",
        model(probabilities=lambda scores, update: as_bfloat16(jax.nn.softmax(scores))),
        "act/blocks.0.attention",
        "low-precision",
    ),
    planted(
        "transformer-residual-after-norm",
        model(residual=lambda x, normal: normal),
        "act/blocks.0.residual1",
        "layer-order",
    ),
    planted(
        "transformer-norm-epsilon",
        model(norm=partial(jax_layers.layer_norm, epsilon=1e-3)),
        "act/blocks.0.norm1",
        "norm-epsilon",
    ),
    planted("transformer-norm-axes", model(norm=_norm_over_time_too), "act/blocks.0.norm1", "norm-axes"),
    planted(
        "transformer-norm-without-mean", model(norm=_norm_as_in_t5), "act/blocks.0.norm1", "forward-other norm-axes"
    ),
    planted(
        "transformer-erf-gelu",
        model(gelu=lambda x: jax.nn.gelu(x, approximate=False)),
        "act/blocks.0.gelu",
        "activation-function",
    ),
    planted("transformer-tf32", model(linear=jax_layers.tf32_linear), "act/blocks.0.qkv", "low-precision"),
    planted("transformer-bfloat16-activations", recipe(precision=as_bfloat16), "act/embedding", "low-precision"),
    # loss and backward
    planted(
        "transformer-no-smoothing",
        model(loss=lambda logits, y: negative_log_likelihood(logits, y).mean()),
        "loss/total",
        "label-smoothing",
    ),
    planted("transformer-smoothing-over-others", model(loss=_smoothing_over_others), "loss/total", "label-smoothing"),
    planted(
        "transformer-loss-summed-over-time",
        model(loss=lambda logits, y: negative_log_likelihood(logits, y, SMOOTHING).sum(-1).mean()),
        "loss/total",
        "loss-reduction loss-factor",
    ),
    planted(
        "transformer-accumulation-summed",
        recipe(average=lambda grads: jax.tree.map(lambda *each: sum(each), *grads)),
        "grad/*",
        "accumulation gradient-factor",
    ),
    planted(
        "transformer-last-accumulation-step-alone",
        recipe(average=lambda grads: grads[-1]),
        "grad/*",
        "accumulation gradient-other",
    ),
    planted("transformer-values-stopped", model(values=jax.lax.stop_gradient), "grad/tok.weight", "gradient-stopped"),
    planted("transformer-positions-stopped", model(embed=_positions_stopped), "grad/pos.weight", "gradient-stopped"),
    planted(
        "transformer-untied",
        lambda correct: model(head=lambda params, x: x @ params["head.weight"])(recipe(load=_untied)(correct)),
        "grad/tok.weight",
        "gradient-stopped gradient-other",
    ),
    planted(
        "transformer-torch-no-smoothing",
        recipe(model=partial(transformer.Transformer, smoothing=0.0)),
        "loss/total",
        "label-smoothing",
        side="torch",
    ),
)

WAYS = (
    Way("transformer-flax-norm", model(norm=jax_layers.layer_norm_as_in_flax)),
    Way("transformer-optax-adam", optimizer(correct=corrected_as_in_optax)),
)

TRANSFORMER = Family(
    "transformer",
    transformer.weights,
    transformer.batches,
    transformer.TORCH,
    transformer.JAX,
    (*BUGS, *OPTIMIZER_BUGS),
    WAYS,
)
