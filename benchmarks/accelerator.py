"""Measure what tracking adds to a training step on an accelerator, or here: `python -m benchmarks.accelerator [cuda] [rounds]`.

The same network is trained in PyTorch, without `torch.compile`, and in JAX, in one compiled step. Beside ours stands what
people write by hand: `.item()` of each loss at each step, which waits for the device, and lists that are stacked at the end.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch

import noether_jax
import noether_torch
from benchmarks.measure import ratio, side_by_side

WIDTHS, BATCH = (1024, 2048, 2048, 1024), 512
STEPS = 20  # of a turn; a loop does not wait for each
NUM_KEYS = (1, 10, 100)
CONFIG: dict[str, Any] = {"every_n_updates": 10**6, "patterns": ["loss"]}
Outputs = dict[str, Any]


def _torch_training(num_keys: int, has_array: bool, device: str) -> Callable[[], Outputs]:
    """Return a training step."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(*each, device=device) for each in pairwise(WIDTHS)]
    model = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.Tanh())))
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(BATCH, WIDTHS[0], device=device)

    def learn() -> Outputs:
        hidden = model(x)
        losses = (hidden**2).mean(1)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        parts = {f"loss/{at:03}": losses[at] for at in range(num_keys)}
        return {**parts, "loss/hidden": hidden} if has_array else parts

    return learn


def torch_steps(num_keys: int, has_array: bool, device: str, run: noether_torch.Run) -> dict[str, Callable[[], None]]:
    """Return turns of training: bare, tracked, and as people write it."""
    learn = _torch_training(num_keys, has_array, device)

    def turn(use: Callable[[Outputs], object]) -> None:
        for _ in range(STEPS):
            use(learn())
        if device != "cpu":
            torch.accelerator.synchronize()

    lists: dict[str, list[torch.Tensor]] = {}

    def append(outputs: Outputs) -> None:
        for key, value in outputs.items():
            lists.setdefault(key, []).append(value.detach().mean())

    def stack() -> None:
        turn(append)
        for key in list(lists):
            torch.stack(lists.pop(key)).mean().item()

    def items(outputs: Outputs) -> None:
        for value in outputs.values():
            value.detach().mean().item()

    return {
        "untracked": partial(turn, lambda _: None),
        "ours": partial(turn, run.step),
        "lists": stack,
        ".item()": partial(turn, items),
    }


def _jax_training(num_keys: int, has_array: bool) -> tuple[Callable[..., tuple[Any, Any, Outputs]], tuple[Any, Any]]:
    """Return a training step, and the parameters and the optimizer's state that it starts from."""
    keys = jax.random.split(jax.random.key(0), len(WIDTHS))
    params = [jax.random.normal(key, each) / 32 for key, each in zip(keys, pairwise(WIDTHS), strict=False)]
    x = jax.random.normal(keys[-1], (BATCH, WIDTHS[0]))
    optimizer = optax.adam(1e-3)

    def mean_loss(params: Any) -> tuple[jax.Array, Outputs]:
        hidden = x
        for weights in params:
            hidden = jnp.tanh(hidden @ weights)
        losses = jnp.mean(hidden**2, 1)
        parts = {f"loss/{at:03}": losses[at] for at in range(num_keys)}
        return jnp.mean(losses), {**parts, "loss/hidden": hidden} if has_array else parts

    def learn(params: Any, opt_state: Any) -> tuple[Any, Any, Outputs]:
        grads, outputs = jax.grad(mean_loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, outputs

    return learn, (params, optimizer.init(params))


def jax_steps(num_keys: int, has_array: bool, run: noether_jax.Run) -> dict[str, Callable[[], None]]:
    """Return turns of training: bare, tracked within the compiled step, and as people write it."""
    learn, start = _jax_training(num_keys, has_array)

    @jax.jit
    def bare(params: Any, opt_state: Any) -> tuple[Any, Any, jax.Array]:
        params, opt_state, outputs = learn(params, opt_state)
        means = jnp.stack([jnp.mean(value) for value in outputs.values()])  # so that they are computed
        return params, opt_state, means

    @jax.jit
    def returned(params: Any, opt_state: Any) -> tuple[Any, Any, Outputs]:
        params, opt_state, outputs = learn(params, opt_state)
        return params, opt_state, {key: jnp.mean(value) for key, value in outputs.items()}

    @partial(jax.jit, donate_argnums=2)
    def fused(params: Any, opt_state: Any, tracked: Any) -> tuple[Any, Any, Any]:
        params, opt_state, outputs = learn(params, opt_state)
        return params, opt_state, run.track(tracked, outputs)

    tracked = run.init(jax.eval_shape(learn, *start)[2])

    def turn(step: Callable[..., Any], use: Callable[[Any], object]) -> None:
        state = start
        for _ in range(STEPS):
            *state, outputs = step(*state)
            use(outputs)
        jax.block_until_ready(state)

    def track() -> None:
        nonlocal tracked
        state = start
        for _ in range(STEPS):
            *state, tracked = fused(*state, tracked)
            tracked = run.step(tracked)
        jax.block_until_ready((state, tracked))

    lists: list[Outputs] = []

    def stack() -> None:
        turn(returned, lists.append)
        jax.device_get(lists)
        lists.clear()

    return {
        "untracked": partial(turn, bare, lambda _: None),
        "ours": track,
        "lists": stack,
        ".item()": partial(turn, returned, lambda outputs: [value.item() for value in outputs.values()]),
    }


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    device = arguments[0] if arguments else "cpu"
    rounds = int(arguments[1]) if len(arguments) > 1 else 15
    print("| | tracked | untracked | ours | lists | .item() |")
    print("|---|---|---|---|---|---|")
    for num_keys, has_array in [*((count, False) for count in NUM_KEYS), (1, True)]:
        for framework, run_class in (("PyTorch", noether_torch.Run), ("JAX", noether_jax.Run)):
            with tempfile.TemporaryDirectory() as directory, run_class(Path(directory), [CONFIG]) as run:
                if isinstance(run, noether_jax.Run):
                    turns = jax_steps(num_keys, has_array, run)
                else:
                    turns = torch_steps(num_keys, has_array, device, run)
                times = side_by_side(turns, rounds=rounds, seconds=0.0)
            ratios = " | ".join(f"{ratio(times['untracked'], each):.3f} ×" for each in list(times.values())[1:])
            what = f"{num_keys} scalars" + f" and [{BATCH}, {WIDTHS[-1]}]" * has_array
            print(
                f"| {framework} | {what} | {median(times['untracked']) / STEPS:,.0f} µs | {ratios} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
