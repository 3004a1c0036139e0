"""A depthwise-separable network of digits: Flax NNX, InstanceNorm, max pooling, label smoothing with class weights, NAdam."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    "b2": 0.99,
    "eps": 1e-8,
    "momentum_decay": 4e-3,
    "nadam": "torch",
    "pool": "infinity",
    "norm": "instance",
    "bend": "hardswish",
    "dilation": 1,
    "smoothing": "weighted",
    "classes": "right",
    "standardize": "right",
    "frozen": False,
    "half": False,
    "keep": "right",
    "head_double": False,
    "decay": 0.0,
    "flattened": "channels first",
    "smooth": 0.1,
    "depth_stop": False,
    "head_rate": 1.0,
}
CLASS = np.linspace(0.5, 1.5, 10).astype(np.float32)
KEEP = 0.8


class Net(nn.Module):
    """Classify an image by separable convolutions."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm2d(8, affine=True)
        self.depth = nn.Conv2d(8, 8, 3, padding=options["dilation"], dilation=options["dilation"], groups=8, bias=False)
        self.point = nn.Conv2d(8, 16, 1)
        self.norm2 = nn.InstanceNorm2d(16, affine=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(16 * 4 * 4, 10)
        self.head.requires_grad_(not options["frozen"])

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> Any:
        """Return what the model computes."""
        x = functional.hardswish(self.norm1(self.stem(x)))
        x = self.pool(self.norm2(self.point(self.depth(x))))
        x = torch.flatten(functional.relu6(x), 1)
        if self.options["keep"] != "off":
            x = x * (keep < KEEP) / (1.0 if self.options["keep"] == "unscaled" else KEEP)
        return self.head(x)


def weights(seed: int) -> Arrays:
    """Return the first weights of a seed, as PyTorch initialises them."""
    torch.manual_seed(seed)
    return {k: v.numpy().copy() for k, v in Net(OPTIONS).state_dict().items()}


IMAGES, LABELS = load_digits(return_X_y=True)


def batches(seed: int, options: Options) -> list[Arrays]:
    """Return the batches of a seed."""
    rng = np.random.default_rng([seed, 6])
    rows = rng.permutation(len(IMAGES))[: 12 * 10].reshape(12, 10)
    found = []
    for r in rows:
        x = IMAGES[r].reshape(-1, 1, 8, 8)
        x = (x - 4.9) / 6.0 if options["standardize"] == "right" else (x - 6.0) / 4.9
        found.append(
            {
                "images": x.astype(np.float32),
                "labels": LABELS[r].astype(np.int64),
                "keep": rng.random((10, 256), np.float32),
            }
        )
    return found


def torch_losses(model: Any, batch: Arrays, options: Options) -> Any:
    """Return the losses of a batch in PyTorch."""
    w = torch.tensor(CLASS if options["classes"] == "right" else CLASS[::-1].copy())
    return functional.cross_entropy(
        model(batch["images"], batch["keep"]), batch["labels"], w, label_smoothing=options["smooth"]
    )


class JNet(nnx.Module):
    """Classify an image by separable convolutions."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        self.options = options
        self.stem = nnx.Conv(1, 8, (3, 3), padding=1, use_bias=False, rngs=rngs)
        norm = (
            (lambda c: nnx.InstanceNorm(c, epsilon=1e-5, rngs=rngs))
            if options["norm"] == "instance"
            else (lambda c: nnx.GroupNorm(c, 1, epsilon=1e-5, rngs=rngs))
        )
        self.norm1 = norm(8)
        self.depth = nnx.Conv(8, 8, (3, 3), padding=1, feature_group_count=8, use_bias=False, rngs=rngs)
        self.point = nnx.Conv(8, 16, (1, 1), dtype=jnp.bfloat16 if options["half"] else None, rngs=rngs)
        self.norm2 = norm(16)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x: jax.Array, keep: jax.Array) -> Any:
        """Return what the model computes."""
        options = self.options
        x = self.norm1(self.stem(x))
        x = jax.nn.hard_swish(x) if options["bend"] == "hardswish" else jax.nn.swish(x)
        x = self.norm2(self.point(self.depth(x)).astype(jnp.float32))
        if options["pool"] == "zeros":
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = nnx.max_pool(x, (3, 3), (2, 2), "VALID")
        else:
            x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        self.sow(nnx.Intermediate, "pool", x)
        x = jax.nn.relu6(x)
        x = (x.transpose(0, 3, 1, 2) if options["flattened"] == "channels first" else x).reshape(len(x), -1)
        rate = 1 - KEEP if options["keep"] == "inverted" else KEEP
        x = jnp.where(keep < rate, x / rate, 0.0)
        return self.head(x)


def jax_model(options: Options) -> tuple[Any, Any, Any]:
    """Return parameters, the matching of their names, and the function that computes losses."""
    model = JNet(options, nnx.Rngs(0))
    theirs = Net(OPTIONS)
    matching = match(
        torch_weights(theirs), jax_weights(model), torch_layers=torch_layers_of(theirs), flax_layers=jax_layers(model)
    ).check()
    graph, params = nnx.split(model)

    def losses(params: Any, batch: Arrays, options: Options) -> tuple[Any, Any]:
        if options["depth_stop"]:
            params = jax.tree_util.tree_map_with_path(
                lambda path, leaf: jax.lax.stop_gradient(leaf) if "depth" in str(path) else leaf, params
            )
        forward = nnx.capture(nnx.merge(graph, params), nnx.Intermediate, method_outputs=nnx.Intermediate)
        logits, acts = forward(batch["images"].transpose(0, 2, 3, 1), batch["keep"])
        logp = jax.nn.log_softmax(jax.nn.softmax(logits) if options["head_double"] else logits)
        w = jnp.asarray(CLASS if options["classes"] == "right" else CLASS[::-1].copy())
        n = len(logp)
        hard = -(logp * w)[jnp.arange(n), batch["labels"]].sum() / w[batch["labels"]].sum()
        soft = -(logp * w).sum() / w[batch["labels"]].sum() / 10
        if options["smoothing"] == "unweighted":
            soft = -logp.mean()
        acts = {
            k: v.transpose(0, 3, 1, 2) if v.ndim == 4 else v
            for k, v in intermediate_outputs(acts).items()
            if k != "__call__"
        }
        return 0.9 * hard + 0.1 * soft, acts

    return params, matching, losses


class NadamState(NamedTuple):
    """Hold moments, and the product of the momenta so far."""

    count: Any
    mu: Any
    nu: Any
    product: Any


def jax_optimizer(options: Options) -> optax.GradientTransformation:
    """Return the optimizer of the JAX side."""
    if options["nadam"] == "optax":
        return optax.nadam(options["lr"], options["b1"], options["b2"], options["eps"])

    def init(params: Any) -> Any:
        def zeros():
            return jax.tree.map(jnp.zeros_like, params)

        return NadamState(jnp.zeros((), jnp.int32), zeros(), zeros(), jnp.ones(()))

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        t = state.count + 1
        m_t = options["b1"] * (1 - 0.5 * 0.96 ** (t * options["momentum_decay"]))
        m_next = options["b1"] * (1 - 0.5 * 0.96 ** ((t + 1) * options["momentum_decay"]))
        product = state.product * m_t
        mu = jax.tree.map(lambda m, g: options["b1"] * m + (1 - options["b1"]) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: options["b2"] * v + (1 - options["b2"]) * g * g, state.nu, grads)
        c2 = 1 - options["b2"] ** t

        def one(g, m, v):
            d = jnp.sqrt(v / c2) + options["eps"]
            return -options["lr"] * ((1 - m_t) / (1 - product) * g / d + m_next / (1 - product * m_next) * m / d)

        return jax.tree.map(one, grads, mu, nu), NadamState(t, mu, nu, product)

    return optax.GradientTransformation(init, update)


def torch_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return the optimizer of the PyTorch side."""
    head = {id(p) for p in model.head.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    if options["nadam"] == "radam":
        return torch.optim.RAdam(trained, options["lr"], (options["b1"], options["b2"]), options["eps"])
    groups = [{"params": [p for p in trained if id(p) not in head]}]
    if options["head_rate"] != 1.0:
        groups.append({"params": list(model.head.parameters()), "lr": options["lr"] * options["head_rate"]})
    return torch.optim.NAdam(
        groups if options["head_rate"] != 1.0 else trained,
        options["lr"],
        (options["b1"], options["b2"]),
        options["eps"],
        momentum_decay=options["momentum_decay"],
        weight_decay=options["decay"],
    )


def product(kept: Arrays, options: Options) -> None:
    """Add the product of NAdam's momenta, which probes do not keep."""
    value = 1.0
    for t in range(1, int(kept.get("step", 0)) + 1):
        value *= options["b1"] * (1 - 0.5 * 0.96 ** (t * options["momentum_decay"]))
    kept["mu_product"] = torch.tensor(value)


PAIR = Pair(
    "sepconv",
    OPTIONS,
    weights,
    batches,
    Net,
    torch_losses,
    torch_optimizer,
    jax_model,
    jax_optimizer,
    matched=True,
    complete=product,
)
