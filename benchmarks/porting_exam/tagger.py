"""A GRU tagger of left-padded sequences: bare JAX arrays, Adagrad, weighted cross entropy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn
from torch.nn import functional

from benchmarks.porting_exam.pair import Arrays, Options, Pair

HID, TAGS, LEN, WORDS = 12, 5, 7, 30
WEIGHT = np.array([0.5, 1.0, 2.0, 1.5, 0.7], np.float32)
OPTIONS = {
    "lr": 0.05,
    "lr_decay": 0.05,
    "start": 0.0,
    "count_from": 0,
    "clip": 0.5,
    "clip_by": "norm",
    "loss": "weighted",
    "gates": "after",
    "update_gate": "old",
    "padding": True,
    "batch_first": True,
    "eps": 1e-10,
    "eps_inside": False,
    "labels": "same",
    "bias_twice": False,
    "reverse": False,
    "embedding_scale": 1.0,
    "first_state": 0.0,
    "padded": "left",
}


class Tagger(nn.Module):
    """Tag each token."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.embed = nn.Embedding(WORDS, 8, padding_idx=0 if options["padding"] else None)
        self.gru = nn.GRU(8, HID, batch_first=options["batch_first"])
        self.tags = nn.Linear(HID, TAGS)

    def forward(self, tokens: torch.Tensor) -> Any:
        """Return what the model computes."""
        x = self.embed(tokens)
        if self.options["reverse"]:
            x = x.flip(1)
        first = torch.full((1, len(x), HID), self.options["first_state"]) if self.options["first_state"] else None
        out, _ = self.gru(x, first)
        return self.tags(torch.tanh(out) if self.options["bias_twice"] else functional.softsign(out))


def weights(seed: int) -> Arrays:
    """Return the first weights of a seed, as PyTorch initialises them."""
    torch.manual_seed(seed)
    model = Tagger(OPTIONS)
    return {k: v.numpy().copy() for k, v in model.state_dict().items()}


def batches(seed: int, options: Options) -> list[Arrays]:
    """Return the batches of a seed."""
    rng = np.random.default_rng([seed, 1])
    found = []
    for _ in range(12):
        tokens = rng.integers(1, WORDS, (10, LEN))
        tags = (tokens * 7 + np.roll(tokens, 1, 1)) % TAGS
        for row, n in enumerate(rng.integers(0, 4, 10)):
            tokens[row, :n] = 0
            tags[row, :n] = -100
            if options["padded"] == "right":
                tokens[row], tags[row] = np.roll(tokens[row], -n), np.roll(tags[row], -n)
        found.append({"tokens": tokens.astype(np.int64), "tags": tags.astype(np.int64)})
    return found


def torch_losses(model: Any, batch: Arrays, options: Options) -> Any:
    """Return the losses of a batch in PyTorch."""
    logits = model(batch["tokens"]).reshape(-1, TAGS)
    tags = batch["tags"].reshape(-1)
    w = torch.tensor(WEIGHT)
    if options["loss"] == "all":
        return functional.cross_entropy(logits, tags, w, ignore_index=-100, reduction="sum") / len(tags)
    if options["loss"] == "ignore_zero":
        return functional.cross_entropy(logits, tags.where(tags >= 0, 0), w, ignore_index=0)
    return functional.cross_entropy(logits, tags, w, ignore_index=-100)


def jax_losses(params: Any, batch: Arrays, options: Options) -> tuple[Any, Any]:
    """Return the losses of a batch, and what was computed on the way."""
    tokens, tags = batch["tokens"], batch["tags"]
    x = params["embed"]["weight"][tokens]
    if options["padding"]:
        x = jnp.where((tokens == 0)[..., None], jax.lax.stop_gradient(x), x)
    g = params["gru"]
    n = x.shape[0]
    read = x * options["embedding_scale"]

    def cell(h, xt):
        i = xt @ g["weight_ih_l0"].T + g["bias_ih_l0"]
        hh = h @ g["weight_hh_l0"].T + g["bias_hh_l0"]
        ir, iz, inn = jnp.split(i, 3, -1)
        hr, hz, hn = jnp.split(hh, 3, -1)
        r, z = jax.nn.sigmoid(ir + hr), jax.nn.sigmoid(iz + hz)
        if options["gates"] == "before":
            w, b = g["weight_hh_l0"][2 * HID :], g["bias_hh_l0"][2 * HID :]
            new = jnp.tanh(inn + (r * h) @ w.T + b)
        else:
            new = jnp.tanh(inn + r * hn)
        h = (1 - z) * new + z * h if options["update_gate"] == "old" else z * new + (1 - z) * h
        return h, h

    last, out = jax.lax.scan(cell, jnp.zeros((n, HID)), read.transpose(1, 0, 2))
    out = out.transpose(1, 0, 2)
    logits = jax.nn.soft_sign(out) @ params["tags"]["weight"].T + params["tags"]["bias"]
    acts = {"embed": x, "gru": {"0": out, "1": last[None]}, "tags": logits}
    if options["labels"] == "rolled":
        tags = jnp.roll(tags, -1, 1)
    mask = tags >= 0
    logp = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(logp, jnp.where(mask, tags, 0)[..., None], -1)[..., 0]
    w = jnp.asarray(WEIGHT)[jnp.where(mask, tags, 0)] * mask
    if options["loss"] == "count":
        return (nll * w).sum() / mask.sum(), acts
    if options["loss"] == "unweighted":
        return (nll * mask).sum() / mask.sum(), acts
    return (nll * w).sum() / w.sum(), acts


class AdagradState(NamedTuple):
    """Hold the sums of squares, and how often the weights were updated."""

    sum_of_squares: Any
    count: Any


def adagrad(options: Options) -> optax.GradientTransformation:
    """Return PyTorch's Adagrad for optax."""

    def init(params: Any) -> Any:
        return AdagradState(
            jax.tree.map(lambda p: jnp.full_like(p, options["start"]), params), jnp.zeros((), jnp.int32)
        )

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        s = jax.tree.map(lambda a, g: a + g * g, state.sum_of_squares, grads)
        lr = options["lr"] / (1 + (state.count + options["count_from"]) * options["lr_decay"])
        if options["eps_inside"]:
            u = jax.tree.map(lambda g, a: -lr * g / jnp.sqrt(a + options["eps"]), grads, s)
        else:
            u = jax.tree.map(lambda g, a: -lr * g / (jnp.sqrt(a) + options["eps"]), grads, s)
        return u, AdagradState(s, state.count + 1)

    return optax.GradientTransformation(init, update)


def jax_model(options: Options) -> tuple[Any, Any, Any]:
    """Return parameters, the matching of their names, and the function that computes losses."""
    tree = {}
    for name, value in weights(0).items():
        module, _, last = name.rpartition(".")
        tree.setdefault(module, {})[last] = jnp.asarray(value)
    return tree, None, jax_losses


def torch_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return the optimizer of the PyTorch side."""
    return torch.optim.Adagrad(
        model.parameters(),
        lr=options["lr"],
        lr_decay=options["lr_decay"],
        initial_accumulator_value=options["start"],
        eps=options["eps"],
    )


PAIR = Pair("tagger", OPTIONS, weights, batches, Tagger, torch_losses, torch_optimizer, jax_model, adagrad)
