"""A run whose outputs are reduced inside of a compiled step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import noether_torch
from noether_core import read_run
from noether_core.errors import HookOrderError, MissingKeyError, NoetherError, NonFiniteError
from noether_jax import Run

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 3, "keys": ["loss"], "reduce": ["mean", "std"]},
    {"every_n_samples": 20, "id": "x", "patterns": ["n"], "reduce": "last", "save_output": True},
]
TRAINING = {"updates_per_epoch": 5, "effective_batch_size": 8, "accumulation_steps": 2}


def outputs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"loss": np.float32(rng.normal()), "n": np.int32(number)} for number in range(count)]


def entries(path: Path) -> str:
    read = read_run(path)
    return repr(read.entries) + repr([(str(file.iteration), file.load()) for file in read.arrays])


def by_hooks(path: Path, steps: list[dict[str, Any]]) -> str:
    with Run(path, CONFIGS, **TRAINING) as run:
        for given in steps:
            run.step(update_outputs=jax.tree.map(jnp.asarray, given))
    return entries(path)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the transfers to the host (JAX's own transfer guard sees none where the device is the CPU)."""
    made: list[int] = []
    original = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: (made.append(1), original(tree))[1])
    return made


def test_one_transfer_at_an_intervals_end_and_none_between(tmp_path: Path, copies: list[int]) -> None:
    steps = outputs(60)
    with Run(tmp_path, CONFIGS, **TRAINING) as run:
        tracked = run.init(steps[0])
        step = jax.jit(run.track, donate_argnums=0)
        made = []
        for given in steps:
            before = len(copies)
            tracked = run.step(step(tracked, given))
            made.append(len(copies) - before)
    ends = [update for update in range(1, 31) if update % 3 == 0 or (update * 8) // 20 > ((update - 1) * 8) // 20]
    assert made == [int(number % 2 == 1 and (number + 1) // 2 in ends) for number in range(60)]
    assert step._cache_size() == 1  # neither the first interval nor a later one is compiled anew


def test_hooks_synchronise_at_an_intervals_end_only(tmp_path: Path, copies: list[int]) -> None:
    with Run(tmp_path, CONFIGS[:1], **TRAINING) as run:
        made = []
        for given in outputs(30):
            before = len(copies)
            run.step(update_outputs=jax.tree.map(jnp.asarray, given))
            made.append(len(copies) - before)
    assert made == [int(number % 6 == 5) for number in range(30)]


@pytest.mark.parametrize("split", [1, 7, 13, 29])
def test_a_state_goes_from_jax_to_torch_and_back(tmp_path: Path, split: int) -> None:
    steps = outputs(40)
    wanted = by_hooks(tmp_path / "hooks", steps)
    saved = None
    for part, (start, stop) in enumerate([(0, split), (split, split + 4), (split + 4, 40)]):
        make = noether_torch.Run if part == 1 else Run
        run = make(tmp_path / "parts", CONFIGS, **TRAINING)
        run.start()
        if saved is not None:
            run.load_state_dict(saved)
        if part == 1:
            for given in steps[start:stop]:
                run.step(update_outputs={key: run.backend.from_numpy(value) for key, value in given.items()})
        else:
            tracked = run.init(steps[0])
            step = jax.jit(run.track, donate_argnums=0)
            for given in steps[start:stop]:
                tracked = run.step(step(tracked, given))
        saved = run.state_dict()
        if part == 2:
            run.finish()
        run.log_writer.close()  # the others just stop, as a killed process does
    assert entries(tmp_path / "parts") == wanted


def test_a_training_may_end_in_an_interval(tmp_path: Path) -> None:
    steps = outputs(26)
    wanted = by_hooks(tmp_path / "hooks", steps)
    with Run(tmp_path / "fused", CONFIGS, **TRAINING) as run:
        tracked = run.init(steps[0], steps_per_call=10)
        scan = jax.jit(lambda tracked, xs: jax.lax.scan(lambda c, x: (run.track(c, x), None), tracked, xs)[0])
        for start in range(0, 26, 10):
            part = steps[start : start + 10]
            tracked = run.step(scan(tracked, jax.tree.map(lambda *x: np.stack(x), *part)), steps=len(part))
    assert entries(tmp_path / "fused") == wanted


def test_a_mesh_changes_neither_numbers_nor_compilations(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    config = [{"every_n_updates": 3, "keys": ["x"], "reduce": ["mean", "var"]}]
    batches = np.random.default_rng(0).normal(size=(9, 64)).astype(np.float32)
    with Run(tmp_path / "one", config) as run:
        for batch in batches:
            run.step(update_outputs={"x": jnp.asarray(batch)})
    with Run(tmp_path / "mesh", config) as run:
        tracked = jax.device_put(run.init({"x": jnp.zeros(64)}), NamedSharding(mesh, P()))
        step = jax.jit(run.track, donate_argnums=0)
        for batch in batches:
            tracked = run.step(step(tracked, {"x": jax.device_put(batch, NamedSharding(mesh, P("data")))}))
        assert step._cache_size() == 1
    with Run(tmp_path / "shards", config) as run:
        tracked = run.init({"x": jnp.zeros(8)}, axis_name="data", mesh=mesh)
        mapped = jax.jit(
            jax.shard_map(
                lambda tracked, x: run.track(tracked, {"x": x}), mesh=mesh, in_specs=P("data"), out_specs=P("data")
            )
        )
        for batch in batches:
            tracked = run.step(mapped(tracked, batch))
        assert mapped._cache_size() == 1
    assert entries(tmp_path / "one") == entries(tmp_path / "mesh") == entries(tmp_path / "shards")


def test_the_first_nonfinite_value_is_located(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        bad = int(rng.integers(0, 12))
        config = [{"every_n_updates": 6, "keys": ["loss"], "nonfinite": "raise"}]
        with Run(tmp_path / str(number), config, accumulation_steps=2) as run:
            tracked = run.init({"loss": jnp.float32(0)}, steps_per_call=12)
            values = np.ones(12, np.float32)
            values[bad] = rng.choice([np.nan, np.inf, -np.inf])
            if bad < 11:
                values[rng.integers(bad + 1, 12)] = np.nan
            tracked = jax.lax.scan(lambda c, x: (run.track(c, {"loss": x}), None), tracked, values)[0]
            with pytest.raises(NonFiniteError, match=rf"first at update {bad // 2 + 1}, accumulation step {bad % 2}"):
                run.step(tracked, steps=12)
            run.step(run.track(run.tracked, {"loss": jnp.float32(1)}))  # and training may go on


def test_what_cannot_be_tracked_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "a", CONFIGS, **TRAINING)
    with pytest.raises(HookOrderError, match=r"run.track needs run.init first"):
        run.track(None, {})
    with pytest.raises(MissingKeyError, match=r"'loss' is not among"):
        run.init({"n": 1})
    with pytest.raises(NoetherError, match=r"steps_per_call=0; expected an int of at least 1"):
        run.init(outputs(1)[0], steps_per_call=0)
    tracked = run.init(outputs(1)[0])
    with pytest.raises(HookOrderError, match=r"with run:"):
        run.step(tracked)
    with pytest.raises(NoetherError, match=r"run.track got dict as tracked"):
        run.track({}, {})
    with run:
        with pytest.raises(HookOrderError, match=r"steps=2; expected 1 to 1.*steps_per_call"):
            run.step(tracked, steps=2)
        run.load_state_dict(run.state_dict())
        with pytest.raises(HookOrderError, match=r"call run.init after load_state_dict"):
            run.step(tracked)
    with (
        Run(tmp_path / "b", CONFIGS, effective_batch_size=1, record=tmp_path / "r.safetensors") as recorded,
        pytest.raises(NoetherError, match=r"leave record out"),
    ):
        recorded.init(outputs(1)[0])


def test_a_forgotten_step_is_noticed(tmp_path: Path) -> None:
    run = Run(tmp_path, CONFIGS[:1], **TRAINING)
    run.start()
    tracked = run.init(outputs(1)[0])
    for _ in range(5):
        tracked = run.step(tracked)
    with pytest.raises(HookOrderError, match=r"holds 0 calls of run.track since run.init, and run.step counted 6"):
        run.step(tracked)
    run.log_writer.close()


def test_a_donated_state_is_named(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIGS[:1], **TRAINING) as run:
        tracked = run.init(outputs(1)[0])
        step = jax.jit(run.track, donate_argnums=0)
        tracked = run.step(step(tracked, outputs(1)[0]))
        new = step(tracked, outputs(1)[0])
        with pytest.raises(HookOrderError, match=r"was donated.*call run.step with it"):
            run.state_dict()
        run.step(new)
        assert run.state_dict()["callbacks"]
