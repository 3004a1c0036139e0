"""A small U-Net that takes noise from waves: Flax Linen, GroupNorm, transposed convolutions, SGD with Nesterov momentum."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen
from torch import nn
from torch.nn import functional

from benchmarks.porting_exam.pair import Arrays, Options, Pair
from noether_core.names import match
from noether_jax.flax import intermediate_outputs
from noether_jax.names import layers as jax_layers
from noether_jax.names import weights as jax_weights
from noether_torch.names import layers as torch_layers_of
from noether_torch.names import weights as torch_weights

OPTIONS = {
    "keep_grads": False,
    "lr": 0.05,
    "momentum": 0.9,
    "decay": 1e-3,
    "nesterov": True,
    "warm": 3,
    "warm_from": 1,
    "cosine": 20,
    "floor": 0.0,
    "pad_counts": True,
    "align": False,
    "flip": True,
    "strided": "symmetric",
    "groups": 4,
    "slope": 0.1,
    "order": "up",
    "target": "clean",
    "deviation": 0,
    "rate_in": "update",
    "reduction": "mean",
    "method": "linear",
    "circular": False,
    "loss": "square",
    "swish": 1.0,
    "bound": 0.0,
    "pool": "mean",
    "out_bias": True,
}


def rate(options: Options, update: int) -> float:
    """Return the learning rate of an update, counted from 1."""
    t = update - 1
    if t < options["warm"]:
        return options["lr"] * (t + options["warm_from"]) / options["warm"]
    return options["lr"] * (
        options["floor"]
        + (1 - options["floor"]) * 0.5 * (1 + math.cos(math.pi * min(1.0, (t - options["warm"]) / options["cosine"])))
    )


class Denoiser(nn.Module):
    """Shrink a wave, and raise it again beside what was skipped."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.stem = nn.Conv1d(1, 8, 5, padding=2, padding_mode="circular" if options["circular"] else "zeros")
        self.stem_norm = nn.GroupNorm(options["groups"], 8)
        self.shrink = nn.AvgPool1d(3, 2, 1, count_include_pad=options["pad_counts"])
        if options["pool"] == "maximum":
            self.shrink = nn.MaxPool1d(3, 2, 1)
        self.down = nn.Conv1d(8, 16, 3, stride=2, padding=1)
        self.down_norm = nn.GroupNorm(4, 16)
        self.raise_ = nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="linear", align_corners=options["align"])
        self.out = nn.Conv1d(16, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        """Return what the model computes."""
        x = functional.silu(self.stem_norm(self.stem(x)))
        skip = self.shrink(x)
        x = functional.leaky_relu(self.down_norm(self.down(skip)), self.options["slope"])
        x = self.raise_(x)
        return self.out(self.up(torch.cat([x, skip] if self.options["order"] == "up" else [skip, x], 1)))


def weights(seed: int) -> Arrays:
    """Return the first weights of a seed, as PyTorch initialises them."""
    torch.manual_seed(seed)
    return {k: v.numpy().copy() for k, v in Denoiser(OPTIONS).state_dict().items()}


def batches(seed: int, options: Options) -> list[Arrays]:
    """Return the batches of a seed."""
    rng = np.random.default_rng([seed, 4])
    t = np.arange(32)
    found = []
    for _ in range(12):
        clean = np.sin(t * rng.uniform(0.1, 0.9, (8, 1)) + rng.uniform(0, 6, (8, 1)))[:, None]
        noisy = clean + 0.3 * rng.standard_normal(clean.shape)
        noisy = (noisy - noisy.mean()) / noisy.std(ddof=options["deviation"])
        noisy = noisy.clip(-options["bound"], options["bound"]) if options["bound"] else noisy
        found.append({"noisy": noisy.astype(np.float32), "clean": clean.astype(np.float32)})
    return found


def torch_losses(model: Any, batch: Arrays, options: Options) -> Any:
    """Return the losses of a batch in PyTorch."""
    out = model(batch["noisy"])
    target = batch["clean"] if options["target"] == "clean" else batch["noisy"]
    if options["loss"] == "absolute":
        return functional.l1_loss(out, target)
    if options["reduction"] == "root":
        return functional.mse_loss(out, target).sqrt()
    return functional.mse_loss(out, target)


class LinenDenoiser(linen.Module):
    """Shrink a wave, and raise it again beside what was skipped."""

    options: tuple

    @linen.compact
    def __call__(self, x: jax.Array) -> Any:
        """Return what the model computes."""
        options = dict(self.options)
        x = linen.Conv(8, (5,), padding=2, name="stem")(x)
        norm = {"num_groups": 4} if options["groups"] == 4 else {"num_groups": None, "group_size": options["groups"]}
        if options["groups"] == "size":
            norm = {"num_groups": None, "group_size": 4}
        x = linen.GroupNorm(epsilon=1e-5, name="stem_norm", **norm)(x)
        x = x * jax.nn.sigmoid(options["swish"] * x)
        skip = linen.avg_pool(x, (3,), (2,), ((1, 1),), count_include_pad=options["pad_counts"])
        self.sow("intermediates", "shrink", skip)
        x = linen.Conv(16, (3,), 2, padding=1 if options["strided"] == "symmetric" else "SAME", name="down")(skip)
        x = linen.GroupNorm(4, epsilon=1e-5, name="down_norm")(x)
        x = jax.nn.leaky_relu(x, options["slope"])
        x = linen.ConvTranspose(8, (4,), (2,), padding=((2, 2),), transpose_kernel=options["flip"], name="raise_")(x)
        x = jnp.concatenate([x, skip] if options["order"] == "up" else [skip, x], -1)
        n, length, channels = x.shape
        x = jax.image.resize(x, (n, 2 * length, channels), options["method"])
        self.sow("intermediates", "up", x)
        return linen.Conv(1, (3,), padding=1, use_bias=options["out_bias"], name="out")(x)


def jax_model(options: Options) -> tuple[Any, Any, Any]:
    """Return parameters, the matching of their names, and the function that computes losses."""
    model = LinenDenoiser(tuple(options.items()))
    right = LinenDenoiser(tuple(OPTIONS.items()))
    inputs = jax.ShapeDtypeStruct((8, 32, 1), "float32")
    variables = right.init(jax.random.key(0), jnp.zeros((8, 32, 1)))
    theirs = Denoiser(OPTIONS)
    matching = match(
        torch_weights(theirs),
        jax_weights(variables),
        torch_layers=torch_layers_of(theirs),
        flax_layers=jax_layers(right, inputs),
    ).check()

    def losses(params: Any, batch: Arrays, options: Options) -> tuple[Any, Any]:
        if not options["flip"]:
            params = {**params, "raise_": {**params["raise_"], "kernel": params["raise_"]["kernel"].swapaxes(1, 2)}}
        out, kept = model.apply(
            {"params": params}, batch["noisy"].swapaxes(1, 2), capture_intermediates=True, mutable=["intermediates"]
        )
        out = out.swapaxes(1, 2)
        e = out - batch["clean"]
        loss = (e**2).mean() if options["reduction"] == "mean" else (e**2).sum((1, 2)).mean()
        acts = {k: v.swapaxes(1, 2) for k, v in intermediate_outputs(kept["intermediates"]).items()}
        return loss, acts

    # the probe names ConvTranspose's kernel by the documented matching
    return variables["params"], matching, losses


def jax_optimizer(options: Options) -> optax.GradientTransformation:
    """Return the optimizer of the JAX side."""
    steps = jnp.array([rate(options, u) for u in range(1, 60)], jnp.float32)
    if options["rate_in"] == "momentum":
        return optax.chain(
            optax.add_decayed_weights(options["decay"]),
            optax.scale_by_learning_rate(lambda c: steps[c]),
            optax.trace(options["momentum"], options["nesterov"]),
        )
    return optax.chain(
        optax.add_decayed_weights(options["decay"]),
        optax.trace(options["momentum"], options["nesterov"]),
        optax.scale_by_learning_rate(lambda c: steps[c]),
    )


def torch_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return the optimizer of the PyTorch side."""
    return torch.optim.SGD(
        model.parameters(),
        options["lr"],
        options["momentum"],
        weight_decay=options["decay"],
        nesterov=options["nesterov"],
    )


PAIR = Pair(
    "denoiser",
    OPTIONS,
    weights,
    batches,
    Denoiser,
    torch_losses,
    torch_optimizer,
    jax_model,
    jax_optimizer,
    rate,
    matched=True,
)
