"""The ways to log every step's scalars to a line of a file that are measured: ours, by hand, and with the peers' metrics.

Each is a function of one step's update outputs; when it returns, the line is with the operating system. The outputs are new
arrays at every step, and are there before it starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import noether_jax
import noether_torch
from benchmarks.contenders import JAX, TORCH, Outputs
from benchmarks.measure import side_by_side

Step = Callable[[Outputs], None]
MODULES: Mapping[str, ModuleType] = {"PyTorch": noether_torch, "JAX": noether_jax}
OURS = {framework: f"{module.__name__}, Run" for framework, module in MODULES.items()}


def _torch_stack(outputs: Outputs) -> list[float]:
    return torch.stack(list(outputs.values())).tolist()


def _device_get(outputs: Outputs) -> list[float]:
    return [value.item() for value in jax.device_get(list(outputs.values()))]


_stack = jax.jit(jnp.stack)


def _jax_stack(outputs: Outputs) -> list[float]:
    return _stack(list(outputs.values())).tolist()  # type: ignore[no-any-return]


HAND: Mapping[str, Mapping[str, Callable[[Outputs], list[float]]]] = {
    "PyTorch": {"by hand: torch.stack": _torch_stack},
    "JAX": {"by hand: jax.device_get": _device_get, "by hand: a jitted jnp.stack": _jax_stack},
}


def _ours(module: ModuleType, outputs: Outputs, directory: Path, opened: ExitStack) -> Step:
    run = module.Run(directory, [{"every_n_updates": 1, "keys": list(outputs)}])
    return opened.enter_context(run).step  # type: ignore[no-any-return]


def _written(read: Callable[[Outputs], Iterable[Any]], directory: Path, opened: ExitStack) -> Step:
    """Return a step that writes what `read` makes of the outputs, one number a key, as a line of JSON."""
    directory.mkdir(parents=True)
    file = opened.enter_context((directory / "log.jsonl").open("w", encoding="utf-8"))
    updates = count(1)

    def step(outputs: Outputs) -> None:
        entry = {"update": next(updates), **dict(zip(outputs, read(outputs), strict=True))}
        file.write(json.dumps(entry) + "\n")
        file.flush()

    return step


def _by_contender(contender: Any) -> Callable[[Outputs], Iterable[float]]:
    """Return the means of an interval of one step."""

    def read(outputs: Outputs) -> list[float]:
        contender.step(outputs)
        means = contender.finish()
        return [float(means[key]) for key in outputs]

    return read


def fresh_outputs(framework: str, num_keys: int) -> Callable[[int], list[Outputs]]:
    """Return what makes so many steps' update outputs: dicts of new scalars, which are there when it returns."""
    names = [f"key_{at}" for at in range(num_keys)]
    rng = np.random.default_rng(0)
    apart = jax.jit(list)

    def fresh(steps: int) -> list[Outputs]:
        values = rng.standard_normal((steps, num_keys)).astype(np.float32)
        if framework == "PyTorch":
            rows: list[Any] = [[value.clone() for value in torch.from_numpy(row)] for row in values]
        else:
            rows = jax.block_until_ready([apart(row) for row in values])
        return [dict(zip(names, row, strict=True)) for row in rows]

    return fresh


def measure(framework: str, num_keys: int, directory: Path, rounds: int) -> dict[str, list[float]]:
    """Return the times of a step that logs, in µs.

    Args:
        framework: `PyTorch` or `JAX`.
        num_keys: how many scalars a step has.
        directory: is made, and gets the logs.
        rounds: how many turns each way gets.
    """
    fresh = fresh_outputs(framework, num_keys)
    (outputs,) = fresh(1)
    contenders = TORCH if framework == "PyTorch" else JAX
    with ExitStack() as opened:
        steps = {OURS[framework]: _ours(MODULES[framework], outputs, directory / "ours", opened)}
        for name, read in HAND[framework].items():
            steps[name] = _written(read, directory / name, opened)
        for name, make in contenders.items():
            if not name.startswith("noether"):
                steps[name] = _written(_by_contender(make(outputs)), directory / name, opened)
        return side_by_side(steps, rounds=rounds, fresh=fresh)
