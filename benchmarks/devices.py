"""Measure what tracking adds to a compiled step on 1, 2, 4 and 8 virtual devices: `python -m benchmarks.devices`.

Each number of devices is a process of its own. A device has the same batch whatever their number; all share this machine's
cores, so what carries over is the ratio of the tracked step to the same step untracked: its time, how long it takes to
compile, and how many exchanges between devices the compiled code has.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.measure import ratio, side_by_side
from noether_jax import Run
from noether_jax.optax import record_outputs, record_specs

WAYS = ("shard_map", "scan", "optax chain", "GSPMD", "GSPMD, a sharded array", "GSPMD, a large sharded array")
TRACKED = dict(zip(WAYS[3:], ("loss", "losses", "hidden"), strict=True))
DEVICES = (1, 2, 4, 8)
WIDTHS, BATCH, SCANNED = (256, 256, 10), 64, 4
CALLS = 10  # of a turn; a loop does not wait for each
EXCHANGE = re.compile(r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
CONFIG: dict[str, Any] = {"every_n_updates": 10**6, "patterns": ["loss", "norm"], "reduce": ["mean", "std"]}
Steps = dict[
    str, tuple[Callable[..., Any], Any]
]  # by name, a function from a state and a batch to a state, and the state
Outputs = dict[str, Any]


def _learn(params: Any, x: jax.Array, axis_name: str | None, tracked: str = "loss") -> tuple[Any, Outputs]:
    """Return the gradients, the mean over a mapped axis if there is one, and the update outputs."""

    def mean_loss(params: Any) -> tuple[jax.Array, Outputs]:
        hidden = [x]
        for weights in params:
            hidden.append(jnp.tanh(hidden[-1] @ weights))
        losses = jnp.mean(hidden[-1] ** 2, -1)
        return (loss := jnp.mean(losses)), {"loss": loss, "losses": losses, "hidden": hidden[1]}

    (_, outputs), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    if axis_name is not None:
        grads = jax.lax.pmean(grads, axis_name)
    return grads, {"loss": outputs[tracked], "norm": optax.tree.norm(grads)}


def _gspmd(run: Run, mesh: Mesh, optimizer: Any, start: Any, tracked: str) -> Steps:
    """Return steps whose batch is shared out by XLA; the untracked one carries its last outputs, so that it computes them."""

    def of(seen: Any, track: Callable[[Any, Outputs], Any]) -> tuple[Callable[..., Any], Any]:
        def step(state: Any, x: jax.Array) -> Any:
            params, opt_state, seen = state
            grads, outputs = _learn(params, x, None, tracked)
            updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state, track(seen, outputs)

        return step, (*start, seen)

    shape = {"loss": (), "losses": (BATCH * mesh.size,), "hidden": (BATCH * mesh.size, WIDTHS[1])}[tracked]
    value = jax.device_put(jnp.zeros(shape), NamedSharding(mesh, P("data") if shape else P()))
    example = {"loss": value, "norm": jnp.float32(0)}
    state = jax.device_put(run.init(example), NamedSharding(mesh, P()))
    return {"untracked": of(example, lambda _, outputs: outputs), "tracked": of(state, run.track)}


def _mapped(run: Run, mesh: Mesh, optimizer: Any, start: Any, scanned: int | None) -> Steps:
    """Return steps of members that each see a part of the batch."""

    def of(seen: Any, track: Callable[[Any, Outputs], Any]) -> tuple[Callable[..., Any], Any]:
        def step(state: Any, x: jax.Array) -> Any:
            params, opt_state, seen = state
            grads, outputs = _learn(params, x, "data")
            updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state, track(seen, outputs)

        def scan(state: Any, x: jax.Array) -> Any:
            return jax.lax.scan(lambda state, each: (step(state, each), None), state, x)[0]

        specs = P(), P(), P("data")
        function, batch = (step, P("data")) if scanned is None else (scan, P(None, "data"))
        return jax.shard_map(function, mesh=mesh, in_specs=(specs, batch), out_specs=specs), (*start, seen)

    example = {"loss": jnp.float32(0), "norm": jnp.float32(0)}
    tracked = run.init(example, axis_name="data", mesh=mesh, steps_per_call=scanned or 1)
    return {"untracked": of(_kept(mesh), lambda _, outputs: _row(outputs)), "tracked": of(tracked, run.track)}


def _chained(run: Run, mesh: Mesh, optimizer: Any, start: Any) -> Steps:
    """Return steps of members that track in their optimizer."""
    example = {"loss": jnp.float32(0), "norm": jnp.float32(0)}
    recorded = optax.chain(record_outputs(run, example, axis_name="data", mesh=mesh), optimizer)

    def of(optimizer: optax.GradientTransformationExtraArgs, opt_state: Any) -> tuple[Callable[..., Any], Any]:
        def step(state: Any, x: jax.Array) -> Any:
            params, opt_state, _ = state
            grads, outputs = _learn(params, x, "data")
            updates, opt_state = optimizer.update(grads, opt_state, params, update_outputs=outputs)
            return optax.apply_updates(params, updates), opt_state, _row(outputs)

        specs = P(), record_specs(opt_state, "data"), P("data")
        function = jax.shard_map(step, mesh=mesh, in_specs=(specs, P("data")), out_specs=specs)
        return function, (start[0], opt_state, _kept(mesh))

    return {"untracked": of(optimizer, start[1]), "tracked": of(recorded, recorded.init(start[0]))}


def _row(outputs: Outputs) -> jax.Array:
    return jnp.stack(list(outputs.values()))[None]


def _kept(mesh: Mesh) -> jax.Array:
    return jax.device_put(jnp.zeros((mesh.size, 2)), NamedSharding(mesh, P("data")))


def measure(way: str, rounds: int) -> dict[str, Any]:
    """Return, on the devices of this process, what the untracked and the tracked step take."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), len(WIDTHS))
    params = [jax.random.normal(key, each) / 16 for key, each in zip(keys, pairwise(WIDTHS), strict=False)]
    optimizer = optax.with_extra_args_support(optax.adam(1e-3))
    start = jax.device_put((params, optimizer.init(params)), NamedSharding(mesh, P()))
    shape, spec = (BATCH * mesh.size, WIDTHS[0]), P("data")
    if way == "scan":
        shape, spec = (SCANNED, *shape), P(None, "data")
    x = jax.device_put(np.random.default_rng(0).normal(size=shape).astype(np.float32), NamedSharding(mesh, spec))
    with tempfile.TemporaryDirectory() as directory:
        run = Run(directory, [CONFIG])
        if way.startswith("GSPMD"):
            steps = _gspmd(run, mesh, optimizer, start, TRACKED[way])
        elif way == "optax chain":
            steps = _chained(run, mesh, optimizer, start)
        else:
            steps = _mapped(run, mesh, optimizer, start, SCANNED if way == "scan" else None)
        return _timed(steps, x, rounds)


def _timed(steps: Steps, x: jax.Array, rounds: int) -> dict[str, Any]:
    compile_s: dict[str, list[float]] = {name: [] for name in steps}
    compiled: dict[str, Any] = {}
    for _ in range(3):
        for name, (step, state) in steps.items():
            jax.clear_caches()
            started = time.perf_counter()
            compiled[name] = jax.jit(step).lower(state, x).compile()
            compile_s[name].append(time.perf_counter() - started)

    def train(name: str) -> Callable[[], object]:
        def calls() -> None:
            state = steps[name][1]
            for _ in range(CALLS):
                state = compiled[name](state, x)
            jax.block_until_ready(state)

        return calls

    times = side_by_side({name: train(name) for name in steps}, rounds=rounds)
    return {
        "step_us": [median(each) / CALLS for each in times.values()],
        "ratio": ratio(times["untracked"], times["tracked"]),
        "compile_s": [median(each) for each in compile_s.values()],
        "exchanges": [len(EXCHANGE.findall(each.as_text())) for each in compiled.values()],
    }


def _of_process(way: str, devices: int, rounds: int) -> dict[str, Any]:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "benchmarks.devices", "--way", way, str(rounds)]
    found: dict[str, Any] = json.loads(subprocess.check_output(command, text=True, env=environment))
    return found


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    if arguments[:1] == ["--way"]:
        print(json.dumps(measure(arguments[1], int(arguments[2]))))
        return
    rounds = int(arguments[0]) if arguments else 30
    print(
        "| way | devices | untracked | tracked | that is | compilation | that is | exchanges, untracked and tracked |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for way in WAYS:
        for devices in DEVICES:
            found = _of_process(way, devices, rounds)
            (bare, tracked), (first, then), (few, many) = (
                found[name] for name in ("step_us", "compile_s", "exchanges")
            )
            print(
                f"| {way} | {devices} | {bare:,.0f} µs | {tracked:,.0f} µs | {found['ratio']:.2f} × | {first:.2f} and"
                f" {then:.2f} s | {then / first:.2f} × | {few} and {many} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
