"""Update outputs on meshes of explicit, automatic and manual axes, sharded in any way, in every way to track them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from noether_core import read_run
from noether_jax import Run, track_outputs
from noether_jax.flax import TrackOutputs
from noether_jax.optax import record_optimizer, record_outputs

SAVED = {"save_output": True, "log_output": False}
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
DTYPES = ["float32", "bfloat16", "float16", "int32", "int8", "uint32", "bool"]
SHAPES = [(), (1,), (1, 1), (8,), (3, 5), (16, 8), (8, 2, 4), (40, 64), (160, 128)]  # the last is read by itself


@cache
def meshes() -> dict[str, Mesh]:
    """Return meshes by their names; those of all devices in one order first."""
    devices = np.array(jax.devices())
    square = devices.reshape(4, 2)
    return {
        "explicit": jax.make_mesh((4, 2), ("a", "b")),
        "line": jax.make_mesh((8,), ("data",)),
        "auto": Mesh(square, ("a", "b"), axis_types=(AUTO, AUTO)),
        "mixed": Mesh(square, ("a", "b"), axis_types=(AUTO, EXPLICIT)),
        "cube": Mesh(devices.reshape(2, 2, 2), ("x", "y", "z"), axis_types=(EXPLICIT, AUTO, EXPLICIT)),
        "reversed": Mesh(square[::-1, ::-1], ("a", "b"), axis_types=(EXPLICIT, EXPLICIT)),
        "half": Mesh(devices[:4], ("data",), axis_types=(EXPLICIT,)),
        "other half": Mesh(devices[4:].reshape(2, 2), ("a", "b"), axis_types=(EXPLICIT, EXPLICIT)),
        "one": Mesh(devices[2:3], ("data",), axis_types=(EXPLICIT,)),
    }


WHOLE = ["explicit", "line", "auto", "mixed", "cube"]


def a_sharding(draw: random.Random, mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Return a random sharding of an array: by rows, by columns, by several axes at once, or none."""
    free, spec = list(mesh.axis_names), []
    draw.shuffle(free)
    for size in shape:
        names: list[str] = []
        while (
            free
            and draw.random() < 0.6
            and size % (mesh.shape[free[-1]] * np.prod([mesh.shape[n] for n in names])) == 0
        ):
            names.append(free.pop())
        spec.append(tuple(names) if len(names) > 1 else names[0] if names else None)
    return NamedSharding(mesh, P(*spec))


def put(draw: random.Random, value: np.ndarray, places: list[str]) -> Any:
    """Return a value on one of the meshes, or where JAX puts it, or on one device of its own, or on the host."""
    place = draw.choice(places)
    if place == "host":
        return value
    if place == "device":
        return jax.device_put(value, draw.choice(jax.devices()))
    return (
        jnp.asarray(value) if place == "any" else jax.device_put(value, a_sharding(draw, meshes()[place], value.shape))
    )


def a_case(
    seed: int, without: tuple[str, ...] = ()
) -> tuple[random.Random, dict[str, Any], list[dict[str, np.ndarray]]]:
    """Return a config and update outputs whose sums are exact in binary64, so that every bit is one device's."""
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    wanted = [each for each in ("mean", "std", "min", "max", "count", "last") if each not in without]
    config: dict[str, Any] = {"every_n_updates": 3, "patterns": ["x"], "reduce": draw.sample(wanted, 3)}
    config |= {"nonfinite": "skip", **SAVED}
    one = draw.choice(SHAPES[3:])
    weight = draw.choice([None, (), one])
    shapes = {f"x{at}": one if weight else draw.choice(SHAPES) for at in range(draw.randint(1, 4))}
    if weight is not None:
        config["weight"], shapes["w"] = "w", weight
    kinds = {key: "float32" if key == "w" else draw.choice(DTYPES) for key in shapes}

    def a_value(key: str) -> np.ndarray:
        value = rng.integers(0, 2 if kinds[key] == "bool" else 9, shapes[key]).astype(jnp.dtype(kinds[key]))
        if value.ndim and "float" in kinds[key] and draw.random() < 0.2:
            value.flat[draw.randrange(value.size)] = draw.choice([np.nan, np.inf])
        return value

    return draw, config, [{key: a_value(key) for key in shapes} for _ in range(6)]


def logged(path: Path) -> str:
    found = read_run(path)
    return repr(found.entries) + repr([(str(file.iteration), file.load()) for file in found.arrays])


def wanted_of(path: Path, config: dict[str, Any], steps: list[dict[str, np.ndarray]]) -> str:
    with Run(path, [config]) as run:
        for given in steps:
            run.step(jax.tree.map(jnp.asarray, given))
    return logged(path)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(120))
def test_hooks_take_any_mixture_of_meshes(seed: int, tmp_path: Path) -> None:
    draw, config, steps = a_case(seed)
    set_mesh = draw.choice([None, "explicit", "auto", "half"])
    with jax.set_mesh(meshes()[set_mesh]) if set_mesh else nullcontext(), Run(tmp_path / "meshes", [config]) as run:
        for given in steps:
            arrays = {key: put(draw, value, [*meshes(), "host", "device", "any"]) for key, value in given.items()}
            run.step(arrays)
            if draw.random() < 0.5:
                jax.tree.map(lambda array: array.delete() if isinstance(array, jax.Array) else None, arrays)
        assert set_mesh is None or jax.sharding.get_abstract_mesh() == meshes()[set_mesh].abstract_mesh
    assert logged(tmp_path / "meshes") == wanted_of(tmp_path / "one", config, steps)


def by_jit(run: Run, example: Any, steps: list[Any], mesh: Mesh | None) -> None:
    tracked = run.init(example)
    if mesh is not None:
        tracked = jax.device_put(tracked, NamedSharding(mesh, P()))
    traced = []

    def track(tracked: Any, given: Any) -> Any:
        traced.append(given)
        return run.track(tracked, given)

    # XLA may give what is donated from no mesh another sharding than what takes its place
    step = jax.jit(track, donate_argnums=() if mesh is None else 0)
    for given in steps:
        tracked = run.step(step(tracked, given))
        assert mesh is None or jax.typeof(tracked.position).sharding.mesh == mesh.abstract_mesh
    assert mesh is None or AUTO in mesh.axis_types or len(traced) == 1


def by_scan(run: Run, example: Any, steps: list[Any], mesh: Mesh | None) -> None:
    tracked = run.init(example, steps_per_call=2)
    if mesh is not None:
        tracked = jax.device_put(tracked, NamedSharding(mesh, P()))
    step = jax.jit(lambda tracked, given: jax.lax.scan(lambda c, _: (run.track(c, given), None), tracked, length=2)[0])
    for given in steps[::2]:
        tracked = run.step(step(tracked, given), steps=2)


def by_optax(run: Run, example: Any, steps: list[Any], mesh: Mesh | None) -> None:
    optimizer = optax.chain(record_outputs(run, example), optax.adam(0.1))
    place = {} if mesh is None else {"device": NamedSharding(mesh, P())}
    params = jnp.ones(8, **place)
    state = jax.device_put(optimizer.init(params), place.get("device"))
    update = jax.jit(lambda state, given: optimizer.update(params, state, params, update_outputs=given)[1])
    for given in steps:
        state = run.step(update(state, given))


def by_calls(run: Run, example: Any, steps: list[Any], mesh: Mesh | None) -> None:
    tracked = run.init(example)
    if mesh is not None:
        tracked = jax.device_put(tracked, NamedSharding(mesh, P()))
    for given in steps:
        tracked = run.step(run.track(tracked, given))


WAYS: list[Callable[[Run, Any, list[Any], Mesh | None], None]] = [by_jit, by_scan, by_optax, by_calls]


@pytest.mark.sweep(1)
@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_compiled_functions_take_any_mixture_of_meshes(way: Any, seed: int, tmp_path: Path) -> None:
    draw, config, steps = a_case(seed + 1000)
    places = ["explicit"] if draw.random() < 0.3 else [*WHOLE, "host", "any"]
    first = {key: put(draw, value, places) for key, value in steps[0].items()}
    placed = [
        {
            key: jax.device_put(value, place)
            if isinstance(place := getattr(first[key], "sharding", None), NamedSharding)
            else value
            for key, value in given.items()
        }
        for given in steps
    ]
    if way is by_scan:
        steps = [given for given in steps[::2] for _ in range(2)]
    mesh = draw.choice([None, *(meshes()[name] for name in WHOLE)])
    set_mesh = draw.choice([None, meshes()["explicit"], meshes()["auto"]])
    if way is by_optax and set_mesh is not None:
        mesh = set_mesh  # for Adam's own arrays must be of the mesh that is set
    with jax.set_mesh(set_mesh) if set_mesh else nullcontext(), Run(tmp_path / "meshes", [config]) as run:
        way(run, steps[0], placed, mesh)
    assert logged(tmp_path / "meshes") == wanted_of(tmp_path / "one", config, steps)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("axes", [{"a", "b"}, {"a"}, {"b"}], ids=["both", "a", "b"])
@pytest.mark.parametrize("name", ["explicit", "auto", "mixed"])
def test_shards_are_pooled_with_some_axes_manual(name: str, axes: set[str], tmp_path: Path) -> None:
    mesh, names = meshes()[name], tuple(sorted(axes))
    if name == "mixed" and axes != {"a", "b"}:
        pytest.skip("JAX itself takes no mesh of explicit and automatic axes with one of them manual")
    batches = np.random.default_rng(0).integers(0, 99, (4, 16, 8)).astype(np.float32)
    config = {"every_n_updates": 2, "keys": ["x", "top"], "reduce": ["mean", "std", "max"]}
    shape = (16 // int(np.prod([mesh.shape[each] for each in names])), 8)
    with Run(tmp_path / "meshes", [config]) as run, jax.set_mesh(mesh):
        example = {"x": jnp.zeros(shape), "top": jnp.float32(0)}
        tracked = run.init(example, axis_name=names, mesh=mesh)
        mapped = jax.jit(
            jax.shard_map(
                lambda tracked, x: run.track(tracked, {"x": x, "top": jnp.max(x)}),
                in_specs=(P(names), P(names)),
                out_specs=P(names),
                axis_names=axes,
            )
        )
        for batch in batches:
            placed = jax.device_put(batch, NamedSharding(mesh, P(names, *({"a", "b"} - axes))))
            tracked = run.step(mapped(tracked, placed))
    tops = batches.reshape(4, -1, *shape).max((2, 3))
    steps = [{"x": batch, "top": top} for batch, top in zip(batches, tops, strict=True)]
    assert logged(tmp_path / "meshes") == wanted_of(tmp_path / "one", config, steps)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("precision", ["binary64", "binary32"])
@pytest.mark.parametrize("weight", [None, "w"])
@pytest.mark.parametrize("name", ["explicit", "auto"])
def test_large_arrays_are_reduced_where_their_shards_are(name: str, weight: str | None, precision: Any) -> None:
    mesh = meshes()[name]
    config = {"every_n_updates": 1, "keys": ["x"], "reduce": ["mean", "std", "max"], "weight": weight}
    tracker = track_outputs(config, precision=precision)
    value = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    given = {"x": value, "w": np.abs(value)}
    placed = jax.device_put(given, NamedSharding(mesh, P("b", "a")))
    state = tracker.init(given)
    compiled = jax.jit(tracker.update).lower(jax.device_put(state, NamedSharding(mesh, P())), placed).compile()
    moved = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute|all-reduce)", compiled.as_text()
    )
    assert moved
    assert max(np.prod([int(size) for size in shape.split(",") if size]) for shape in moved) < 1000
    found = compiled(jax.device_put(state, NamedSharding(mesh, P())), placed)
    assert found.words.sharding.is_fully_replicated
    assert tracker.compute(found) == tracker.compute(jax.jit(tracker.update)(state, given))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("weight", [None, "w"])
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize("elements", [8, 160, 1600, 20000])
def test_a_steps_exchanges_do_not_grow_with_arrays_or_devices(
    elements: int, kind: AxisType, weight: str | None
) -> None:
    reduce = ["mean", "std", "min", "max", "count"]
    tracker = track_outputs({"every_n_updates": 1, "patterns": ["x", "s"], "reduce": reduce, "weight": weight})
    exchange = r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    counts = {}
    for keys in (1, 6):
        rng, given = np.random.default_rng(0), {"s": np.float32(3), "w": np.float32(0.5)}
        given |= {f"x{key}": rng.normal(size=(8, elements // 8)).astype(np.float32) for key in range(keys)}
        state = tracker.init(given)
        whole = tracker.compute(jax.jit(tracker.update)(state, given))
        for devices in (2, 8):
            mesh = jax.make_mesh((devices,), ("d",), devices=jax.devices()[:devices], axis_types=(kind,))
            shardings = {key: NamedSharding(mesh, P("d") if np.ndim(value) else P()) for key, value in given.items()}
            placed = jax.device_put(given, shardings), jax.device_put(state, NamedSharding(mesh, P()))
            compiled = jax.jit(tracker.update).lower(placed[1], placed[0]).compile()
            counts[devices, keys] = len(re.findall(exchange, compiled.as_text()))
            found = tracker.compute(compiled(placed[1], placed[0]))
            assert found == whole
    if elements <= 2**14:
        assert set(counts.values()) == {1}
    assert [counts[8, keys] for keys in (1, 6)] == [counts[2, keys] for keys in (1, 6)]
    assert counts[8, 6] < 20  # of large ones XLA joins most exchanges of all keys


def test_the_sums_that_a_sharding_leaves_open_are_made(tmp_path: Path) -> None:
    mesh = meshes()["explicit"]
    config = {"every_n_updates": 1, "keys": ["x", "top"], "reduce": ["mean", "std", "last"], **SAVED}
    value = np.arange(128, dtype=np.float32).reshape(16, 8)
    steps = [{"x": value.sum(0), "top": value.sum()}]
    wanted = wanted_of(tmp_path / "one", config, steps)
    with jax.set_mesh(mesh):
        open_sums = jax.jit(
            jax.shard_map(
                lambda x: {"x": x.sum(0), "top": x.sum()},
                in_specs=P(("a", "b")),
                out_specs={"x": P(None, unreduced={"a", "b"}), "top": P(unreduced={"a", "b"})},
            )
        )(jax.device_put(value, NamedSharding(mesh, P(("a", "b")))))
    assert jax.typeof(open_sums["x"]).sharding.spec.unreduced
    with Run(tmp_path / "hooks", [config]) as run:
        run.step(open_sums)
    with Run(tmp_path / "jit", [config]) as run:
        run.step(jax.jit(run.track)(run.init(steps[0]), open_sums))
    assert logged(tmp_path / "hooks") == logged(tmp_path / "jit") == wanted


def test_members_of_vmap_and_gradients_on_a_mesh() -> None:
    mesh = meshes()["explicit"]
    tracker = track_outputs({"every_n_updates": 1, "keys": ["x"], "reduce": ["mean", "last"], **SAVED})
    value = np.arange(128, dtype=np.float32).reshape(8, 16)
    state = tracker.init({"x": value[0]})
    states = jax.tree.map(lambda array: jnp.stack([array] * 8), state)
    for spec in (P(), P("a"), P(None, "a"), P("b", "a")):
        placed = jax.device_put(value, NamedSharding(mesh, spec))
        members = jax.device_put(states, NamedSharding(mesh, P(*spec[:1])))
        found = tracker.compute(jax.jit(jax.vmap(lambda s, x: tracker.update(s, {"x": x})))(members, placed))
        assert np.array_equal(found["x/mean"], value.mean(1))
        assert np.array_equal(found["x/last"], value)

        def loss(w: Any, x: Any) -> Any:
            return jnp.sum(w * x), tracker.update(tracker.init({"x": value}), {"x": w * x})

        (_, new), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.float32(2), placed)
        assert slope == value.sum()
        assert tracker.compute(new)["x/mean"] == 2 * value.mean()


@pytest.mark.sweep(2)
@pytest.mark.parametrize("elements", [96, 1600])
@pytest.mark.parametrize("name", ["explicit", "auto"])
def test_members_of_vmap_that_lie_on_their_own_devices_exchange_nothing(name: str, elements: int) -> None:
    mesh = meshes()[name]
    tracker = track_outputs({"every_n_updates": 1, "keys": ["x"], "reduce": ["mean", "std"]})
    value = np.random.default_rng(0).normal(size=(8, elements)).astype(np.float32)
    states = jax.tree.map(lambda array: jnp.stack([array] * 8), tracker.init({"x": value[0]}))
    wanted = tracker.compute(jax.jit(jax.vmap(tracker.update))(states, {"x": value}))
    placed = jax.device_put((states, {"x": value}), NamedSharding(mesh, P(("a", "b"))))
    compiled = jax.jit(jax.vmap(tracker.update)).lower(*placed).compile()
    assert not re.findall(r" (?:all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", compiled.as_text())
    np.testing.assert_equal(tracker.compute(compiled(*placed)), wanted)
    by_rows = (
        jax.device_put(states, NamedSharding(mesh, P("a"))),
        {"x": jax.device_put(value, NamedSharding(mesh, P("a", "b")))},
    )
    for update in (tracker.update, jax.jit(tracker.update)):
        found = jax.jit(jax.vmap(update, spmd_axis_name="a"))(*by_rows)
        np.testing.assert_equal(tracker.compute(found), wanted)


def test_states_of_two_meshes_are_merged() -> None:
    tracker = track_outputs({"every_n_updates": 1, "keys": ["x"], "reduce": ["sum", "last"], **SAVED})
    parts = []
    for name, spec in (("explicit", P(None, "a")), ("line", P("data"))):
        value = jax.device_put(np.ones((8, 4), np.float32), NamedSharding(meshes()[name], spec))
        state = jax.device_put(tracker.init({"x": value}), NamedSharding(meshes()[name], P()))
        parts.append(tracker.update(state, {"x": value}))
    for merge in (tracker.merge, jax.jit(tracker.merge)):
        assert tracker.compute(merge(*parts))["x/sum"] == 64


def test_the_norms_of_a_sharded_model_are_recorded(tmp_path: Path) -> None:
    mesh = meshes()["explicit"]
    params = {"w": np.full((8, 4), 3.0, np.float32), "b": np.zeros(8, np.float32), "c": np.float32(2)}
    specs = {"w": P("a", "b"), "b": P("b"), "c": P()}
    with Run(tmp_path, [{"every_n_updates": 1, "patterns": ["norm"]}]) as run:
        optimizer = record_optimizer(optax.sgd(0.5), run)
        placed = jax.tree.map(lambda value, spec: jax.device_put(value, NamedSharding(mesh, spec)), params, specs)
        state = optimizer.init(placed)
        _, state = jax.jit(optimizer.update)(placed, state, placed)
        run.step(state)
    entry = run.log_writer.log_entries[-1]
    assert entry["grad_norm/U1"] == entry["param_norm/U1"] == np.sqrt(np.float32(9 * 32 + 4))


def test_an_nnx_metric_takes_any_mesh() -> None:
    value = np.arange(32, dtype=np.float32).reshape(8, 4)
    metric = TrackOutputs({"every_n_updates": 1, "keys": ["x"]}, {"x": value})
    for name, spec in (("explicit", P("b", "a")), ("line", P("data")), ("auto", P("a"))):
        metric.update(x=jax.device_put(value, NamedSharding(meshes()[name], spec)))
    assert metric.compute()["x"] == value.mean()
