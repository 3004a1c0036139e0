"""Plant bugs in the transformer: attention, residuals, ties, smoothing, accumulation, clipping, AdamW, schedules."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.porting_bugs import jax_layers, transformer
from benchmarks.porting_bugs.family import Family
from benchmarks.porting_bugs.jax_layers import as_bfloat16, negative_log_likelihood
from benchmarks.porting_bugs.jax_optimizers import Tree, global_norm
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.transformer import BETAS, HEADS, SMOOTHING, THRESHOLD, TOKENS, TOTAL, WARMUP, WIDTH, clipped
from benchmarks.porting_bugs.truth import Bug, loaded, model, optimizer, recipe


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


def _clip_each(grads: list[Tree], mean: Tree) -> Tree:
    return {name: clipped({name: grad}, global_norm({name: grad}) + 1e-6)[name] for name, grad in mean.items()}


def _clip_by_value(grads: list[Tree], mean: Tree) -> Tree:
    return {name: jnp.clip(grad, -0.05, 0.05) for name, grad in mean.items()}


def _clip_before_averaging(grads: list[Tree], mean: Tree) -> Tree:
    parts = [transformer.clip_by_global_norm([], each) for each in grads]
    return jax.tree.map(lambda *each: sum(each) / len(each), *parts)


def _clip_in_optax(grads: list[Tree], mean: Tree) -> Tree:
    return clipped(mean, global_norm(mean))


def _clip_higher(grads: list[Tree], mean: Tree) -> Tree:
    return clipped(mean, global_norm(mean) + 1e-6, THRESHOLD * 1.2)


def _linear_schedule(update: Any) -> Any:
    down = (TOTAL - update) / (TOTAL - WARMUP)
    return transformer.RATE * jnp.where(update <= WARMUP, update / WARMUP, down)


def _moments_lost(state: Tree, update: Any) -> Tree:
    return {key: jnp.where(update == 5, 0, value).astype(value.dtype) for key, value in state.items()}


ANY_UPDATE, ANY_CLIP = ("update/*",), ("clip/*",)
FORWARD, OPT = "forward", "optimizer"
FIRST, SECOND = "blocks.0", "blocks.1"

BUGS = (
    # data and weights
    Bug("transformer-targets-not-shifted", recipe(prepare=_targets_not_shifted), "data", ("data/y",), 1, ("batch-preprocessing", "batch-content"), "batch"),
    Bug("transformer-qkv-swapped", loaded(blocks__0__qkv__weight=_queries_and_keys_swapped, blocks__0__qkv__bias=_queries_and_keys_swapped), "param", ("param/blocks.0.qkv.weight",), 1, ("weight-layout",), "params"),
    Bug("transformer-positions-not-loaded", loaded(pos__weight=np.zeros_like), "param", ("param/pos.weight",), 1, ("weight-not-loaded", "initial-weights"), "params"),
    # forward
    Bug("transformer-positions-from-one", model(embed=_positions_from_one), "act", ("act/embedding",), 1, ("forward-other",), FORWARD),
    Bug("transformer-embedding-scaled", model(embed=_scaled_embedding), "act", ("act/embedding",), 1, ("forward-other",), FORWARD),
    Bug("transformer-attention-unscaled", model(scale=1.0), "act", ("act/blocks.0.attention",), 1, ("attention-scale",), FORWARD),
    Bug("transformer-attention-scaled-by-width", model(scale=WIDTH**-0.5), "act", ("act/blocks.0.attention",), 1, ("attention-scale",), FORWARD),
    Bug("transformer-no-mask", model(mask=lambda length: jnp.ones((length, length), bool)), "act", ("act/blocks.0.attention",), 1, ("attention-mask",), FORWARD),
    Bug("transformer-mask-off-by-one", model(mask=lambda length: jnp.tril(jnp.ones((length, length), bool), 1)), "act", ("act/blocks.0.attention",), 1, ("attention-mask",), FORWARD),
    Bug("transformer-heads-inside", model(split=_heads_inside), "act", ("act/blocks.0.attention",), 1, ("weight-layout", "flatten-order", "forward-other"), FORWARD),
    Bug("transformer-heads-last", model(merge=_heads_last), "act", ("act/blocks.0.attention",), 1, ("flatten-order", "weight-layout"), FORWARD),
    Bug("transformer-attention-dropout", model(probabilities=lambda scores, update: jax_layers.dropout(jax.nn.softmax(scores), update)), "act", ("act/blocks.0.attention",), 1, ("dropout",), FORWARD),
    Bug("transformer-softmax-in-bfloat16", model(probabilities=lambda scores, update: as_bfloat16(jax.nn.softmax(scores))), "act", ("act/blocks.0.attention",), 1, ("low-precision",), FORWARD),
    Bug("transformer-residual-after-norm", model(residual=lambda x, normal: normal), "act", ("act/blocks.0.residual1",), 1, ("layer-order",), FORWARD),
    Bug("transformer-norm-epsilon", model(norm=partial(jax_layers.layer_norm, epsilon=1e-3)), "act", ("act/blocks.0.norm1",), 1, ("norm-epsilon",), FORWARD),
    Bug("transformer-norm-axes", model(norm=_norm_over_time_too), "act", ("act/blocks.0.norm1",), 1, ("norm-axes",), FORWARD),
    Bug("transformer-norm-without-mean", model(norm=_norm_as_in_t5), "act", ("act/blocks.0.norm1",), 1, ("forward-other", "norm-axes"), FORWARD),
    Bug("transformer-erf-gelu", model(gelu=lambda x: jax.nn.gelu(x, approximate=False)), "act", ("act/blocks.0.gelu",), 1, ("activation-function",), FORWARD),
    Bug("transformer-bfloat16-activations", recipe(precision=as_bfloat16), "act", ("act/embedding",), 1, ("low-precision",), FORWARD),
    # loss and backward
    Bug("transformer-no-smoothing", model(loss=lambda logits, y: negative_log_likelihood(logits, y).mean()), "loss", ("loss/total",), 1, ("label-smoothing",), FORWARD),
    Bug("transformer-smoothing-over-others", model(loss=_smoothing_over_others), "loss", ("loss/total",), 1, ("label-smoothing",), FORWARD),
    Bug("transformer-loss-summed-over-time", model(loss=lambda logits, y: negative_log_likelihood(logits, y, SMOOTHING).sum(-1).mean()), "loss", ("loss/total",), 1, ("loss-reduction", "loss-factor"), FORWARD),
    Bug("transformer-accumulation-summed", recipe(average=lambda grads: jax.tree.map(lambda *each: sum(each), *grads)), "grad", ("grad/*",), 1, ("accumulation", "gradient-factor"), FORWARD),
    Bug("transformer-last-accumulation-step-alone", recipe(average=lambda grads: grads[-1]), "grad", ("grad/*",), 1, ("accumulation", "gradient-other"), FORWARD),
    Bug("transformer-values-stopped", model(values=jax.lax.stop_gradient), "grad", ("grad/tok.weight",), 1, ("gradient-stopped",), FORWARD),
    Bug("transformer-positions-stopped", model(embed=_positions_stopped), "grad", ("grad/pos.weight",), 1, ("gradient-stopped",), FORWARD),
    Bug("transformer-untied", lambda correct: model(head=lambda params, x: x @ params["head.weight"])(recipe(load=_untied)(correct)), "grad", ("grad/tok.weight",), 1, ("gradient-stopped", "gradient-other"), FORWARD),
    # clipping
    Bug("transformer-clip-by-value", recipe(clip=_clip_by_value), "clip", ANY_CLIP, 1, ("clip-by-value",), OPT),
    Bug("transformer-clip-each", recipe(clip=_clip_each), "clip", ANY_CLIP, 1, ("clip-by-array",), OPT),
    Bug("transformer-clip-epsilon", recipe(clip=_clip_in_optax), "clip", ANY_CLIP, 1, ("clip-epsilon",), OPT),
    Bug("transformer-clip-threshold", recipe(clip=_clip_higher), "clip", ANY_CLIP, 1, ("clip-threshold",), OPT),
    Bug("transformer-clip-missing", recipe(clip=lambda grads, mean: mean), "clip", ANY_CLIP, 1, ("clip-missing",), OPT),
    Bug("transformer-clip-before-averaging", recipe(clip=_clip_before_averaging), "clip", ANY_CLIP, 1, ("clip-order",), OPT),
    # optimizer
    Bug("transformer-epsilon-inside", optimizer(root=lambda nu, epsilon: jnp.sqrt(nu + epsilon)), "update", ANY_UPDATE, 1, ("epsilon-place",), OPT),
    Bug("transformer-epsilon-value", optimizer(epsilon=1e-6), "update", ANY_UPDATE, 1, ("epsilon-value",), OPT),
    Bug("transformer-decay-coupled", optimizer(coupled=True), "update", ANY_UPDATE, 1, ("decay-coupled",), OPT),
    Bug("transformer-decay-everywhere", optimizer(decays=lambda name: True), "update", ("update/blocks.0.norm1.weight",), 1, ("decay-mask",), OPT),
    Bug("transformer-decay-not-for-embeddings", optimizer(decays=lambda name: transformer.is_decayed(name) and "blocks" in name), "update", ("update/tok.weight",), 1, ("decay-mask",), OPT),
    Bug("transformer-decay-not-by-rate", optimizer(shrink=lambda param, rate, decay: param * (1 - decay)), "update", ANY_UPDATE, 1, ("decay-value",), OPT),
    Bug("transformer-decay-by-peak-rate", optimizer(shrink=lambda param, rate, decay: param * (1 - transformer.RATE * decay)), "update", ANY_UPDATE, 1, ("decay-value",), OPT),
    Bug("transformer-decay-value", optimizer(decay=0.01), "update", ANY_UPDATE, 1, ("decay-value",), OPT),
    Bug("transformer-beta2", optimizer(beta2=0.999), "opt", ("opt/nu/*",), 1, ("beta",), OPT),
    Bug("transformer-no-bias-correction", optimizer(correct=lambda moment, beta, count: moment), "update", ANY_UPDATE, 1, ("bias-correction",), OPT),
    Bug("transformer-schedule-late", recipe(rate=lambda update: transformer.rate_in_jax(update - 1)), "update", ANY_UPDATE, 1, ("schedule-offset", "schedule-shape"), OPT),
    Bug("transformer-schedule-linear", recipe(rate=_linear_schedule), "update", ANY_UPDATE, 5, ("schedule-shape",), OPT),
    Bug("transformer-schedule-by-accumulation-step", recipe(rate=lambda update: transformer.rate_in_jax(2 * update)), "update", ANY_UPDATE, 1, ("schedule-offset", "schedule-shape"), OPT),
    Bug("transformer-learning-rate", recipe(rate=lambda update: transformer.rate_in_jax(update) * (1 + 1e-5)), "update", ANY_UPDATE, 1, ("learning-rate",), OPT),
    Bug("transformer-embedding-rate", optimizer(rates=lambda name: 0.1 if name == "tok.weight" else 1.0), "update", ("update/tok.weight",), 1, ("learning-rate-groups",), OPT),
    Bug("transformer-positions-frozen", optimizer(trained=lambda name: name != "pos.weight"), "update", ("update/pos.weight",), 1, ("frozen-parameter",), OPT),
    Bug("transformer-moments-lost", optimizer(remember=_moments_lost), "update", ANY_UPDATE, 5, ("state-reset",), OPT),
    Bug("transformer-torch-no-smoothing", recipe(model=partial(transformer.Transformer, smoothing=0.0)), "loss", ("loss/total",), 1, ("label-smoothing",), FORWARD, "torch"),
    Bug("transformer-torch-decay-everywhere", recipe(optimizer=partial(transformer.adamw, decayed=lambda name: True)), "update", ("update/blocks.0.norm1.weight",), 1, ("decay-mask",), OPT, "torch"),
    Bug("transformer-torch-beta1", recipe(optimizer=partial(transformer.adamw, betas=(0.8, BETAS[1]))), "opt", ("opt/mu/*",), 1, ("beta",), OPT, "torch"),
    Bug("transformer-torch-clip-by-value", recipe(clip=lambda parameters: torch.nn.utils.clip_grad_value_(parameters, 0.05)), "clip", ANY_CLIP, 1, ("clip-by-value",), OPT, "torch"),
)

TRANSFORMER = Family("transformer", transformer.weights, transformer.batches, transformer.TORCH, transformer.JAX, BUGS)
