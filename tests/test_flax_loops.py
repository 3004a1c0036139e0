"""Whole loops of NNX and of Linen, against a plain loop over the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training import train_state
from flax_models import LinenNetwork, Network, batch

from noether_core import read_run
from noether_jax import Run, Tracked
from noether_jax.flax import intermediate_outputs

CONFIGS = [
    {"every_n_updates": 3, "keys": ["loss"], "patterns": ["blocks"], "reduce": ["mean", "std", "max"]},
    {"every_n_samples": 10, "patterns": ["norm"], "reduce": "last"},
]
TRAINING = {"effective_batch_size": 4, "accumulation_steps": 2}
STEPS = 16


def entries(path: Path) -> str:
    run = read_run(path)
    assert run.problems == []
    return repr(run.entries)


def by_hooks(path: Path, steps: list[dict[str, Any]]) -> str:
    """Return what a plain loop logs of the same outputs."""
    with Run(path, CONFIGS, **TRAINING) as run:
        for outputs in steps:
            run.step(outputs)
    logged = entries(path)
    assert all(f"{key}/U3" in logged for key in ("loss/mean", "loss/std", "weights/max"))
    assert "norms/parts/1/S10" in logged
    return logged


def loss_and_outputs(model: Network, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    output, sown = nnx.capture(model, nnx.Intermediate)(x)
    loss = jnp.mean((output - 1) ** 2)
    return loss, {"loss": loss, **intermediate_outputs(sown)}


def nnx_step(model: Network, optimizer: nnx.Optimizer[Network], x: jax.Array) -> dict[str, jax.Array]:
    gradients, outputs = nnx.grad(loss_and_outputs, has_aux=True)(model, x)
    optimizer.update(model, gradients)
    return {**outputs, "norm": optax.tree.norm(gradients)}


def nnx_training() -> tuple[Network, nnx.Optimizer[Network]]:
    model = Network()
    return model, nnx.Optimizer(model, optax.MultiSteps(optax.adam(0.1), 2), wrt=nnx.Param)


def counted(step: Callable[..., Any]) -> tuple[Callable[..., Any], list[None]]:
    """Return the function, and a list that grows each time it is traced."""
    traces: list[None] = []

    def noted(*arguments: Any) -> Any:
        traces.append(None)
        return step(*arguments)

    return noted, traces


@pytest.mark.parametrize("graph", [True, False], ids=["graph mode", "tree mode"])
def test_an_nnx_loop_logs_the_numbers_of_a_plain_one(graph: bool, tmp_path: Path) -> None:
    model, optimizer = nnx_training()
    step, traces = counted(nnx_step)
    train_step, steps = nnx.jit(step, graph=graph), []
    with Run(tmp_path / "run", CONFIGS, **TRAINING) as run:
        for number in range(STEPS):
            steps.append(train_step(model, optimizer, batch(number)))
            run.step(steps[-1])
    assert len(traces) == 1
    assert float(steps[-1]["loss"]) < float(steps[0]["loss"])
    assert entries(tmp_path / "run") == by_hooks(tmp_path / "plain", [jax.device_get(outputs) for outputs in steps])


def test_a_fused_nnx_loop_logs_the_numbers_of_a_plain_one(tmp_path: Path) -> None:
    model, optimizer = nnx_training()
    run = Run(tmp_path / "run", CONFIGS, **TRAINING)
    example = nnx.eval_shape(nnx_step, model, optimizer, batch(0))
    assert int(optimizer.step[...]) == 0  # looking at shapes trains nothing
    tracked, steps = run.init(example), []

    def fused(model: Network, optimizer: nnx.Optimizer[Network], tracked: Tracked, x: jax.Array) -> Any:
        outputs = nnx_step(model, optimizer, x)
        return run.track(tracked, outputs), outputs

    step, traces = counted(fused)
    train_step = nnx.jit(step, donate_argnums=2)
    with run:
        for number in range(STEPS):
            tracked, outputs = train_step(model, optimizer, tracked, batch(number))
            tracked = run.step(tracked)
            steps.append(outputs)
    assert len(traces) == 1
    assert entries(tmp_path / "run") == by_hooks(tmp_path / "plain", steps)


def test_an_nnx_scan_over_steps_logs_the_numbers_of_a_plain_loop(tmp_path: Path) -> None:
    model, optimizer = nnx_training()
    run = Run(tmp_path / "run", CONFIGS, **TRAINING)
    tracked = run.init(nnx.eval_shape(nnx_step, model, optimizer, batch(0)), steps_per_call=4)
    steps: list[dict[str, Any]] = []

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def body(carry: Any, x: jax.Array) -> Any:
        model, optimizer, tracked = carry
        outputs = nnx_step(model, optimizer, x)
        return (model, optimizer, run.track(tracked, outputs)), outputs

    def scan(model: Network, optimizer: nnx.Optimizer[Network], tracked: Tracked, xs: jax.Array) -> Any:
        (_, _, tracked), outputs = body((model, optimizer, tracked), xs)
        return tracked, outputs

    step, traces = counted(scan)
    train_steps = nnx.jit(step)
    with run:
        for start in range(0, STEPS, 4):
            xs = jnp.stack([batch(number) for number in range(start, start + 4)])
            tracked, outputs = train_steps(model, optimizer, tracked, xs)
            tracked = run.step(tracked, steps=4)
            steps += [jax.tree.map(lambda values, at=at: values[at], outputs) for at in range(4)]
    assert len(traces) == 1
    assert entries(tmp_path / "run") == by_hooks(tmp_path / "plain", steps)


class TrainState(train_state.TrainState):
    tracked: Tracked


def test_a_linen_train_state_that_carries_what_is_tracked(tmp_path: Path) -> None:
    """Compare a fused loop, whose `TrainState` has one field more, with a plain one."""
    model, run = LinenNetwork(), Run(tmp_path / "run", CONFIGS, **TRAINING)

    def loss_and_outputs(params: Any, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        output, variables = model.apply({"params": params}, x, mutable=["intermediates"])
        loss = jnp.mean((output - 1) ** 2)
        return loss, {"loss": loss, **intermediate_outputs(variables["intermediates"])}

    def fused(state: TrainState, x: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, outputs = jax.grad(loss_and_outputs, has_aux=True)(state.params, x)
        return state.apply_gradients(grads=gradients, tracked=run.track(state.tracked, outputs)), outputs

    params = model.init(jax.random.key(0), batch(0))["params"]
    tracked = run.init(jax.eval_shape(loss_and_outputs, params, batch(0))[1])
    optimizer = optax.MultiSteps(optax.adam(0.1), 2)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer, tracked=tracked)
    step, traces = counted(fused)
    train_step, steps = jax.jit(step, donate_argnums=0), []
    with run:
        for number in range(STEPS):
            state, outputs = train_step(state, batch(number))
            state = state.replace(tracked=run.step(state.tracked))
            steps.append(outputs)
    assert len(traces) == 1
    assert float(steps[-1]["loss"]) < float(steps[0]["loss"])
    assert entries(tmp_path / "run") == by_hooks(tmp_path / "plain", steps)
