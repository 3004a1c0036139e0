"""Predict the next token: fused causal attention, a tied embedding, AdamW, clipping, accumulation, warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks.porting_bugs import jax_layers, torch_step
from benchmarks.porting_bugs.family import linear_weights, norm_weights, uniform
from benchmarks.porting_bugs.jax_optimizers import Adam, Tree, global_norm
from benchmarks.porting_bugs.jax_step import JaxRecipe, Tap
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.torch_step import TorchRecipe

TOKENS, LENGTH, BATCH, ACCUMULATION = 20, 12, 16, 2
WIDTH, HEADS, BLOCKS = 24, 3, 2
RATE, WARMUP, TOTAL, DECAY, BETAS, SMOOTHING, THRESHOLD = 3e-3, 4, 16, 0.1, (0.9, 0.95), 0.1, 0.5


def batches(seed: int, updates: int) -> list[Arrays]:
    """Return sequences whose next token follows from the last two, but for one in ten."""
    generator = np.random.default_rng([seed, 1])
    tokens = generator.integers(TOKENS, size=(updates * BATCH, LENGTH + 1))
    free = generator.random(tokens.shape) < 0.1
    for place in range(2, LENGTH + 1):
        follows = (3 * tokens[:, place - 1] + tokens[:, place - 2]) % TOKENS
        tokens[:, place] = np.where(free[:, place], tokens[:, place], follows)
    return [{"x": each[:, :-1].copy(), "y": each[:, 1:].copy()} for each in np.split(tokens, updates)]


def weights(seed: int) -> Arrays:
    """Return embeddings, two blocks and the last norm; the head's matrix is the tokens' embedding."""
    generator = np.random.default_rng([seed, 2])
    layers = {
        "tok.weight": uniform(generator, 0.5, TOKENS, WIDTH),
        "pos.weight": uniform(generator, 0.3, LENGTH, WIDTH),
    }
    for block in range(BLOCKS):
        layers |= {
            **norm_weights(generator, f"blocks.{block}.norm1", WIDTH),
            **linear_weights(generator, f"blocks.{block}.qkv", 3 * WIDTH, WIDTH),
            **linear_weights(generator, f"blocks.{block}.proj", WIDTH, WIDTH),
            **norm_weights(generator, f"blocks.{block}.norm2", WIDTH),
            **linear_weights(generator, f"blocks.{block}.up", 2 * WIDTH, WIDTH),
            **linear_weights(generator, f"blocks.{block}.down", WIDTH, 2 * WIDTH),
        }
    return layers | norm_weights(generator, "norm", WIDTH)


class Block(torch.nn.Module):
    """Attend and transform, with norms before."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, tap: Callable[[str, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return x of shape (batch, length, width) with what the block adds."""
        rows, length, _ = x.shape
        qkv = tap("qkv", self.qkv(tap("norm1", self.norm1(x))))
        q, k, v = qkv.view(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        attention = tap("attention", heads.transpose(1, 2).reshape(rows, length, WIDTH))
        x = tap("residual1", x + tap("proj", self.proj(attention)))
        up = tap("up", self.up(tap("norm2", self.norm2(x))))
        down = tap("down", self.down(tap("gelu", functional.gelu(up, approximate="tanh"))))
        return tap("residual2", x + down)


class Transformer(torch.nn.Module):
    """Predict tokens."""

    def __init__(self, smoothing: float = SMOOTHING) -> None:
        super().__init__()
        self.tok, self.pos = torch.nn.Embedding(TOKENS, WIDTH), torch.nn.Embedding(LENGTH, WIDTH)
        self.blocks = torch.nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.smoothing = smoothing

    def forward(self, batch: torch_step.Batch, tap: torch_step.Tap) -> torch.Tensor:
        """Return the loss."""
        x = tap("embedding", self.tok(batch["x"]) + self.pos(torch.arange(LENGTH)))
        for index, block in enumerate(self.blocks):
            x = block(x, lambda name, value, index=index: tap(f"blocks.{index}.{name}", value))
        logits = tap("logits", tap("norm", self.norm(x)) @ self.tok.weight.T)
        return functional.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), label_smoothing=self.smoothing)


def is_decayed(name: str) -> bool:
    """Tell whether a parameter is a matrix."""
    return name.endswith("weight") and "norm" not in name


def split_heads(qkv: Any) -> Any:
    """Return queries, keys and values, each (batch, length, heads, width of one), from a projection with these in its order."""
    return jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, HEADS, WIDTH // HEADS), 2, 0)


def causal(length: int) -> Any:
    """Return where a place may look: at itself and before."""
    return jnp.tril(jnp.ones((length, length), bool))


def merge_heads(heads: Any) -> Any:
    """Return (batch, length, width) from (batch, length, heads, width of one)."""
    return heads.reshape(*heads.shape[:2], WIDTH)


@dataclass(frozen=True)
class Options:
    """Say what the port computes; the defaults are right."""

    embed: Callable[[Tree, Any], Any] = lambda params, x: params["tok.weight"][x] + params["pos.weight"][: x.shape[1]]
    norm: Callable[[Tree, str, Any], Any] = jax_layers.layer_norm
    linear: Callable[[Tree, str, Any], Any] = jax_layers.linear
    split: Callable[[Any], Any] = split_heads
    merge: Callable[[Any], Any] = merge_heads
    scale: float = (WIDTH // HEADS) ** -0.5
    mask: Callable[[int], Any] = causal
    probabilities: Callable[[Any, Any], Any] = lambda scores, update: jax.nn.softmax(scores)
    residual: Callable[[Any, Any], Any] = lambda x, normal: x  # what attention is added to
    values: Callable[[Any], Any] = lambda v: v
    gelu: Callable[[Any], Any] = lambda x: jax.nn.gelu(x, approximate=True)
    head: Callable[[Tree, Any], Any] = lambda params, x: x @ params["tok.weight"].T
    loss: Callable[[Any, Any], Any] = lambda logits, y: jax_layers.negative_log_likelihood(logits, y, SMOOTHING).mean()


def block(options: Options, params: Tree, name: str, x: jax.Array, update: Any, tap: Tap) -> jax.Array:
    """Return x of shape (batch, length, width) with what the block adds."""
    normal = tap(f"{name}.norm1", options.norm(params, f"{name}.norm1", x))
    q, k, v = options.split(tap(f"{name}.qkv", options.linear(params, f"{name}.qkv", normal)))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * options.scale
    scores = jnp.where(options.mask(x.shape[1]), scores, -jnp.inf)
    heads = jnp.einsum("bhqk,bkhd->bqhd", options.probabilities(scores, update), options.values(v))
    attention = tap(f"{name}.attention", options.merge(heads))
    proj = tap(f"{name}.proj", options.linear(params, f"{name}.proj", attention))
    x = tap(f"{name}.residual1", options.residual(x, normal) + proj)
    normal = tap(f"{name}.norm2", options.norm(params, f"{name}.norm2", x))
    up = tap(f"{name}.up", options.linear(params, f"{name}.up", normal))
    down = tap(f"{name}.down", options.linear(params, f"{name}.down", tap(f"{name}.gelu", options.gelu(up))))
    return tap(f"{name}.residual2", x + down)


def forward(
    options: Options, params: Tree, buffers: Tree, batch: Tree, update: Any, tap: Tap
) -> tuple[jax.Array, Tree]:
    """Return the loss, and no buffers."""
    x = tap("embedding", options.embed(params, batch["x"]))
    for index in range(BLOCKS):
        x = block(options, params, f"blocks.{index}", x, update, tap)
    x = tap("norm", options.norm(params, "norm", x))
    return options.loss(tap("logits", options.head(params, x)), batch["y"]), buffers


def clip_by_global_norm(grads: list[Tree], mean: Tree) -> Tree:
    """Return gradients whose norm together is at most the threshold; PyTorch adds 1e-6 to the norm."""
    return clipped(mean, global_norm(mean) + 1e-6)


def clipped(grads: Tree, norm: Any, threshold: float = THRESHOLD) -> Tree:
    """Return gradients, smaller by what their norm is over the threshold."""
    return {name: grad * jnp.minimum(threshold / norm, 1.0) for name, grad in grads.items()}


def clip_in_torch(parameters: Sequence[torch.nn.Parameter]) -> Any:
    """Clip in place."""
    return torch.nn.utils.clip_grad_norm_(parameters, THRESHOLD)


def adamw(
    module: torch.nn.Module, rate: float, decayed: Callable[[str], bool] = is_decayed, **changes: Any
) -> torch.optim.Optimizer:
    """Return AdamW with decay for matrices alone."""
    named = list(module.named_parameters())
    groups = [
        {"params": [parameter for name, parameter in named if decayed(name)], "weight_decay": DECAY},
        {"params": [parameter for name, parameter in named if not decayed(name)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **{"lr": rate, "betas": BETAS, **changes})


def rate(update: int) -> float:
    """Return the learning rate: up in a line to its peak at update `WARMUP`, down along a cosine to zero at `TOTAL`."""
    if update <= WARMUP:
        return RATE * update / WARMUP
    return RATE * 0.5 * (1 + math.cos(math.pi * (update - WARMUP) / (TOTAL - WARMUP)))


def rate_in_jax(update: Any) -> Any:
    """Return the same for a traced update."""
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * (update - WARMUP) / (TOTAL - WARMUP)))
    return RATE * jnp.where(update <= WARMUP, update / WARMUP, cosine)


TORCH = TorchRecipe(model=Transformer, optimizer=adamw, rate=rate, clip=clip_in_torch, accumulation=ACCUMULATION)
JAX = JaxRecipe(
    forward=forward,
    model=Options(),
    optimizer=Adam(decay=DECAY, decays=is_decayed, coupled=False, beta1=BETAS[0], beta2=BETAS[1]),
    rate=rate_in_jax,
    clip=clip_by_global_norm,
    accumulation=ACCUMULATION,
    embeddings=frozenset({"tok.weight", "pos.weight"}),
)
