"""Train two small models, in PyTorch or Optax, and keep what each step computed; one thing can be done otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional

from noether_core.parity.divergence import MemoryTraining

Arrays = dict[str, Any]
UPDATES = 12
SHAPES = {"first.weight": (16, 10), "first.bias": (16,), "last.weight": (5, 16), "last.bias": (5,)}


def drawn(seed: int) -> tuple[Any, Any, Arrays]:
    """Return inputs and targets of each update, and the weights."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(UPDATES, 32, 10)).astype(np.float32)
    targets = np.tanh(inputs @ generator.normal(size=(10, 5))).astype(np.float32)
    weights = {name: (generator.normal(size=shape) * 0.3).astype(np.float32) for name, shape in SHAPES.items()}
    return inputs, targets, weights


def steady(update: int) -> float:
    """Leave the learning rate as it is."""
    return 1.0


def in_torch(
    optimizer: Callable[[dict[str, torch.nn.Parameter]], torch.optim.Optimizer],
    rate: Callable[[int], float] = steady,
    seed: int = 0,
) -> MemoryTraining:
    """Train a perceptron with PyTorch; `rate` multiplies the learning rate, of an update counted from 0."""
    inputs, targets, weights = drawn(seed)
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in weights.items()}
    stepping = optimizer(parameters)
    rates = [group["lr"] for group in stepping.param_groups]
    arrays: dict[int, Arrays] = {}
    for update in range(UPDATES):
        for group, base in zip(stepping.param_groups, rates, strict=True):
            group["lr"] = base * rate(update)
        stepping.zero_grad()
        hidden = torch.tanh(torch.tensor(inputs[update]) @ parameters["first.weight"].T + parameters["first.bias"])
        output = hidden @ parameters["last.weight"].T + parameters["last.bias"]
        ((output - torch.tensor(targets[update])) ** 2).mean().backward()
        old = {name: value.detach().numpy().copy() for name, value in parameters.items()}
        arrays[update + 1] = {f"param/{name}": value for name, value in old.items()}
        arrays[update + 1] |= {f"grad/{name}": value.grad.numpy().copy() for name, value in parameters.items()}  # type: ignore[union-attr]
        stepping.step()
        arrays[update + 1] |= {f"update/{name}": parameters[name].detach().numpy() - old[name] for name in old}
    return MemoryTraining("torch", "torch", arrays)


def in_jax(transformation: optax.GradientTransformation, reset_at: int = 0, seed: int = 0) -> MemoryTraining:
    """Train the same perceptron with Optax; the optimizer's state is made anew before the update `reset_at`."""
    inputs, targets, weights = drawn(seed)
    parameters: Any = {name: jnp.asarray(value) for name, value in weights.items()}
    state = transformation.init(parameters)

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        hidden = jnp.tanh(x @ parameters["first.weight"].T + parameters["first.bias"])
        return jnp.mean((hidden @ parameters["last.weight"].T + parameters["last.bias"] - y) ** 2)

    @jax.jit
    def step(parameters: Any, state: Any, x: Any, y: Any) -> Any:
        gradients = jax.grad(loss)(parameters, x, y)
        updates, state = transformation.update(gradients, state, parameters)
        return gradients, optax.apply_updates(parameters, updates), state

    arrays: dict[int, Arrays] = {}
    for update in range(UPDATES):
        state = transformation.init(parameters) if reset_at == update + 1 else state
        gradients, new, state = step(parameters, state, inputs[update], targets[update])
        arrays[update + 1] = {f"param/{name}": np.asarray(value) for name, value in parameters.items()}
        arrays[update + 1] |= {f"grad/{name}": np.asarray(value) for name, value in gradients.items()}
        arrays[update + 1] |= {f"update/{name}": np.asarray(new[name]) - np.asarray(parameters[name]) for name in new}
        parameters = new
    return MemoryTraining("jax", "jax", arrays)


@dataclass(frozen=True)
class Network:
    """Say what a small convolutional network does; the defaults are one training, a change is the other."""

    data: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    weights: Callable[[str, torch.Tensor], torch.Tensor] = lambda _, weight: weight
    conv: Callable[..., torch.Tensor] = lambda x, w, b: functional.conv2d(x, w, b, padding=1)
    batch_norm: Callable[..., torch.Tensor] = lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True)
    activation: Callable[[torch.Tensor], torch.Tensor] = torch.relu
    pool: Callable[[torch.Tensor], torch.Tensor] = lambda x: functional.max_pool2d(x, 2)
    flatten: Callable[[torch.Tensor], torch.Tensor] = lambda x: x.flatten(1)
    linear: Callable[..., torch.Tensor] = functional.linear
    layer_norm: Callable[..., torch.Tensor] = lambda x, w, b: functional.layer_norm(x, (12,), w, b)
    gelu: Callable[[torch.Tensor], torch.Tensor] = functional.gelu
    residual: Callable[..., torch.Tensor] = lambda x, y: x + y
    loss: Callable[..., torch.Tensor] = functional.cross_entropy
    grads: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda grads: grads
    clip: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda grads: clipped(grads, 0.5)


def clipped(grads: dict[str, torch.Tensor], threshold: float, epsilon: float = 0.0) -> dict[str, torch.Tensor]:
    """Clip gradients by their global norm."""
    norm = torch.sqrt(sum(((grad**2).sum() for grad in grads.values()), start=torch.zeros(())))
    return {name: grad * torch.clamp(threshold / (norm + epsilon), max=1.0) for name, grad in grads.items()}


def network(options: Network, updates: int = 2, seed: int = 0) -> MemoryTraining:
    """Run updates of a network with plain steps, and keep all stages."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "conv.weight": (4, 3, 3, 3),
        "conv.bias": (4,),
        "bn.weight": (4,),
        "bn.bias": (4,),
        "hidden.weight": (12, 36),
    }
    shapes |= {"hidden.bias": (12,), "ln.weight": (12,), "ln.bias": (12,), "mix.weight": (12, 12), "mix.bias": (12,)}
    shapes |= {"head.weight": (5, 12), "head.bias": (5,)}
    start = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}
    weights = {name: options.weights(name, weight).clone().requires_grad_() for name, weight in start.items()}
    arrays: dict[int, Arrays] = {}
    for update in range(1, updates + 1):
        kept: Arrays = {}
        x = options.data(torch.randn((10, 3, 6, 6), generator=generator))
        y = torch.randint(0, 5, (10,), generator=generator)
        loss = _loss(options, weights, x, y, kept)
        grads = torch.autograd.grad(loss, list(weights.values()))
        raw = options.grads(dict(zip(weights, grads, strict=True)))
        cut = options.clip(raw)
        kept |= {f"param/{name}": weight.detach().clone() for name, weight in weights.items()}
        kept |= {f"grad/{name}": grad for name, grad in raw.items()} | {
            f"clip/{name}": grad for name, grad in cut.items()
        }
        weights = {name: (weight - 0.1 * cut[name]).detach().requires_grad_() for name, weight in weights.items()}
        kept |= {f"update/{name}": weight.detach() - kept[f"param/{name}"] for name, weight in weights.items()}
        arrays[update] = {key: value.detach().numpy() for key, value in kept.items()}
    return MemoryTraining("network", "torch", arrays)


def _loss(options: Network, w: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, kept: Arrays) -> torch.Tensor:
    def tap(key: str, value: torch.Tensor) -> torch.Tensor:
        kept[key] = value.detach().clone()
        return value

    x = tap("data/x", x)
    tap("data/y", y)
    x = tap("act/conv", options.conv(x, w["conv.weight"], w["conv.bias"]))
    x = tap("act/bn", options.batch_norm(x, w["bn.weight"], w["bn.bias"]))
    x = tap("act/pool", options.pool(tap("act/relu", options.activation(x))))
    x = tap("act/hidden", options.linear(tap("act/flat", options.flatten(x)), w["hidden.weight"], w["hidden.bias"]))
    x = tap("act/gelu", options.gelu(tap("act/ln", options.layer_norm(x, w["ln.weight"], w["ln.bias"]))))
    x = tap("act/sum", options.residual(x, tap("act/mix", functional.linear(x, w["mix.weight"], w["mix.bias"]))))
    return tap("loss/total", options.loss(tap("act/head", functional.linear(x, w["head.weight"], w["head.bias"])), y))
