"""A variational autoencoder of digits with a tied decoder: Flax NNX, Adamax, averaged weights, two micro-batches."""

from __future__ import annotations

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

OPTIONS = {
    "lr": 2e-3,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "average": 0.99,
    "average_early": False,
    "accumulation": 2,
    "beta": 0.5,
    "kl": "sum",
    "half": 0.5,
    "log": "variance",
    "tied_stop": False,
    "reconstruction": "logits",
    "pixels": 16.0,
    "optimizer": "adamax",
    "latent_stop": False,
    "round": False,
    "output_bias": True,
    "clamped": 0.0,
    "summed": False,
    "average_warm": False,
    "reset_at": 0,
}


class VAE(nn.Module):
    """Rebuild an image from a random code; the decoder shares the encoder's weight."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.encode = nn.Linear(64, 32)
        self.mean, self.spread = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decode = nn.Linear(4, 32)
        self.shift = nn.Parameter(torch.zeros(64))

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> Any:
        """Return what the model computes."""
        h = torch.tanh(self.encode(x))
        mean, spread = self.mean(h), self.spread(h)
        if self.options["clamped"]:
            spread = spread.clamp(-self.options["clamped"], self.options["clamped"])
        z = mean + torch.exp(spread if self.options["log"] == "deviation" else 0.5 * spread) * noise
        return torch.tanh(self.decode(z)) @ self.encode.weight + self.shift, mean, spread


def weights(seed: int) -> Arrays:
    """Return the first weights of a seed, as PyTorch initialises them."""
    torch.manual_seed(seed)
    return {k: v.numpy().copy() for k, v in VAE(OPTIONS).state_dict().items()}


IMAGES = load_digits(return_X_y=True)[0]


def batches(seed: int, options: Options) -> list[Arrays]:
    """Return the batches of a seed."""
    rng = np.random.default_rng([seed, 3])
    rows = rng.permutation(len(IMAGES))[: 12 * 16].reshape(12, 16)
    found = []
    for r in rows:
        images = (IMAGES[r] / options["pixels"]).astype(np.float32)
        if options["round"]:
            images = np.round(images).astype(np.float32)
        found.append({"images": images, "noise": rng.standard_normal((16, 4), np.float32)})
    return found


def torch_losses(model: Any, batch: Arrays, options: Options) -> Any:
    """Return the losses of a batch in PyTorch."""
    logits, mean, spread = model(batch["images"], batch["noise"])
    if options["reconstruction"] == "twice":
        logits = torch.sigmoid(logits)
    rec = functional.binary_cross_entropy_with_logits(logits, batch["images"], reduction="none").sum(1).mean()
    each = -options["half"] * (1 + spread - mean**2 - spread.exp())
    kl = (each.sum(1) if options["kl"] == "sum" else each.mean(1)).mean()
    return {"total": rec + options["beta"] * kl, "reconstruction": rec, "kl": kl}


class JVAE(nnx.Module):
    """Rebuild an image from a random code; the decoder shares the encoder's weight."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        self.encode = nnx.Linear(64, 32, rngs=rngs)
        self.mean, self.spread = nnx.Linear(32, 4, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)
        self.decode = nnx.Linear(4, 32, rngs=rngs)
        self.shift = nnx.Param(jnp.zeros(64))

    def __call__(self, x: jax.Array, noise: jax.Array) -> Any:
        """Return what the model computes."""
        options = self.options
        h = jnp.tanh(self.encode(x))
        mean, spread = self.mean(h), self.spread(h)
        z = mean + jnp.exp(spread if options["log"] == "deviation" else 0.5 * spread) * noise
        if options["latent_stop"]:
            z = jax.lax.stop_gradient(z)
        kernel = self.encode.kernel[...]
        kernel = jax.lax.stop_gradient(kernel) if options["tied_stop"] else kernel
        return jnp.tanh(self.decode(z)) @ kernel.T + (self.shift[...] if options["output_bias"] else 0.0), mean, spread


def jax_model(options: Options) -> tuple[Any, Any, Any]:
    """Return parameters, the matching of their names, and the function that computes losses."""
    model = JVAE(options, nnx.Rngs(0))
    theirs = VAE(OPTIONS)
    matching = match(
        torch_weights(theirs), jax_weights(model), torch_layers=torch_layers_of(theirs), flax_layers=jax_layers(model)
    ).check()
    graph, params = nnx.split(model)

    def losses(params: Any, batch: Arrays, options: Options) -> tuple[Any, Any]:
        forward = nnx.capture(nnx.merge(graph, params), nnx.Intermediate, method_outputs=nnx.Intermediate)
        (logits, mean, spread), acts = forward(batch["images"], batch["noise"])
        rec = optax.sigmoid_binary_cross_entropy(logits, batch["images"]).sum(1).mean()
        each = -options["half"] * (1 + spread - mean**2 - jnp.exp(spread))
        kl = (each.sum(1) if options["kl"] == "sum" else each.mean(1)).mean()
        return {"total": rec + options["beta"] * kl, "reconstruction": rec, "kl": kl}, intermediate_outputs(acts)

    return params, matching, losses


def jax_optimizer(options: Options) -> optax.GradientTransformation:
    """Return the optimizer of the JAX side."""
    if options["optimizer"] == "adam":
        return optax.adam(options["lr"], b1=options["b1"], b2=options["b2"], eps=options["eps"])
    return optax.adamax(options["lr"], b1=options["b1"], b2=options["b2"], eps=options["eps"])


def torch_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return the optimizer of the PyTorch side."""
    if options["optimizer"] == "adam":
        return torch.optim.Adam(model.parameters(), options["lr"], (options["b1"], options["b2"]), eps=options["eps"])
    return torch.optim.Adamax(model.parameters(), options["lr"], (options["b1"], options["b2"]), eps=options["eps"])


PAIR = Pair(
    "vae",
    OPTIONS,
    weights,
    batches,
    VAE,
    torch_losses,
    torch_optimizer,
    jax_model,
    jax_optimizer,
    state={"nu": "exp_inf"},
)
