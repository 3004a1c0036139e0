"""A state with a row for each member of mapped axes: the numbers of one device, and no exchange in a step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from noether_core import read_run
from noether_core.errors import HookOrderError, NoetherError, UpdateOutputError
from noether_jax import Run, track_outputs
from noether_jax.optax import record_optimizer, record_outputs, record_specs

COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast")
REDUCTIONS = ["mean", "std", "var", "min", "max", "sum", "count"]
CONFIG: dict[str, Any] = {"every_n_updates": 2, "patterns": ["x"], "reduce": ["mean", "count"]}


def mesh_of(shape: dict[str, int], kind: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(kind,) * len(shape))


def entries(path: Path) -> str:
    return repr(read_run(path).entries)


def on_one(path: Path, configs: list[Any], steps: list[dict[str, Any]], **told: Any) -> str:
    with Run(path, configs, **told) as run:
        for outputs in steps:
            run.step(update_outputs=jax.tree.map(jnp.asarray, outputs))
    return entries(path)


# ---------------------------------------------------------------------- the numbers


def drawn(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Return a config, how a run counts, and steps of values whose leading axis is shared out."""
    keys = [str(key) for key in rng.permutation(["a", "b", "n"])[: rng.integers(1, 4)]]
    config: dict[str, Any] = {
        "every_n_updates": int(rng.integers(1, 4)),
        "keys": keys,
        "reduce": [str(name) for name in rng.permutation(REDUCTIONS)[: rng.integers(1, 5)]],
    }
    if rng.integers(3) == 0:
        config["weight"] = "w"
    size, scale = 8 * int(rng.choice([1, 2, 5])), 10.0 ** rng.integers(-20, 20)
    steps = []
    for _ in range(int(rng.integers(4, 9))):
        a = (scale * rng.normal(size=size)).astype(np.float32)
        if rng.integers(4) == 0:
            a[rng.integers(size)] = rng.choice([np.nan, np.inf, -np.inf])
        b = (1e6 + rng.normal(size=(size, 3))).astype(np.float32)
        b = b[:, 0] if "weight" in config else b
        n = rng.integers(-(2**31), 2**31, size).astype(np.int32)
        steps.append({"a": a, "b": b, "n": n, "w": rng.random(size).astype(np.float32)})
    return config, {"accumulation_steps": int(rng.integers(1, 3))}, steps


def meshes(rng: np.random.Generator) -> tuple[Mesh, str | tuple[str, ...]]:
    shape, names = [
        ({"data": 8}, "data"),
        ({"data": 1}, "data"),
        ({"data": 4, "model": 2}, "data"),  # the values are the same along the other axis, and count once
        ({"model": 2, "data": 4}, "data"),
        ({"data": 4, "model": 2}, ("data", "model")),
        ({"data": 2, "fsdp": 2, "model": 2}, ("data", "fsdp")),
        ({"data": 2, "fsdp": 2, "model": 2}, ("model", "data")),
    ][rng.integers(7)]
    return mesh_of(shape, [AxisType.Auto, AxisType.Explicit][rng.integers(2)]), names


@pytest.mark.sweep(8)
@pytest.mark.parametrize("seed", range(120))
def test_the_numbers_are_those_of_one_device(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    config, told, steps = drawn(rng)
    mesh, names = meshes(rng)
    chunk = int(rng.choice([1, 1, 2, 3]))
    members = int(np.prod([mesh.shape[name] for name in ([names] if isinstance(names, str) else names)]))
    with Run(tmp_path / "members", [config], **told) as run:
        local = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(x) // members, *x.shape[1:]), x.dtype), steps[0])
        tracked = run.init(local, axis_name=names, mesh=mesh, steps_per_call=chunk)

        def scan(tracked: Any, stacked: Any) -> Any:
            return jax.lax.scan(lambda carry, outputs: (run.track(carry, outputs), None), tracked, stacked)[0]

        step = jax.jit(
            jax.shard_map(scan, mesh=mesh, in_specs=(P(names), P(None, names)), out_specs=P(names)), donate_argnums=0
        )
        for at in range(0, len(steps), chunk):
            part = steps[at : at + chunk]
            given = jax.device_put(
                jax.tree.map(lambda *each: np.stack(each), *part), jax.sharding.NamedSharding(mesh, P(None, names))
            )
            tracked = run.step(step(tracked, given), steps=len(part))
        assert step._cache_size() == 1 + (len(steps) % chunk != 0 and len(steps) > chunk)
    assert entries(tmp_path / "members") == on_one(tmp_path / "one", [config], steps, **told)


@pytest.mark.parametrize("precision", ["binary64", "binary32"])
def test_vmap_and_merge_and_compute(precision: Any) -> None:
    config = {"every_n_updates": 1, "keys": ["a"], "reduce": REDUCTIONS}
    values = (1e3 + np.random.default_rng(0).normal(size=(6, 4))).astype(np.float32)
    tracker = track_outputs(config, axis_name="data", mesh=4, precision=precision)
    update = jax.jit(jax.vmap(lambda state, a: tracker.update(state, {"a": a}), axis_name="data"))
    parts = []
    for half in (values[:3], values[3:]):
        state = tracker.init({"a": jnp.float32(0)})
        for row in half:
            state = update(state, row)
        parts.append(state)
    whole = track_outputs(config)
    one = whole.init({"a": values})
    assert tracker.compute(tracker.merge(*parts)) == whole.compute(whole.update(one, {"a": values}))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("told", [{}, {"axis_names": {"data"}}, {"check_vma": False}])
def test_shard_map_as_it_may_be_called(told: dict[str, Any], kind: AxisType, tmp_path: Path) -> None:
    mesh = mesh_of({"data": 4, "model": 2}, kind)
    batches = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    with Run(tmp_path / "members", [CONFIG]) as run, jax.set_mesh(mesh):
        tracked = run.init({"x": jnp.zeros(2)}, axis_name="data")
        step = jax.jit(
            jax.shard_map(
                lambda tracked, x: run.track(tracked, {"x": x}),
                in_specs=(P("data"), P("data")),
                out_specs=P("data"),
                **told,
            ),
            donate_argnums=0,
        )
        for batch in batches:
            tracked = run.step(step(tracked, jax.device_put(batch, P("data"))))
        assert step._cache_size() == 1
    assert entries(tmp_path / "members") == on_one(tmp_path / "one", [CONFIG], [{"x": batch} for batch in batches])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("is_jitted", [False, True])
def test_an_optimizer_carries_the_rows(is_jitted: bool, kind: AxisType, tmp_path: Path) -> None:
    mesh = mesh_of({"data": 8}, kind)
    batches = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    with Run(tmp_path / "members", [CONFIG], accumulation_steps=2) as run, jax.set_mesh(mesh):
        optimizer = optax.chain(record_outputs(run, {"x": jnp.zeros(2)}, axis_name="data"), optax.adam(0.1))
        params = jax.device_put(jnp.ones(4), P())
        state = (jax.jit(optimizer.init) if is_jitted else optimizer.init)(params)
        specs = record_specs(state, "data")

        def update(state: Any, x: Any) -> Any:
            return optimizer.update(jnp.ones(4), state, jnp.ones(4), update_outputs={"x": x})[1]

        step = jax.jit(jax.shard_map(update, in_specs=(specs, P("data")), out_specs=specs))
        for batch in batches:
            state = run.step(step(state, jax.device_put(batch, P("data"))))
    steps = [{"x": batch} for batch in batches]
    assert entries(tmp_path / "members") == on_one(tmp_path / "one", [CONFIG], steps, accumulation_steps=2)


# ---------------------------------------------------------------------- no exchange in a step


def by_shard_map(devices: int, path: Path) -> str:
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    run = Run(path, [CONFIG])
    tracked = run.init({"x": jnp.zeros(8)}, axis_name="data", mesh=mesh)
    step = jax.jit(
        jax.shard_map(
            lambda tracked, x: run.track(tracked, {"x": x}), mesh=mesh, in_specs=P("data"), out_specs=P("data")
        )
    )
    return str(step.lower(tracked, np.zeros(8 * devices, np.float32)).compile().as_text())


def by_scan(devices: int, path: Path) -> str:
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    run = Run(path, [CONFIG])
    tracked = run.init({"x": jnp.zeros(8)}, axis_name="data", mesh=mesh, steps_per_call=5)

    def scan(tracked: Any, xs: Any) -> Any:
        return jax.lax.scan(lambda carry, x: (run.track(carry, {"x": x}), None), tracked, xs)[0]

    step = jax.jit(jax.shard_map(scan, mesh=mesh, in_specs=(P("data"), P(None, "data")), out_specs=P("data")))
    return str(step.lower(tracked, np.zeros((5, 8 * devices), np.float32)).compile().as_text())


def by_optax(devices: int, path: Path) -> str:
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    optimizer = record_optimizer(
        optax.adam(0.1), Run(path, [CONFIG], accumulation_steps=2), {"x": jnp.zeros(8)}, axis_name="data", mesh=mesh
    )
    state = optimizer.init(jnp.ones(4))
    specs = record_specs(state, "data")

    def update(state: Any, x: Any) -> Any:
        return optimizer.update(jnp.ones(4), state, jnp.ones(4), update_outputs={"x": x})[1]

    step = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=(specs, P("data")), out_specs=specs))
    return str(step.lower(state, np.zeros(8 * devices, np.float32)).compile().as_text())


@pytest.mark.parametrize("way", [by_shard_map, by_scan, by_optax])
def test_a_compiled_step_exchanges_nothing_and_does_not_grow(way: Any, tmp_path: Path) -> None:
    texts = [way(devices, tmp_path / str(devices)) for devices in (2, 8)]
    assert not [COLLECTIVE.findall(text) for text in texts if COLLECTIVE.search(text)]
    lengths = [text.count("\n") for text in texts]
    assert lengths[0] == lengths[1]


# ---------------------------------------------------------------------- states that go elsewhere and come back


def one_step(run: Run, mesh: Mesh) -> Any:
    return jax.jit(
        jax.shard_map(
            lambda tracked, x: run.track(tracked, {"x": x}), mesh=mesh, in_specs=P("data"), out_specs=P("data")
        )
    )


def test_a_state_dict_goes_to_another_number_of_members(tmp_path: Path) -> None:
    batches = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
    saved = None
    for part, (members, start, stop) in enumerate([(8, 0, 3), (2, 3, 6), (4, 6, 7)]):
        mesh = jax.make_mesh((members,), ("data",), devices=jax.devices()[:members], axis_types=(AxisType.Auto,))
        run = Run(tmp_path / "parts", [CONFIG | {"every_n_updates": 5}])
        run.start()
        if saved is not None:
            run.load_state_dict(saved)
        tracked = run.init({"x": jnp.zeros(8 // members)}, axis_name="data", mesh=mesh)
        step = one_step(run, mesh)
        for batch in batches[start:stop]:
            tracked = run.step(step(tracked, batch))
        saved = run.state_dict()
        if part == 2:
            run.finish()
        run.log_writer.close()
    wanted = on_one(tmp_path / "one", [CONFIG | {"every_n_updates": 5}], [{"x": batch} for batch in batches])
    assert entries(tmp_path / "parts") == wanted


@pytest.mark.parametrize("way", ["orbax", "flax"])
def test_a_checkpoint_of_what_is_carried_comes_back(way: str, tmp_path: Path) -> None:
    mesh = mesh_of({"data": 8})
    batches = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    config = CONFIG | {"every_n_updates": 3}
    run = Run(tmp_path / "parts", [config])
    run.start()
    tracked, step = run.init({"x": jnp.zeros(1)}, axis_name="data", mesh=mesh), None
    for batch in batches[:4]:
        step = step or one_step(run, mesh)
        tracked = run.step(step(tracked, batch))
    if way == "orbax":
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "saved", tracked)
    data = flax.serialization.to_bytes(tracked)
    run.log_writer.close()
    with Run(tmp_path / "parts", [config], start={"update": 4}) as run:
        fresh = run.init({"x": jnp.zeros(1)}, axis_name="data", mesh=mesh)
        if way == "orbax":
            with orbax.checkpoint.StandardCheckpointer() as checkpointer:
                tracked = checkpointer.restore(tmp_path / "saved", fresh)
        else:
            tracked = flax.serialization.from_bytes(fresh, data)
        step = one_step(run, mesh)
        for batch in batches[4:]:
            tracked = run.step(step(tracked, batch))
    assert entries(tmp_path / "parts") == on_one(tmp_path / "one", [config], [{"x": batch} for batch in batches])


@pytest.mark.parametrize("donated", [(), (0,)])
def test_pmap_goes_on_over_an_intervals_end(donated: tuple[int, ...], tmp_path: Path) -> None:
    config = {"every_n_updates": 2, "keys": ["x"], "reduce": ["mean", "std"]}
    values = np.random.default_rng(0).normal(size=(6, 8, 33)).astype(np.float32)
    with Run(tmp_path / "one", [config]) as run:
        for value in values:
            run.step({"x": value})
    wanted = run.log_writer.log_entries
    with Run(tmp_path / "pmap", [config]) as run:
        tracked = run.init({"x": values[0, 0]}, axis_name="data", mesh=8)
        step = jax.pmap(lambda tracked, x: run.track(tracked, {"x": x}), axis_name="data", donate_argnums=donated)
        for value in values:
            tracked = run.step(step(tracked, value))
    assert run.log_writer.log_entries == wanted


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("way", ["vmap", "pmap"])
@pytest.mark.parametrize("members", [1, 4, 16])
def test_another_number_of_members_is_named(members: int, way: str) -> None:
    tracker = track_outputs(CONFIG, axis_name="data", mesh=members)
    own = jax.tree.map(lambda array: array[0], tracker.init({"x": jnp.zeros(3)}))
    mapped = getattr(jax, way)(lambda x: tracker.update(own, {"x": x}), axis_name="data")
    with pytest.raises(
        NoetherError, match=rf"over 8 members of \('data',\), and the state was made for {members}; .*mesh=8"
    ):
        mapped(jnp.ones((8, 3)))


def test_misuse_is_named(tmp_path: Path) -> None:
    mesh, two = mesh_of({"data": 8}), mesh_of({"data": 4, "model": 2})
    run = Run(tmp_path, [CONFIG])
    run.start()
    example = {"x": jnp.zeros(1)}
    for told, message in [
        ({"axis_name": "data"}, r"without mesh.*give mesh=mesh too.*spec PartitionSpec\('data'\)"),
        ({"mesh": mesh}, r"without axis_name"),
        ({"axis_name": "batch", "mesh": mesh}, r"axis_name has \['batch'\], and the mesh the axes \['data'\]"),
        ({"axis_name": ("data", "data"), "mesh": mesh}, r"a tuple of such, each once"),
        ({"axis_name": 3, "mesh": mesh}, r"axis_name=3; expected the name"),
        ({"axis_name": "data", "mesh": 0}, r"mesh=0; expected"),
        ({"axis_name": "data", "mesh": "data"}, r"mesh='data'; expected"),
    ]:
        with pytest.raises(NoetherError, match=message):
            run.init(example, **told)
    with jax.set_mesh(mesh):
        tracked = run.init(example, axis_name="data")
    x = np.zeros(8, np.float32)

    def mapped(in_specs: Any, out_specs: Any, over: Mesh = mesh, values: Any = x) -> Any:
        def track(tracked: Any, x: Any) -> Any:
            return run.track(tracked, {"x": x.reshape(-1)})

        return jax.shard_map(track, mesh=over, in_specs=in_specs, out_specs=out_specs)(run.tracked, values)

    with pytest.raises(
        NoetherError, match=r"leading axes \(8,\) inside of.*give shard_map the spec PartitionSpec\('data"
    ):
        mapped((P(), P("data")), P())
    with pytest.raises(NoetherError, match=r"run.track was called outside of a function that is mapped over"):
        run.track(tracked, example)
    with pytest.raises(NoetherError, match=r"run.step got .* leading axes \(\); expected a row for each of the 8"):
        run.step(jax.tree.map(lambda array: array[0], tracked))
    with pytest.raises(NoetherError, match=r"run.step got .* leading axes \(4,\); expected a row for each of the 8"):
        run.step(jax.tree.map(lambda array: array[:4], tracked))
    with pytest.raises(NoetherError, match=r"init was called inside"):
        jax.shard_map(
            lambda _: run.init(example, axis_name="data", mesh=mesh), mesh=mesh, in_specs=P("data"), out_specs=P()
        )(x)
    run.init(example, axis_name="data", mesh=two)
    with pytest.raises(UpdateOutputError, match=r"varies over the mapped axes \['model'\] too.*'data', 'model'"):
        mapped((P("data"), P(("data", "model"))), P("data"), two)
    tracked = run.step(mapped((P("data"), P()), P("data"), two, np.zeros(1, np.float32)))
    torn = mapped((P("data"), P()), P("data"), two, np.zeros(1, np.float32))
    position = jnp.asarray(np.array([2, 2, 1, 2], np.int32))
    with pytest.raises(HookOrderError, match=r"holds 1 calls of run.track since run.init, and run.step counted 2"):
        run.step(type(torn)(position, torn.windows))
    run.log_writer.close()


def test_an_optimizer_is_initialised_outside(tmp_path: Path) -> None:
    mesh = mesh_of({"data": 8})
    run = Run(tmp_path, [CONFIG])
    optimizer = optax.chain(record_outputs(run, {"x": jnp.zeros(1)}, axis_name="data", mesh=mesh), optax.sgd(0.1))
    with pytest.raises(NoetherError, match=r"init was called inside of the function that is mapped over 'data'"):
        jax.shard_map(optimizer.init, mesh=mesh, in_specs=P(), out_specs=P())(jnp.ones(2))


def test_the_page_runs_on_eight_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1].joinpath("docs", "jax_fused.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(source, {})
    series = read_run(tmp_path / "runs" / "devices").series
    assert {name: len(points.value) for name, points in series.items()} == {"losses/mean/U10": 2, "losses/std/U10": 2}
