"""One small training in both frameworks, from the same weights, with everything that it computes probed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import noether_jax
import noether_torch
from noether_core.probes.naming import torch_names
from noether_jax.flax import intermediate_outputs

CLIP = 0.1
RATE = 1e-2
DRAWN = np.random.default_rng(0)
BATCHES = [
    (DRAWN.standard_normal((16, 4)).astype(np.float32), DRAWN.integers(0, 3, 16).astype(np.int32)) for _ in range(12)
]


def torch_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def train_torch(
    path: Path, config: Mapping[str, Any], *, resume: Path | None = None, last: int = 12, **options: Any
) -> Any:
    """Train, saving a state after update 4 as `state` beside the run directory."""
    model = torch_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    with noether_torch.Run(path, [{"kind": "ProbeCallback", **config}], **options) as run:
        run.probe(model, optimizer)
        if resume is not None:
            run.load_state(resume)
        while run.counter.update < last:
            x, y = map(torch.from_numpy, BATCHES[run.counter.update])
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y.long())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            run.step({"loss": loss}, batch={"x": x, "y": y}, losses=loss)
            if run.counter.update == 4 and resume is None:
                run.save_state(path.parent / "state")
    return model


class FlaxModel(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), norm, nnx.Linear(8, 3, rngs=rngs)])
        weights = {name: jnp.asarray(value.detach().numpy()) for name, value in torch_model().named_parameters()}
        for at, name in ((0, "0"), (2, "3")):
            self.layers[at].kernel[...] = weights[f"{name}.weight"].T
            self.layers[at].bias[...] = weights[f"{name}.bias"]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers[2](nnx.relu(self.layers[1](self.layers[0](x))))


def flax_names(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Name this model's parameters as the other one's."""
    return {
        name.replace("layers.2.", "3.").replace("layers.", ""): value for name, value in torch_names(arrays).items()
    }


def clipped(grads: Any) -> Any:
    factor = jnp.minimum(1.0, CLIP / (optax.tree.norm(grads) + 1e-6))
    return jax.tree.map(lambda grad: grad * factor, grads)


def jax_step() -> Callable[..., Any]:
    """Return a step of NNX that probes what is due of it."""

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any, due: Any) -> dict[str, Any]:
        def loss_of(model: Any) -> tuple[jax.Array, Any]:
            forward = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
            logits, intermediates = forward(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), intermediates

        params = nnx.as_pure(nnx.state(model, nnx.Param))
        (loss, intermediates), grads = nnx.value_and_grad(loss_of, has_aux=True)(model)
        used = clipped(grads)
        optimizer.update(model, used)
        new = nnx.as_pure(nnx.state(model, nnx.Param))
        pieces = {"batch": {"x": x, "y": y}, "params": params, "losses": loss, "grads": grads, "clipped": used}
        updates = jax.tree.map(jnp.subtract, new, params)
        acts = intermediate_outputs(intermediates)
        probes = noether_jax.probe(
            due, **pieces, activations=acts, updates=updates, opt_state=optimizer.opt_state, names=flax_names
        )
        return {"loss": loss, **probes}

    return step


def train_jax(path: Path, config: Mapping[str, Any], *, last: int = 12) -> Any:
    model = FlaxModel()
    optimizer = nnx.Optimizer(model, optax.adamw(RATE, weight_decay=1e-2), wrt=nnx.Param)
    step = jax_step()
    with noether_jax.Run(path, [{"kind": "ProbeCallback", **config}]) as run:
        for x, y in BATCHES[:last]:
            run.step(step(model, optimizer, x, y, run.probes_due))
    return step
