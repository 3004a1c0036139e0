"""A small vision transformer of digits: Flax NNX, Lion, warm-up and cosine."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from benchmarks.porting_exam.pair import Arrays, Options, Pair
from noether_core.names import match
from noether_jax.flax import intermediate_outputs
from noether_jax.names import layers as jax_layers
from noether_jax.names import weights as jax_weights
from noether_torch.names import layers as torch_layers_of
from noether_torch.names import weights as torch_weights

DIM, HEADS, TOKENS = 16, 2, 16
OPTIONS = {
    "lr": 1e-3,
    "b1": 0.9,
    "b2": 0.99,
    "decay": 0.1,
    "decay_kind": "decoupled",
    "decayed": "matrices",
    "clip": 1.0,
    "clip_by": "norm",
    "class_at": "first",
    "patches": "rows",
    "softmax": -1,
    "gelu": "erf",
    "layer_scale": "inside",
    "pooled": "class",
    "warm": 4,
    "warm_from": 1,
    "cosine": 24,
    "momentum_first": False,
    "autocast": False,
    "scale": 1.0,
    "position": "all",
    "scaled_twice": False,
    "norm_epsilon": 1e-5,
    "last_norm": True,
    "reversed_labels": 0,
    "restart": 0,
    "smoothing": 0.0,
    "queries": "first",
    "position_stop": False,
}


def rate(options: Options, update: int) -> float:
    """Return the learning rate of an update, counted from 1."""
    t = update - 1
    if options["restart"] and t >= options["restart"]:
        t -= options["restart"]
    if t < options["warm"]:
        return options["lr"] * (t + options["warm_from"]) / options["warm"]
    return 0.5 * options["lr"] * (1 + math.cos(math.pi * min(1.0, (t - options["warm"]) / options["cosine"])))


class Block(nn.Module):
    """Attend, then mix each token's features."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        epsilon = options["norm_epsilon"]
        self.norm1, self.norm2 = nn.LayerNorm(DIM, epsilon), nn.LayerNorm(DIM, epsilon)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)
        self.gamma1, self.gamma2 = nn.Parameter(torch.full((DIM,), 0.5)), nn.Parameter(torch.full((DIM,), 0.5))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Return what attention computes, without the residual."""
        n, t, _ = x.shape
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options["autocast"]):
            q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
            q = q / math.sqrt(DIM // HEADS) if self.options["scaled_twice"] else q
            out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.float().transpose(1, 2).reshape(n, t, DIM))

    def forward(self, x: torch.Tensor) -> Any:
        """Return what the model computes."""
        if self.options["layer_scale"] == "inside":
            x = x + self.gamma1 * self.attention(self.norm1(x))
        else:
            x = self.gamma1 * (x + self.attention(self.norm1(x)))
        return x + self.gamma2 * self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Classify an image by its patches."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.patch = nn.Conv2d(1, DIM, 2, stride=2)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, DIM))
        self.position = nn.Parameter(0.02 * torch.randn(1, TOKENS + 1, DIM))
        self.blocks = nn.ModuleList(Block(options) for _ in range(2))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, 10)

    def forward(self, images: torch.Tensor) -> Any:
        """Return what the model computes."""
        x = self.patch(images)
        x = (x.transpose(2, 3) if self.options["patches"] == "columns" else x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.options["pooled"] == "mean" else x[:, 0])


def weights(seed: int) -> Arrays:
    """Return the first weights of a seed, as PyTorch initialises them."""
    torch.manual_seed(seed)
    return {k: v.numpy().copy() for k, v in ViT(OPTIONS).state_dict().items()}


IMAGES, LABELS = load_digits(return_X_y=True)


def batches(seed: int, options: Options) -> list[Arrays]:
    """Return the batches of a seed."""
    rows = np.random.default_rng([seed, 2]).permutation(len(IMAGES))[: 12 * 12].reshape(12, 12)
    found = [
        {"images": (IMAGES[r].reshape(-1, 1, 8, 8) / 16 - 0.3).astype(np.float32), "labels": LABELS[r].astype(np.int64)}
        for r in rows
    ]
    if (update := options["reversed_labels"]) > 0:
        found[update - 1]["labels"] = found[update - 1]["labels"][::-1].copy()
    return found


def torch_losses(model: Any, batch: Arrays, options: Options) -> Any:
    """Return the losses of a batch in PyTorch."""
    return functional.cross_entropy(model(batch["images"]), batch["labels"], label_smoothing=options["smoothing"])


class Lion(torch.optim.Optimizer):
    """Follow the sign of a mixed momentum."""

    def __init__(self, params: Any, options: Options) -> None:
        super().__init__(params, {"lr": options["lr"]})
        self.options = options

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters."""
        options = self.options
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad
                decay = options["decay"] if (p.ndim > 1 and p.shape[0] != 1) or options["decayed"] == "all" else 0.0
                if options["decay_kind"] == "coupled":
                    g = g + decay * p
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                if options["momentum_first"]:
                    m.mul_(options["b2"]).add_(g, alpha=1 - options["b2"])
                u = torch.sign(m * options["b1"] + g * (1 - options["b1"]))
                if not options["momentum_first"]:
                    m.mul_(options["b2"]).add_(g, alpha=1 - options["b2"])
                if options["decay_kind"] == "decoupled":
                    u = u + decay * p
                if options["decay_kind"] == "not by rate":
                    p.mul_(1 - decay)
                p.add_(u, alpha=-group["lr"])


class JBlock(nnx.Module):
    """Attend, then mix each token's features."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        self.norm1, self.norm2 = (
            nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs),
            nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs),
        )
        self.qkv, self.proj = nnx.Linear(DIM, 3 * DIM, rngs=rngs), nnx.Linear(DIM, DIM, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(DIM, 2 * DIM, rngs=rngs), nnx.Linear(2 * DIM, DIM, rngs=rngs)
        self.gamma1, self.gamma2 = nnx.Param(jnp.full((DIM,), 0.5)), nnx.Param(jnp.full((DIM,), 0.5))

    def attention(self, x: jax.Array) -> Any:
        """Return what attention computes, without the residual."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, DIM // HEADS).transpose(2, 0, 3, 1, 4)
        q, k = (q, k) if self.options["queries"] == "first" else (k, q)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(DIM // HEADS) * self.options["scale"]
        out = jax.nn.softmax(scores, axis=self.options["softmax"]) @ v
        return self.proj(out.swapaxes(1, 2).reshape(n, t, DIM))

    def __call__(self, x: jax.Array) -> Any:
        """Return what the model computes."""
        x = x + self.gamma1[...] * self.attention(self.norm1(x))
        h = self.fc1(self.norm2(x))
        h = h * jax.nn.sigmoid(1.702 * h) if self.options["gelu"] == "quick" else jax.nn.gelu(h, approximate=False)
        return x + self.gamma2[...] * self.fc2(h)


class JViT(nnx.Module):
    """Classify an image by its patches."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        self.patch = nnx.Conv(1, DIM, (2, 2), strides=(2, 2), padding="VALID", rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, DIM)))
        self.position = nnx.Param(jnp.zeros((1, TOKENS + 1, DIM)))
        self.blocks = nnx.List([JBlock(options, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(DIM, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> Any:
        """Return what the model computes."""
        x = self.patch(images)
        n = len(x)
        x = x.reshape(n, TOKENS, DIM)
        cls = jnp.broadcast_to(self.cls[...], (n, 1, DIM))
        first = self.options["class_at"] == "first"
        position = self.position[...]
        if self.options["position"] == "patches":
            position = position.at[:, 0].set(0.0)
        position = jax.lax.stop_gradient(position) if self.options["position_stop"] else position
        x = jnp.concatenate([cls, x] if first else [x, cls], 1) + position
        for block in self.blocks:
            x = block(x)
        normal = self.norm(x)
        x = normal if self.options["last_norm"] else x
        return self.head(x[:, 0 if first else -1])


def jax_model(options: Options) -> tuple[Any, Any, Any]:
    """Return parameters, the matching of their names, and the function that computes losses."""
    model = JViT(options, nnx.Rngs(0))
    theirs = ViT(OPTIONS)
    matching = match(
        torch_weights(theirs), jax_weights(model), torch_layers=torch_layers_of(theirs), flax_layers=jax_layers(model)
    ).check()
    graph, params = nnx.split(model)

    def losses(params: Any, batch: Arrays, options: Options) -> tuple[Any, Any]:
        forward = nnx.capture(nnx.merge(graph, params), nnx.Intermediate, method_outputs=nnx.Intermediate)
        logits, acts = forward(batch["images"].transpose(0, 2, 3, 1))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
        acts = {k: v.transpose(0, 3, 1, 2) if v.ndim == 4 else v for k, v in intermediate_outputs(acts).items()}
        return loss, acts

    return params, matching, losses


def jax_optimizer(options: Options) -> optax.GradientTransformation:
    """Return the optimizer of the JAX side."""

    def mask(params):
        return jax.tree.map(lambda p: options["decayed"] == "all" or (p.ndim > 1 and p.shape[0] != 1), params)

    steps = jnp.array([rate(options, u) for u in range(1, 60)], jnp.float32)
    return optax.lion(
        lambda count: steps[count], b1=options["b1"], b2=options["b2"], weight_decay=options["decay"], mask=mask
    )


PAIR = Pair(
    "vit",
    OPTIONS,
    weights,
    batches,
    ViT,
    torch_losses,
    lambda model, options: Lion(model.parameters(), options),
    jax_model,
    jax_optimizer,
    rate,
)
