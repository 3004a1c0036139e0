"""What a compiled function tracks is kept on its device too, if a run is told how much, and is in its capsule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from capsule_cases import Rows, capsules, ended, rows, the_capsule
from hook_cases import every
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import noether_jax
from noether_core import NonFiniteError
from noether_jax import Run, Tracked

CONFIGS = [every(5, keys=["loss", "count", "field"], reduce=["mean", "min", "max"]), every(2, keys=["loss", "double"])]
STEPS = 23


def outputs_of(step: Any) -> dict[str, Any]:
    loss = jnp.select([step == 17, step == 18], [jnp.nan, -jnp.inf], step.astype(jnp.float32) / 4)
    return {"loss": loss, "count": step * 1_000_003, "field": jnp.arange(40.0) * step, "double": loss * 2}


def wanted(last: int) -> dict[str, Rows]:
    """Return what hooks that got the same would give."""
    found: dict[str, Rows] = {}
    for step in range(STEPS)[-last:]:
        for key, value in outputs_of(jnp.int32(step)).items():
            array = np.asarray(value)
            number = array.astype(np.float64)
            what = {
                "elements": 40,
                "min": number.min(),
                "max": number.max(),
                "mean": pytest.approx(number.mean(), rel=1e-12),
            }
            found.setdefault(key, []).append(((step + 1, 0), array.item() if array.ndim == 0 else what))
    return found


def check(path: Path, last: int) -> None:
    found = rows(the_capsule(path))
    expected = wanted(last)
    assert found.keys() == expected.keys()
    for key, of_key in expected.items():
        assert [step for step, _ in found[key]] == [step for step, _ in of_key]
        for (_, value), (_, wanted_value) in zip(found[key], of_key, strict=True):
            assert value == wanted_value or (value != value and wanted_value != wanted_value), key


def example() -> dict[str, Any]:
    shapes: dict[str, Any] = jax.eval_shape(outputs_of, jnp.int32(0))
    return shapes


@pytest.mark.parametrize("last", [1, 3, 23])
def test_step_by_step(last: int, tmp_path: Path) -> None:
    def body(run: Any) -> None:
        tracked = run.init(example())
        call = jax.jit(lambda tracked, step: run.track(tracked, outputs_of(step)), donate_argnums=0)
        for step in range(STEPS):
            tracked = run.step(call(tracked, jnp.int32(step)))

    ended(Run(tmp_path, CONFIGS, flight_recorder=last), RuntimeError("gone"), body)
    check(tmp_path, last)


@pytest.mark.parametrize("last", [4, 32])
def test_in_a_scan(last: int, tmp_path: Path) -> None:
    def body(run: Any) -> None:
        tracked = run.init(example(), steps_per_call=8)

        def call(tracked: Any, first: Any, count: int) -> Any:
            steps = first + jnp.arange(count, dtype=jnp.int32)
            return jax.lax.scan(lambda tracked, step: (run.track(tracked, outputs_of(step)), None), tracked, steps)[0]

        compiled = jax.jit(call, static_argnums=2)
        for first, count in ((0, 8), (8, 8), (16, 7)):
            tracked = run.step(compiled(tracked, jnp.int32(first), count), steps=count)

    ended(Run(tmp_path, CONFIGS, flight_recorder=last), RuntimeError("gone"), body)
    check(tmp_path, min(last, STEPS))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(kind: AxisType, tmp_path: Path) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))

    def body(run: Any) -> None:
        tracked = run.init(example())

        def call(tracked: Any, step: Any, factors: Any) -> Any:
            return run.track(tracked, {**outputs_of(step), "field": factors * step})

        compiled = jax.jit(call)
        factors = jax.device_put(jnp.arange(40.0), NamedSharding(mesh, PartitionSpec("data")))
        for step in range(STEPS):
            tracked = run.step(compiled(tracked, jnp.int32(step), factors))

    with jax.set_mesh(mesh):
        ended(Run(tmp_path, CONFIGS, flight_recorder=9), RuntimeError("gone"), body)
    check(tmp_path, 9)


@pytest.mark.parametrize("way", ["shard_map", "vmap"])
def test_of_members_there_is_what_they_have_together(way: str, tmp_path: Path) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    members = jnp.arange(4, dtype=jnp.float32)

    def body(run: Any) -> None:
        tracked = run.init({"loss": jnp.float32(0)}, axis_name="data", mesh=mesh if way == "shard_map" else 4)

        def member(tracked: Any, number: Any, step: Any) -> Any:
            loss = number.reshape(()) + step
            return run.track(tracked, {"loss": jnp.where(loss == 11, jnp.nan, loss)})

        spec, none = PartitionSpec("data"), PartitionSpec()
        call: Any = jax.vmap(member, in_axes=(0, 0, None), axis_name="data")
        if way == "shard_map":
            call = jax.shard_map(member, mesh=mesh, in_specs=(spec, spec, none), out_specs=spec)
        step_of = jax.jit(lambda tracked, step: call(tracked, members, step))
        for step in range(10):
            tracked = run.step(step_of(tracked, jnp.float32(step)))

    ended(Run(tmp_path, [every(4)], flight_recorder=3), RuntimeError("gone"), body)
    assert rows(the_capsule(tmp_path))["loss"] == [
        ((8, 0), {"elements": 4, "mean": 8.5}),
        ((9, 0), {"elements": 4, "mean": 9.0, "nan": 1}),
        ((10, 0), {"elements": 4, "mean": pytest.approx((9 + 10 + 12) / 3), "nan": 1}),
    ]


def test_a_value_that_is_not_finite_leaves_it_when_the_step_raises(tmp_path: Path) -> None:
    run = Run(tmp_path, [every(5, nonfinite="raise")], flight_recorder=4)
    run.start()
    tracked = run.init(example())
    call = jax.jit(lambda tracked, step: run.track(tracked, outputs_of(step)), donate_argnums=0)
    for step in range(19):
        tracked = run.step(call(tracked, jnp.int32(step)))
    with pytest.raises(NonFiniteError) as caught:
        run.step(call(tracked, jnp.int32(19)))
    assert caught.value.capsule == the_capsule(tmp_path).path
    assert [step for step, _ in rows(the_capsule(tmp_path))["loss"]] == [(17, 0), (18, 0), (19, 0), (20, 0)]
    run.step(call(run.tracked, jnp.int32(20)))
    run.finish()


def test_what_was_donated_and_lost_is_noted(tmp_path: Path) -> None:
    def body(run: Any) -> None:
        tracked = run.init(example())
        call = jax.jit(lambda tracked, step: run.track(tracked, outputs_of(step)), donate_argnums=0)
        call(run.step(call(tracked, jnp.int32(0))), jnp.int32(1))

    ended(Run(tmp_path, [every(5)], flight_recorder=4), RuntimeError("gone"), body)
    capsule = the_capsule(tmp_path)
    assert "was donated" in capsule.about["notes"][0]
    assert capsule.values == []


def test_before_the_first_step_there_is_no_capsule(tmp_path: Path) -> None:
    ended(Run(tmp_path, [every(5)], flight_recorder=4), RuntimeError("gone"), lambda run: run.init(example()))
    assert not capsules(tmp_path)


def test_without_a_number_what_is_carried_is_as_before_and_the_capsule_says_what_to_do(tmp_path: Path) -> None:
    def body(run: Any) -> None:
        assert type(run.init(example())) is Tracked

    ended(Run(tmp_path, [every(5)]), RuntimeError("gone"), body)
    assert "Run(flight_recorder=N) keeps it" in the_capsule(tmp_path).about["notes"][0]


def test_what_is_carried_comes_back_from_flax(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    with noether_jax.Run(tmp_path, CONFIGS, flight_recorder=3) as run:
        blank = tracked = run.init(example())
        for step in range(4):
            tracked = run.step(run.track(tracked, outputs_of(jnp.int32(step))))
        again = serialization.from_bytes(blank, serialization.to_bytes(tracked))
    assert jax.tree.structure(again) == jax.tree.structure(tracked)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(tracked)))
