"""Label sequences of several lengths: an LSTM, masked losses, its state at each sequence's end, RMSprop with momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks.porting_bugs import jax_layers, torch_step
from benchmarks.porting_bugs.family import linear_weights, uniform
from benchmarks.porting_bugs.jax_optimizers import RmsProp, Tree
from benchmarks.porting_bugs.jax_step import JaxRecipe, Tap
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.torch_step import TorchRecipe

TOKENS, LENGTH, BATCH, FEATURES, WIDTH = 12, 10, 24, 12, 20
RATE, FADING = 1e-3, 0.95


def batches(seed: int, updates: int) -> list[Arrays]:
    """Return tokens, labels that follow from the last two tokens, the mask of what is no padding, and a number for each row."""
    generator = np.random.default_rng([seed, 1])
    made = []
    for _ in range(updates):
        mask = np.arange(LENGTH) < generator.integers(4, LENGTH + 1, size=(BATCH, 1))
        tokens = generator.integers(1, TOKENS, size=(BATCH, LENGTH)) * mask
        labels = (tokens + np.roll(tokens, 1, axis=1)) % TOKENS * mask
        value = (tokens.sum(1, keepdims=True) / mask.sum(1, keepdims=True) / TOKENS).astype(np.float32)
        made.append({"x": tokens, "y": labels, "mask": mask.astype(np.float32), "value": value})
    return made


def weights(seed: int) -> Arrays:
    """Return the embedding, the LSTM's weights with the gates in PyTorch's order, and two heads."""
    generator = np.random.default_rng([seed, 2])
    bound = WIDTH**-0.5
    return {
        "embedding.weight": uniform(generator, 0.8, TOKENS, FEATURES),
        "lstm.weight_ih_l0": uniform(generator, bound, 4 * WIDTH, FEATURES),
        "lstm.weight_hh_l0": uniform(generator, bound, 4 * WIDTH, WIDTH),
        "lstm.bias_ih_l0": uniform(generator, bound, 4 * WIDTH),
        "lstm.bias_hh_l0": uniform(generator, bound, 4 * WIDTH),
        **linear_weights(generator, "hidden", WIDTH, WIDTH),
        **linear_weights(generator, "head", TOKENS, WIDTH),
        **linear_weights(generator, "value", 1, WIDTH),
    }


class Lstm(torch.nn.Module):
    """Label tokens and give each row a number."""

    def __init__(self, value_loss: Callable[..., torch.Tensor] = functional.mse_loss) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(TOKENS, FEATURES)
        self.lstm = torch.nn.LSTM(FEATURES, WIDTH, batch_first=True)
        self.hidden, self.head = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, TOKENS)
        self.value = torch.nn.Linear(WIDTH, 1)
        self.value_loss = value_loss

    def forward(self, batch: torch_step.Batch, tap: torch_step.Tap) -> torch.Tensor:
        """Return the loss."""
        states, _ = self.lstm(tap("embedding", self.embedding(batch["x"])))
        tap("lstm", states)
        x = tap("tanh", tap("hidden", self.hidden(states)).tanh())
        logits = tap("head", self.head(x))
        last = batch["mask"].sum(1).long() - 1
        final = tap("final", states[torch.arange(len(last)), last])
        value = tap("value", self.value(final))
        losses = functional.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), reduction="none")
        mask = batch["mask"].flatten()
        return (losses * mask).sum() / mask.sum() + self.value_loss(value, batch["value"])


def gates_of(total: Any) -> tuple[Any, Any, Any, Any]:
    """Return the gates of input and forgetting, the cell's new content, and the output gate, as PyTorch orders them."""
    i, f, g, o = jnp.split(total, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def masked_mean(losses: Any, mask: Any) -> Any:
    """Return the mean over all tokens that are no padding."""
    return (losses * mask).sum() / mask.sum()


def at_the_end(states: Any, mask: Any) -> Any:
    """Return each row's state at its last token."""
    last = mask.sum(1).astype(int) - 1
    return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Options:
    """Say what the port computes; the defaults are right."""

    embed: Callable[[Any, Any], Any] = lambda table, x: table[x]
    bias: Callable[[Any, Any], Any] = lambda of_inputs, of_states: of_inputs + of_states
    gates: Callable[[Any], tuple[Any, Any, Any, Any]] = gates_of
    product: Callable[[Any, Any], Any] = lambda x, weight: x @ weight
    output: Callable[[Any, Any], Any] = lambda o, cell: o * jnp.tanh(cell)
    between: Callable[[Any], Any] = lambda state: state  # what a state passes through on its way to the next step
    start: Callable[[Tree, int], Tree] = lambda buffers, rows: {
        name: jnp.zeros((rows, WIDTH)) for name in ("cell", "state")
    }
    carry: bool = False
    activation: Callable[[Any], Any] = jnp.tanh
    dropout: Callable[[Any, Any], Any] = lambda x, update: x
    final: Callable[[Any, Any], Any] = at_the_end
    mean: Callable[[Any, Any], Any] = masked_mean
    value_loss: Callable[[Any, Any], Any] = lambda value, target: jnp.mean((value - target) ** 2)


def forward(
    options: Options, params: Tree, buffers: Tree, batch: Tree, update: Any, tap: Tap
) -> tuple[jax.Array, Tree]:
    """Return the loss; and the last state, which a port with a bug carries to the next batch."""
    x = tap("embedding", options.embed(params["embedding.weight"], batch["x"]))
    bias = options.bias(params["lstm.bias_ih_l0"], params["lstm.bias_hh_l0"])

    def cell(carried: Tree, x: jax.Array) -> tuple[Tree, jax.Array]:
        carried = {name: options.between(value) for name, value in carried.items()}
        of_states = options.product(carried["state"], params["lstm.weight_hh_l0"])
        inputs = options.product(x, params["lstm.weight_ih_l0"]) + of_states + bias
        i, f, g, o = options.gates(inputs)
        content = f * carried["cell"] + i * g
        state = options.output(o, content)
        return {"cell": content, "state": state}, state

    last, states = jax.lax.scan(cell, options.start(buffers, len(x)), x.swapaxes(0, 1))
    states = tap("lstm", states.swapaxes(0, 1))
    hidden = options.activation(tap("hidden", jax_layers.linear(params, "hidden", states)))
    logits = tap("head", jax_layers.linear(params, "head", tap("tanh", options.dropout(hidden, update))))
    value = tap("value", jax_layers.linear(params, "value", tap("final", options.final(states, batch["mask"]))))
    losses = jax_layers.negative_log_likelihood(logits, batch["y"])
    loss = options.mean(losses, batch["mask"]) + options.value_loss(value, batch["value"])
    return loss, last if options.carry else buffers


def rmsprop(module: torch.nn.Module, rate: float, **changes: Any) -> torch.optim.Optimizer:
    """Return RMSprop with momentum."""
    return torch.optim.RMSprop(module.parameters(), **{"lr": rate, "momentum": 0.9, **changes})


def rate(update: int) -> float:
    """Return a rate that fades by each update."""
    return RATE * FADING ** (update - 1)


def rate_in_jax(update: Any) -> Any:
    """Return the same for a traced update."""
    return RATE * FADING ** (update - 1)


TORCH = TorchRecipe(model=Lstm, optimizer=rmsprop, rate=rate)
JAX = JaxRecipe(
    forward=forward,
    model=Options(),
    optimizer=RmsProp(),
    rate=rate_in_jax,
    embeddings=frozenset({"embedding.weight"}),
)
