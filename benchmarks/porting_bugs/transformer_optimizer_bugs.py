"""Plant bugs in how the transformer is trained: clipping, AdamW, schedules."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch

from benchmarks.porting_bugs import transformer
from benchmarks.porting_bugs.jax_optimizers import Tree, global_norm
from benchmarks.porting_bugs.transformer import BETAS, THRESHOLD, TOTAL, WARMUP, clipped
from benchmarks.porting_bugs.truth import OPT, STATE, optimizer, planted, recipe


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


OPTIMIZER_BUGS = (
    # clipping
    planted("transformer-clip-by-value", recipe(clip=_clip_by_value), "clip/*", "clip-by-value"),
    planted("transformer-clip-each", recipe(clip=_clip_each), "clip/*", "clip-by-array"),
    planted("transformer-clip-epsilon", recipe(clip=_clip_in_optax), "clip/*", "clip-epsilon"),
    planted("transformer-clip-threshold", recipe(clip=_clip_higher), "clip/*", "clip-threshold"),
    planted("transformer-clip-missing", recipe(clip=lambda grads, mean: mean), "clip/*", "clip-missing"),
    planted("transformer-clip-before-averaging", recipe(clip=_clip_before_averaging), "clip/*", "clip-order"),
    # optimizer
    planted(
        "transformer-epsilon-inside",
        optimizer(root=lambda nu, epsilon: jnp.sqrt(nu + epsilon)),
        "update/*",
        "epsilon-place",
    ),
    planted("transformer-epsilon-value", optimizer(epsilon=1e-6), "update/*", "epsilon-value"),
    planted("transformer-decay-coupled", optimizer(coupled=True), "update/*", "decay-coupled"),
    planted(
        "transformer-decay-everywhere",
        optimizer(decays=lambda name: True),
        "update/blocks.0.norm1.weight",
        "decay-mask",
    ),
    planted(
        "transformer-decay-not-for-embeddings",
        optimizer(decays=lambda name: transformer.is_decayed(name) and "blocks" in name),
        "update/tok.weight",
        "decay-mask",
    ),
    planted(
        "transformer-decay-not-by-rate",
        optimizer(shrink=lambda param, rate, decay: param * (1 - decay)),
        "update/*",
        "decay-value",
    ),
    planted(
        "transformer-decay-by-peak-rate",
        optimizer(shrink=lambda param, rate, decay: param * (1 - transformer.RATE * decay)),
        "update/*",
        "decay-value",
    ),
    planted("transformer-decay-value", optimizer(decay=0.01), "update/*", "decay-value"),
    planted("transformer-beta2", optimizer(beta2=0.999), "opt/nu/*", "beta"),
    planted(
        "transformer-no-bias-correction",
        optimizer(correct=lambda moment, beta, count: moment),
        "update/*",
        "bias-correction",
    ),
    planted(
        "transformer-schedule-late",
        recipe(rate=lambda update: transformer.rate_in_jax(update - 1)),
        "update/*",
        "schedule-offset schedule-shape",
    ),
    planted("transformer-schedule-linear", recipe(rate=_linear_schedule), "update/*", "schedule-shape", first=5),
    planted(
        "transformer-schedule-by-accumulation-step",
        recipe(rate=lambda update: transformer.rate_in_jax(2 * update)),
        "update/*",
        "schedule-offset schedule-shape",
    ),
    planted(
        "transformer-learning-rate",
        recipe(rate=lambda update: transformer.rate_in_jax(update) * (1 + 1e-5)),
        "update/*",
        "learning-rate",
    ),
    planted(
        "transformer-embedding-rate",
        optimizer(rates=lambda name: 0.1 if name == "tok.weight" else 1.0),
        "update/tok.weight",
        "learning-rate-groups",
    ),
    planted(
        "transformer-positions-frozen",
        optimizer(trained=lambda name: name != "pos.weight"),
        "update/pos.weight",
        "frozen-parameter",
    ),
    planted(
        "transformer-moments-lost",
        optimizer(remember=_moments_lost),
        "update/*",
        "state-reset",
        first=5,
        culprits=(*OPT, *STATE),
    ),
    planted(
        "transformer-torch-decay-everywhere",
        recipe(optimizer=partial(transformer.adamw, decayed=lambda name: True)),
        "update/blocks.0.norm1.weight",
        "decay-mask",
        side="torch",
    ),
    planted(
        "transformer-torch-beta1",
        recipe(optimizer=partial(transformer.adamw, betas=(0.8, BETAS[1]))),
        "opt/mu/*",
        "beta",
        side="torch",
    ),
    planted(
        "transformer-torch-clip-by-value",
        recipe(clip=lambda parameters: torch.nn.utils.clip_grad_value_(parameters, 0.05)),
        "clip/*",
        "clip-by-value",
        side="torch",
    ),
)
