"""Tracking under JAX's transformations: gradients, `vmap`, no compilation, and guards against transfers."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from noether_core import read_run
from noether_core.errors import HookOrderError, NoetherError
from noether_jax import Run, track_outputs
from noether_jax.flax import TrackOutputs
from noether_jax.optax import record_optimizer

REDUCTIONS = ["mean", "sum", "min", "max", "std", "count"]


def reference(name: str, values: np.ndarray[Any, Any]) -> Any:
    """Reduce float32 values in exact fractions."""
    exact = [Fraction(float(value)) for value in values.ravel()]
    total = sum(exact, Fraction(0))
    if name == "count":
        return len(exact)
    if name in ("min", "max"):
        return np.float32({"min": min, "max": max}[name](exact))
    if name in ("sum", "mean"):
        return np.float32(float(total if name == "sum" else total / len(exact)))
    mean = total / len(exact)
    return np.float32(np.sqrt(float(sum(((each - mean) ** 2 for each in exact), Fraction(0)) / len(exact))))


# ---------------------------------------------------------------------- gradients

Loss = Callable[[jax.Array, Any], tuple[jax.Array, Any]]  # of a weight and a tracker's state
One = jnp.float32(1)


def by_vjp(loss: Loss, weight: jax.Array, state: Any) -> Any:
    _, pull, after = jax.vjp(lambda weight: loss(weight, state), weight, has_aux=True)
    return pull(One)[0], after


def by_jvp(loss: Loss, weight: jax.Array, state: Any) -> Any:
    (_, after), (tangent, _) = jax.jvp(lambda weight: loss(weight, state), (weight,), (One,))
    return tangent, after


def by_linearize(loss: Loss, weight: jax.Array, state: Any) -> Any:
    (_, after), tangents = jax.linearize(lambda weight: loss(weight, state), weight)
    return tangents(One)[0], after


def by_scan(loss: Loss, weight: jax.Array, state: Any) -> Any:
    def total(weight: jax.Array) -> Any:
        def step(carry: Any, _: None) -> Any:
            value, after = loss(weight, carry[1])
            return (carry[0] + value, after), None

        return jax.lax.scan(step, (jnp.float32(0), state), None, length=1)[0]

    return jax.grad(total, has_aux=True)(weight)


def by_custom_vjp(loss: Loss, weight: jax.Array, state: Any) -> Any:
    @jax.custom_vjp
    def inner(weight: jax.Array, state: Any) -> Any:
        return loss(weight, state)

    def forward(weight: jax.Array, state: Any) -> Any:
        gradient, after = jax.grad(loss, has_aux=True)(weight, state)
        return (loss(weight, state)[0], after), gradient

    inner.defvjp(forward, lambda gradient, cotangent: (cotangent[0] * gradient, None))
    return jax.grad(inner, has_aux=True)(weight, state)


DERIVATIVES: dict[str, Callable[[Loss, jax.Array, Any], Any]] = {
    "grad": lambda loss, weight, state: jax.grad(loss, has_aux=True)(weight, state),
    "value_and_grad": lambda loss, *given: (lambda found: (found[1], found[0][1]))(
        jax.value_and_grad(loss, has_aux=True)(*given)
    ),
    "jit of grad": lambda loss, *given: jax.jit(jax.grad(loss, has_aux=True))(*given),
    "grad of jit": lambda loss, *given: jax.grad(jax.jit(loss), has_aux=True)(*given),
    "checkpoint": lambda loss, *given: jax.grad(jax.checkpoint(loss), has_aux=True)(*given),
    "forward": lambda loss, *given: jax.jacfwd(loss, has_aux=True)(*given),
    "reverse": lambda loss, *given: jax.jacrev(loss, has_aux=True)(*given),
    "vjp": by_vjp,
    "jvp": by_jvp,
    "linearize": by_linearize,
    "scan": by_scan,
    "custom_vjp": by_custom_vjp,
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("how", DERIVATIVES)
def test_no_gradient_flows_into_what_is_tracked(how: str, full: bool) -> None:
    rng = np.random.default_rng(sum(map(ord, how)))
    for _ in range(3 if full else 2):
        shape = [(), (1,), (3,), (2, 3), (40,), (300, 7), (20_000,)][rng.integers(7)]
        wanted = [str(name) for name in rng.permutation(REDUCTIONS)[: rng.integers(1, 5)]]
        config: dict[str, Any] = {"every_n_updates": 2, "keys": ["x"], "reduce": [*wanted, "last"]}
        config |= {"log_output": False, "save_output": True} | ({"weight": "w"} if rng.integers(2) else {})
        base = rng.normal(size=shape).astype(np.float32)
        tracker = track_outputs(config)
        state = tracker.init({"x": base, "w": np.float32(1)})

        def loss(weight: jax.Array, state: Any, base: Any = base, tracker: Any = tracker) -> Any:
            x = weight * jnp.asarray(base)
            after = tracker.update(state, {"x": x, "w": weight / weight})
            return (x**2).sum(), after

        gradient, after = DERIVATIVES[how](loss, jnp.float32(2), state)
        np.testing.assert_allclose(gradient, 4 * np.sum(base.astype(float) ** 2), rtol=1e-4)
        computed = tracker.compute(after)
        for name in wanted:
            assert computed[f"x/{name}"] == reference(name, base * np.float32(2)), (how, shape, name, config)
        assert np.array_equal(computed["x/last"], base * np.float32(2))


def test_no_gradient_flows_through_a_run_an_optimizer_or_a_metric(tmp_path: Path) -> None:
    config = [{"every_n_updates": 2, "patterns": ["loss", "norm", "field"], "reduce": ["mean", "std"]}]
    params = {"w": jnp.ones(3)}
    example = {"loss": jnp.float32(0), "field": jnp.zeros(3)}
    with Run(tmp_path, config) as run:
        optimizer = record_optimizer(optax.sgd(0.1), run, example)
        metric = TrackOutputs({"every_n_updates": 1, "keys": ["field"]}, example)

        def inner(params: Any, state: Any, metric: Any) -> Any:  # an update that is differentiated itself
            loss, gradients = jax.value_and_grad(lambda params: (params["w"] ** 2).sum())(params)
            metric.update(field=params["w"])
            given = {"loss": loss, "field": params["w"]}
            updates, state = optimizer.update(gradients, state, params, update_outputs=given)
            return (optax.apply_updates(params, updates)["w"] ** 2).sum(), state

        state, step = optimizer.init(params), nnx.jit(nnx.grad(inner, has_aux=True))
        for _ in range(4):
            gradient, state = step(params, state, metric)
            state = run.step(state)
    np.testing.assert_allclose(gradient["w"], 2 * 0.8**2 * np.ones(3), rtol=1e-6)
    assert metric.compute() == {"field": np.float32(1)}
    read = read_run(tmp_path).series
    assert read["loss/mean/U2"].value.tolist() == [3.0, 3.0]
    assert read["grad_norm/mean/U2"].value.tolist() == [np.float32(np.sqrt(12.0))] * 2


# ---------------------------------------------------------------------- vmap


def test_a_mapped_state_computes_one_result_per_member(full: bool) -> None:
    rng = np.random.default_rng(0)
    for axes in [(1,), (3,), (2, 4)] if full else [(3,), (2, 4)]:
        steps = rng.normal(size=(3, *axes, 5)).astype(np.float32)
        steps[1, ..., 0] = np.where(rng.random(axes) < 0.5, np.nan, 1)
        config = {"every_n_updates": 2, "keys": ["x", "n"], "reduce": {"x": ["mean", "max", "last"], "n": "sum"}}
        tracker = track_outputs(config | {"nonfinite": "skip", "log_output": False, "save_output": True})
        example = {"x": jax.ShapeDtypeStruct((5,), jnp.float32), "n": jnp.int32(0)}
        state = jax.tree.map(
            lambda array, axes=axes: jnp.broadcast_to(array, (*axes, *array.shape)), tracker.init(example)
        )
        update = tracker.update
        for _ in axes:
            update = jax.vmap(update)
        for step in steps:
            state = update(state, {"x": step, "n": jnp.full(axes, 2, jnp.int32)})
        computed = tracker.compute(state)
        assert np.array_equal(computed["x/last"], steps[-1])
        assert np.array_equal(computed["n"], np.full(axes, 6))
        for at in np.ndindex(*axes):
            kept = steps[(slice(None), *at)]
            kept = kept[np.isfinite(kept)]
            assert computed["x/mean"][at] == reference("mean", kept)
            assert computed["x/max"][at] == reference("max", kept)
        alone = tracker.compute(jax.tree.map(lambda array, axes=axes: array[(0,) * len(axes)], state))
        assert all(np.array_equal(alone[name], computed[name][(0,) * len(axes)]) for name in computed)


def test_a_member_without_a_value_has_nan() -> None:
    tracker = track_outputs({"every_n_updates": 2, "keys": ["x"], "nonfinite": "skip"})
    state = jax.vmap(lambda x: tracker.update(tracker.init({"x": jnp.float32(0)}), {"x": x}))(jnp.array([1.0, jnp.nan]))
    assert np.array_equal(tracker.compute(state)["x"], np.array([1, np.nan], np.float32), equal_nan=True)


def test_what_takes_one_state_refuses_several(tmp_path: Path) -> None:
    config = [{"every_n_updates": 2, "keys": ["x"]}]
    tracker, x = track_outputs(config[0]), {"x": jnp.float32(0)}
    states = jax.vmap(lambda _: tracker.init(x))(jnp.arange(3))
    with pytest.raises(NoetherError, match=r"update got a state with the leading axes \(3,\).*jax.vmap\(update\)"):
        tracker.update(states, x)
    with pytest.raises(NoetherError, match=r"merge got a state with the leading axes \(3,\)"):
        tracker.merge(states, states)
    with pytest.raises(NoetherError, match=r"compute was called while JAX traced"):
        jax.jit(lambda state: tracker.compute(state))(tracker.init(x))
    with Run(tmp_path, config) as run:
        tracked = jax.tree.map(lambda array: jnp.stack([array] * 3), run.init(x))
        tracked = jax.vmap(run.track)(tracked, {"x": jnp.arange(3.0)})
        for call in (run.step, lambda tracked: run.track(tracked, x)):
            with pytest.raises(NoetherError, match=r"with the leading axes \(3,\), as jax.vmap gives"):
                call(tracked)
        with pytest.raises(HookOrderError, match=r"run.step was called while JAX traced a function"):
            jax.jit(run.step)(run.tracked)


# ---------------------------------------------------------------------- no compilation, and guards


def values(number: int) -> dict[str, Any]:
    x = np.float32(number)
    fields = {"small": np.full((2, 3), x), "large": np.full((1 << 15,), x)}
    return {"loss": x, "n": np.int32(number), "w": np.float32(1 + number % 3), "on_host": float(number), **fields}


CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 2, "patterns": ["l", "o"], "reduce": ["mean", "std", "min"]},
    {"every_n_updates": 3, "id": "weighted", "keys": ["loss", "small"], "weight": "w"},
    {
        "every_n_updates": 4,
        "id": "last",
        "keys": ["n", "small"],
        "reduce": "last",
        "log_output": False,
        "save_output": True,
    },
]


def entries(path: Path) -> str:
    read = read_run(path)
    return repr(read.entries) + repr([(str(file.iteration), file.load()) for file in read.arrays])


def by_hooks(run: Run, steps: list[dict[str, Any]]) -> None:
    for given in steps:
        run.step(given, losses=None)
        with run.evaluate():
            run.step(given)


def by_fused(run: Run, steps: list[dict[str, Any]], **told: Any) -> None:
    tracked = run.init(steps[0])
    track = jax.jit(run.track, donate_argnums=0) if told.get("jitted", True) else run.track
    for given in steps:
        tracked = run.step(track(tracked, given))
        with run.evaluate():
            run.step(given)


def by_scanning(run: Run, steps: list[dict[str, Any]]) -> None:
    tracked = run.init(steps[0], steps_per_call=5)
    scan = jax.jit(lambda tracked, xs: jax.lax.scan(lambda c, x: (run.track(c, x), None), tracked, xs)[0])
    for start in range(0, len(steps), 5):
        part = steps[start : start + 5]
        tracked = run.step(scan(tracked, jax.tree.map(lambda *x: jnp.stack(x), *part)), steps=len(part))


WAYS: dict[str, Callable[[Run, list[dict[str, Any]]], None]] = {
    "hooks": by_hooks,
    "fused": by_fused,
    "fused, not jitted": lambda run, steps: by_fused(run, steps, jitted=False),
    "scan": by_scanning,
}


def on_device(number: int, way: str) -> dict[str, Any]:
    """Return update outputs in JAX arrays, for the hooks with a Python number (into a compiled function the user moves it)."""
    given = values(number)
    host = {"on_host": given.pop("on_host")} if way == "hooks" else {}
    return {key: jnp.asarray(value) for key, value in given.items()} | host


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "way", [way for way in WAYS if way != "fused, not jitted"]
)  # which is what disable_jit makes of it
def test_without_compilation_the_numbers_are_the_same(way: str, tmp_path: Path) -> None:
    steps = [on_device(number, way) for number in range(5)]
    for name, disabled in [("compiled", False), ("not", True)]:
        with jax.disable_jit(disabled), Run(tmp_path / name, CONFIGS) as run:
            WAYS[way](run, steps)
    assert entries(tmp_path / "compiled") == entries(tmp_path / "not")


@pytest.mark.sweep(2)
@pytest.mark.parametrize("guard", ["disallow", "disallow_explicit"])
@pytest.mark.parametrize(
    "way", [way for way in WAYS if way != "scan"]
)  # stacking transfers indices: the test's own fault
def test_transfers_are_explicit(way: str, guard: str, tmp_path: Path) -> None:
    steps = [on_device(number, way) for number in range(7)]
    with Run(tmp_path / "free", CONFIGS) as run:
        WAYS[way](run, steps)
    with jax.transfer_guard(guard), Run(tmp_path / "guarded", CONFIGS) as run:
        WAYS[way](run, steps)
        assert run.state_dict()
    assert entries(tmp_path / "guarded") == entries(tmp_path / "free")


@pytest.mark.parametrize("guard", ["disallow", "disallow_explicit"])
def test_the_transfers_of_trackers_metrics_and_optimizers_are_explicit(guard: str, tmp_path: Path) -> None:
    config = {"every_n_updates": 2, "keys": ["loss"], "reduce": ["mean", "last"]}
    losses, params = [jnp.float32(number) for number in range(4)], {"w": jnp.ones(3)}
    run = Run(tmp_path, [config], accumulation_steps=2)
    run.start()
    optimizer = record_optimizer(optax.sgd(0.1), run, {"loss": losses[0]})
    update = jax.jit(optimizer.update)
    with jax.transfer_guard(guard):
        tracker, metric, opt_state = (
            track_outputs(config),
            TrackOutputs(config, {"loss": losses[0]}),
            optimizer.init(params),
        )
        state = tracker.init({"loss": losses[0]})
        for loss in losses:
            state = tracker.update(state, {"loss": loss})
            metric.update(loss=loss)
            _, opt_state = update(params, opt_state, params, update_outputs={"loss": loss})
            opt_state = run.step(opt_state)
        assert tracker.compute(tracker.merge(state, state))["loss/mean"] == 1.5
        assert metric.compute()["loss/last"] == 3
        metric.reset()
        metric.update(loss=losses[2])
        assert metric.compute()["loss/mean"] == 2
        run.log({"mine": losses[2]})
        run.finish()
    assert read_run(tmp_path).series["loss/mean/U2"].value.tolist() == [1.5]
