"""A small recommender of embedding bags and dot products: Flax NNX, Adam with amsgrad, weighted binary cross entropy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
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
    "lr": 0.01,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "gamma": 0.97,
    "stairs": 1,
    "decay": 1e-3,
    "decayed": "dense",
    "bag": "mean",
    "triangle": "upper",
    "amsgrad": "raw",
    "weight": "positive",
    "max_norm": None,
    "by_count": False,
    "lazy": False,
    "logs": "log1p",
    "shift": 0,
    "last_relu": True,
    "columns": 0,
}
POSITIVE = 3.0


def rate(options: Options, update: int) -> float:
    """Return the learning rate of an update, counted from 1."""
    return options["lr"] * options["gamma"] ** ((update - 1) // options["stairs"] * options["stairs"])


class Recommender(nn.Module):
    """Guess a click from dot products of embeddings."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.user = nn.Embedding(25, 4, max_norm=options["max_norm"], scale_grad_by_freq=options["by_count"])
        self.item = nn.Embedding(15, 4)
        self.history = nn.EmbeddingBag(20, 4, mode=options["bag"])
        last = nn.ReLU() if options["last_relu"] else nn.Identity()
        self.bottom = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), last)
        self.top = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, users: torch.Tensor, items: torch.Tensor, bags: torch.Tensor, dense: torch.Tensor) -> Any:
        """Return what the model computes."""
        d = self.bottom(dense)
        v = torch.stack([d, self.user(users), self.item(items), self.history(bags)], 1)
        dots = v @ v.transpose(1, 2)
        i, j = torch.triu_indices(4, 4, 1) if self.options["triangle"] == "upper" else torch.tril_indices(4, 4, -1)
        return self.top(torch.cat([d, dots[:, i, j]], 1))[:, 0]


def weights(seed: int) -> Arrays:
    """Return the first weights of a seed, as PyTorch initialises them."""
    torch.manual_seed(seed)
    return {k: v.numpy().copy() for k, v in Recommender(OPTIONS).state_dict().items()}


def batches(seed: int, options: Options) -> list[Arrays]:
    """Return the batches of a seed."""
    rng = np.random.default_rng([seed, 5])
    found = []
    for _ in range(12):
        raw = rng.lognormal(0, 1, (24, 6))
        users, items = rng.integers(0, 25, 24), rng.integers(0, 15, 24)
        clicks = ((users + items) % 4 == 0) | (rng.random(24) < 0.1)
        dense = np.log1p(raw) if options["logs"] == "log1p" else np.log(raw + 1e-3)
        dense = np.roll(dense, options["columns"], axis=1)
        found.append(
            {
                "users": users.astype(np.int64),
                "items": items.astype(np.int64),
                "bags": rng.integers(0, 20, (24, 5)).astype(np.int64),
                "dense": dense.astype(np.float32),
                "clicks": clicks.astype(np.float32),
            }
        )
    return found


def torch_losses(model: Any, batch: Arrays, options: Options) -> Any:
    """Return the losses of a batch in PyTorch."""
    logits = model(batch["users"], batch["items"], batch["bags"], batch["dense"])
    if options["weight"] == "positive":
        return functional.binary_cross_entropy_with_logits(logits, batch["clicks"], pos_weight=torch.tensor(POSITIVE))
    w = 1 + (POSITIVE - 1) * batch["clicks"]
    return (w * functional.binary_cross_entropy_with_logits(logits, batch["clicks"], reduction="none")).sum() / w.sum()


class JRecommender(nnx.Module):
    """Guess a click from dot products of embeddings."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        self.user_table = nnx.Embed(25, 4, rngs=rngs)
        self.item_table = nnx.Embed(15, 4, rngs=rngs)
        self.bag_table = nnx.Embed(20, 4, rngs=rngs)
        self.dense_0, self.dense_1 = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        self.top_0, self.top_1 = nnx.Linear(10, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, users: jax.Array, items: jax.Array, bags: jax.Array, dense: jax.Array) -> Any:
        """Return what the model computes."""
        options = self.options
        d = jax.nn.relu(self.dense_1(jax.nn.relu(self.dense_0(dense))))
        bag = self.bag_table(bags)
        bag = bag.mean(1) if options["bag"] == "mean" else bag.sum(1)
        users = (users + options["shift"]) % 25
        v = jnp.stack([d, self.user_table(users), self.item_table(items), bag], 1)
        dots = v @ v.swapaxes(1, 2)
        i, j = jnp.triu_indices(4, 1)
        return self.top_1(jax.nn.relu(self.top_0(jnp.concatenate([d, dots[:, i, j]], 1))))[:, 0]


def jax_model(options: Options) -> tuple[Any, Any, Any]:
    """Return parameters, the matching of their names, and the function that computes losses."""
    model = JRecommender(options, nnx.Rngs(0))
    theirs = Recommender(OPTIONS)
    matching = match(
        torch_weights(theirs),
        jax_weights(model),
        torch_layers=torch_layers_of(theirs),
        flax_layers=jax_layers(model),
        mapping={
            "bottom.0": "dense_0",
            "bottom.2": "dense_1",
            "top.0": "top_0",
            "top.2": "top_1",
            "user": "user_table",
            "item": "item_table",
            "history": "bag_table",
        },
    ).check()
    graph, params = nnx.split(model)

    def losses(params: Any, batch: Arrays, options: Options) -> tuple[Any, Any]:
        forward = nnx.capture(nnx.merge(graph, params), nnx.Intermediate, method_outputs=nnx.Intermediate)
        logits, acts = forward(batch["users"], batch["items"], batch["bags"], batch["dense"])
        y = batch["clicks"]
        p = 1.0 if options["weight"] == "negative" else POSITIVE
        q = POSITIVE if options["weight"] == "negative" else 1.0
        loss = (p * y * jax.nn.softplus(-logits) + q * (1 - y) * jax.nn.softplus(logits)).mean()
        acts = intermediate_outputs(acts)
        return loss, {DOTTED.get(k, k): v for k, v in acts.items() if k in DOTTED}

    return params, matching, losses


DOTTED = {
    "user_table": "user",
    "item_table": "item",
    "dense_0": "bottom.0",
    "dense_1": "bottom.2",
    "top_0": "top.0",
    "top_1": "top.2",
}


class AmsgradState(NamedTuple):
    """Hold moments, and the maximum of the second."""

    count: Any
    mu: Any
    nu: Any
    nu_max: Any


def jax_optimizer(options: Options) -> optax.GradientTransformation:
    """Return the optimizer of the JAX side."""
    steps = jnp.array([rate(options, u) for u in range(1, 60)], jnp.float32)

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "table" not in str(path) or options["decayed"] == "all", params
        )

    coupled = optax.add_decayed_weights(options["decay"], mask)
    if options["amsgrad"] == "optax":
        return optax.chain(
            coupled,
            optax.scale_by_amsgrad(options["b1"], options["b2"], options["eps"]),
            optax.scale_by_learning_rate(lambda c: steps[c]),
        )

    def init(params: Any) -> Any:
        def zeros():
            return jax.tree.map(jnp.zeros_like, params)

        return AmsgradState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros())

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        t = state.count + 1
        mu = jax.tree.map(lambda m, g: options["b1"] * m + (1 - options["b1"]) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: options["b2"] * v + (1 - options["b2"]) * g * g, state.nu, grads)
        top = jax.tree.map(jnp.maximum, state.nu_max, nu)
        c1, c2 = 1 - options["b1"] ** t, 1 - options["b2"] ** t
        u = jax.tree.map(lambda m, v: (m / c1) / (jnp.sqrt(v) / jnp.sqrt(c2) + options["eps"]), mu, top)
        if options["lazy"]:
            u = jax.tree.map(lambda u, g: jnp.where(g == 0, 0.0, u), u, grads)
        return u, AmsgradState(t, mu, nu, top)

    return optax.chain(
        coupled, optax.GradientTransformation(init, update), optax.scale_by_learning_rate(lambda c: steps[c])
    )


def torch_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return the optimizer of the PyTorch side."""
    tables = [p for n, p in model.named_parameters() if n.split(".")[0] in ("user", "item", "history")]
    rest = [p for n, p in model.named_parameters() if n.split(".")[0] not in ("user", "item", "history")]
    groups = [
        {"params": tables, "weight_decay": options["decay"] if options["decayed"] == "all" else 0.0},
        {"params": rest, "weight_decay": options["decay"]},
    ]
    return torch.optim.Adam(groups, options["lr"], (options["b1"], options["b2"]), options["eps"], amsgrad=True)


PAIR = Pair(
    "dlrm",
    OPTIONS,
    weights,
    batches,
    Recommender,
    torch_losses,
    torch_optimizer,
    jax_model,
    jax_optimizer,
    rate,
    matched=True,
)
