"""Tracking inside of an optax optimizer: the same numbers as a loop's, whatever carries the state."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from noether_core import read_run
from noether_core.errors import HookOrderError, MissingKeyError, NoetherError, NonFiniteError, UpdateOutputError
from noether_jax import Run, track_outputs
from noether_jax.optax import record_optimizer, record_outputs, with_records, without_records

ROOT = Path(__file__).parents[1]
CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 3, "keys": ["loss"], "reduce": ["mean", "std"]},
    {"every_n_samples": 20, "id": "x", "patterns": ["n"], "reduce": "last", "save_output": True},
]
TRAINING = {"updates_per_epoch": 5, "effective_batch_size": 8, "accumulation_steps": 2}
PARAMS = {"encoder": jnp.ones(3), "decoder": {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}}


def outputs(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"loss": np.float32(rng.normal()), "n": np.int32(number)} for number in range(count)]


def stacked(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return jax.tree.map(lambda *values: np.stack(values), *steps)


def gradients(number: int) -> Any:
    return jax.tree.map(lambda array: (number + 1.0) * jnp.ones_like(array), PARAMS)


def entries(path: Path) -> str:
    read = read_run(path)
    assert read.problems == []
    return repr(read.entries) + repr([(str(file.iteration), file.load()) for file in read.arrays])


def by_hooks(path: Path, steps: list[dict[str, Any]], configs: Any = CONFIGS, **training: int) -> str:
    with Run(path, configs, **(training or TRAINING)) as run:
        for given in steps:
            run.step(update_outputs=jax.tree.map(jnp.asarray, given))
    return entries(path)


def stepping(optimizer: Any) -> Any:
    """Return a compiled update of PARAMS whose optimizer's state is donated."""

    def step(state: Any, given: Any) -> Any:
        return optimizer.update(PARAMS, state, PARAMS, update_outputs=given)[1]

    return jax.jit(step, donate_argnums=0)


def before_multi_steps(run: Run, **arguments: Any) -> Any:
    accumulated = optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
    return optax.chain(record_outputs(run, outputs(1)[0], **arguments), accumulated)


# ---------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("x64", [False, True])
def test_the_numbers_are_those_of_a_plain_loop(tmp_path: Path, x64: bool) -> None:
    steps = outputs(27)  # which ends in the middle of an update and of both intervals
    wanted = by_hooks(tmp_path / "hooks", steps)
    with jax.enable_x64(x64), Run(tmp_path / "chain", CONFIGS, **TRAINING) as run:
        optimizer = before_multi_steps(run)
        state = optimizer.init(PARAMS)
        step = stepping(optimizer)
        for given in steps:
            state = run.step(step(state, given))
        assert step._cache_size() == 1
    assert entries(tmp_path / "chain") == wanted


def test_a_scan_over_many_intervals_gives_the_same_numbers(tmp_path: Path) -> None:
    steps = outputs(40)
    wanted = by_hooks(tmp_path / "hooks", steps)
    with Run(tmp_path / "scan", CONFIGS, **TRAINING) as run:
        optimizer = before_multi_steps(run, steps_per_call=20)
        state = jax.jit(optimizer.init)(PARAMS)
        step = stepping(optimizer)
        scan = jax.jit(lambda state, xs: jax.lax.scan(lambda c, x: (step(c, x), None), state, xs)[0])
        for start in (0, 20):
            state = run.step(scan(state, stacked(steps[start : start + 20])), steps=20)
        assert scan._cache_size() == 1
    assert entries(tmp_path / "scan") == wanted


def test_inside_of_multi_steps_the_last_micro_batch_of_an_update_is_seen(tmp_path: Path) -> None:
    steps, training = outputs(24), {"updates_per_epoch": 5, "effective_batch_size": 8}
    wanted = by_hooks(tmp_path / "hooks", steps[1::2], **training)
    with Run(tmp_path / "inside", CONFIGS, **training) as run:
        recorded = optax.chain(record_outputs(run, steps[0]), optax.adam(0.1))
        optimizer = optax.MultiSteps(recorded, 2)
        state, step = optimizer.init(PARAMS), stepping(optimizer)
        for number, given in enumerate(steps, start=1):
            state = step(state, given)
            if number % 2 == 0:
                state = run.step(state)
    assert entries(tmp_path / "inside") == wanted


def test_the_updates_are_those_of_the_optimizer_alone() -> None:
    config = {"every_n_updates": 3, "patterns": [""]}
    plain = optax.sgd(0.5, momentum=0.5)  # powers of two: exact, however it is compiled
    loss = jnp.float32(1)
    chain = optax.chain(record_outputs(config, {"loss": loss}), plain)
    wrapped = record_optimizer(plain, config)
    own, in_chain, around = plain.init(PARAMS), chain.init(PARAMS), wrapped.init(PARAMS)
    for number in range(3):
        wanted, own = jax.jit(plain.update)(gradients(number), own, PARAMS)
        first, in_chain = jax.jit(chain.update)(gradients(number), in_chain, PARAMS, update_outputs={"loss": loss})
        second, around = jax.jit(wrapped.update)(gradients(number), around, PARAMS)
        for given in (first, second):
            assert jax.tree.all(jax.tree.map(np.array_equal, given, wanted))


@pytest.mark.parametrize("x64", [False, True])
def test_a_configs_state_is_found_computed_and_reset(x64: bool) -> None:
    config, example = {"every_n_updates": 2, "patterns": [""], "reduce": ["mean", "last"]}, {"loss": jnp.float32(0)}
    with jax.enable_x64(x64):
        tracker = track_outputs(config)
        optimizer = optax.chain(optax.scale(2.0), optax.named_chain(("r", record_outputs(config, example))))
        state = optimizer.init(PARAMS)
        step = stepping(optimizer)
        for interval in ([1.0, 2.0], [5.0, 6.0]):
            for loss in interval:
                before = jax.tree.map(lambda array: (array.shape, array.dtype, array.weak_type), state)
                state = step(state, {"loss": jnp.float32(loss)})
                assert jax.tree.map(lambda array: (array.shape, array.dtype, array.weak_type), state) == before
            ((path, recorded),) = optax.tree.get_all_with_path(state, "recorded")
            assert path[-1].tuple_name == "RecordState"
            assert tracker.compute(recorded) == {"loss/mean": np.mean(interval), "loss/last": interval[-1]}
            state = optax.tree.set(state, recorded=tracker.init(example))
        assert step._cache_size() == 1


def test_a_nan_is_located_and_training_may_go_on(tmp_path: Path) -> None:
    config = [{"every_n_updates": 2, "keys": ["loss"], "nonfinite": "raise"}]
    with Run(tmp_path, config, accumulation_steps=2) as run:
        optimizer = optax.chain(record_outputs(run, {"loss": jnp.float32(0)}), optax.sgd(0.1))
        state, step = optimizer.init(PARAMS), stepping(optimizer)
        for loss in (1.0, 2.0, 3.0):
            state = run.step(step(state, {"loss": jnp.float32(loss)}))
        state = step(state, {"loss": jnp.float32(np.nan)})
        with pytest.raises(NonFiniteError, match=r"first at update 2, accumulation step 1"):
            run.step(state)
        state = optax.tree.set(state, recorded=run.tracked)
        for loss in (1.0, 2.0, 3.0, 4.0):
            state = run.step(step(state, {"loss": jnp.float32(loss)}))
        assert run.log_writer.log_entries[-1]["loss/U2"] == 2.5


def test_the_run_keeps_a_state_that_is_not_donated(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIGS, **TRAINING) as run:
        optimizer = before_multi_steps(run)
        jax.jit(optimizer.init)(PARAMS)
        assert run.state_dict()["accumulated"] == 0
        state = stepping(optimizer)(optimizer.init(PARAMS), outputs(1)[0])
        assert run.state_dict()["accumulated"] == 0  # the step is not counted yet
        run.step(state)
        assert run.state_dict()["accumulated"] == 1


def test_the_shards_of_a_mesh_are_pooled(tmp_path: Path) -> None:
    config = [{"every_n_updates": 2, "patterns": ["x", "norm"], "reduce": ["mean", "count"]}]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batches = np.arange(64, dtype=np.float32).reshape(4, 16)
    with Run(tmp_path, config, accumulation_steps=2) as run:
        optimizer = record_optimizer(optax.sgd(0.5), run, {"x": jnp.zeros(2)}, axis_name="data")
        state = jax.device_put(optimizer.init(jnp.ones(4)), NamedSharding(mesh, P()))

        def update(state: Any, x: Any) -> Any:
            return optimizer.update(jnp.ones(4), state, jnp.ones(4), update_outputs={"x": x})[1]

        step = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
        for batch in batches:
            state = run.step(step(state, batch))
        (entry,) = run.log_writer.log_entries
    assert (entry["x/mean/U2"], entry["x/count/U2"]) == (31.5, 64)
    assert (entry["grad_norm/mean/U2"], entry["grad_norm/count/U2"]) == (
        2.0,
        32,
    )  # of 4 accumulation steps on 8 devices
    assert (entry["update_norm/mean/U2"], entry["update_norm/count/U2"]) == (1.0, 16)


def test_an_nnx_optimizer_carries_it(tmp_path: Path) -> None:
    with Run(tmp_path, [{"every_n_updates": 2, "patterns": [""]}]) as run:
        model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        recorded = record_optimizer(optax.adam(0.1), run, {"loss": jnp.float32(0)})
        optimizer = nnx.Optimizer(model, recorded, wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: Any, loss: Any) -> None:
            optimizer.update(
                model, nnx.grad(lambda model: model(jnp.ones(2)).sum())(model), update_outputs={"loss": loss}
            )

        for loss in (1.0, 2.0, 3.0, 4.0):
            step(model, optimizer, jnp.float32(loss))
            nnx.update(optimizer.opt_state, nnx.state(run.step(nnx.as_pure(optimizer.opt_state))))
        found = run.log_writer.log_entries
    assert [entry["loss/U2"] for entry in found] == [1.5, 3.5]
    assert found[0]["grad_norm/kernel/U2"] == np.sqrt(np.float32(2))


# ---------------------------------------------------------------------- what the optimizer knows


def recorded_numbers(optimizer: Any, params: Any, grads: Any, **arguments: Any) -> dict[str, float]:
    config = {"every_n_updates": 1, "patterns": ["norm", "learning_rate"]}
    recorder = record_optimizer(optimizer, config, **arguments)
    _, state = jax.jit(recorder.update)(grads, recorder.init(params), params)
    values = track_outputs(config).compute(optax.tree.get(state, "recorded"))
    assert all(value.dtype == np.float32 for value in values.values())
    return {key: value.item() for key, value in values.items()}


LABELS = {"encoder": "slow", "decoder": {"w": "fast", "b": "slow"}}
GROUPS = [
    ("top-level keys", None, {"encoder": 3, "decoder": 6}),
    ("labels", LABELS, {"slow": 5, "fast": 4}),
    ("a prefix", {"encoder": "one", "decoder": "two"}, {"one": 3, "two": 6}),
    ("a function", lambda tree: jax.tree.map(lambda array: array.ndim, tree), {"1": 5, "2": 4}),
]


@pytest.mark.parametrize(("what", "groups", "sizes"), GROUPS, ids=[case[0] for case in GROUPS])
def test_norms_are_by_group(what: str, groups: Any, sizes: dict[str, int]) -> None:
    found = recorded_numbers(optax.sgd(0.5), PARAMS, gradients(1), groups=groups)
    assert found.pop("param_norm") == np.sqrt(np.float32(7))
    for group, size in sizes.items():
        assert found.pop(f"grad_norm/{group}") == np.float32(2 * np.sqrt(size))
        assert found.pop(f"update_norm/{group}") == np.sqrt(np.float32(size))
        found.pop(f"param_norm/{group}")
    assert found == {"grad_norm": 6.0, "update_norm": 3.0}


def test_norms_are_summed_in_float32_at_least() -> None:
    params = {
        "half": jnp.full(300, 300, jnp.float16),
        "brain": jnp.full(1000, 0.1, jnp.bfloat16),
        "z": jnp.array([3 + 4j]),
    }
    found = recorded_numbers(optax.sgd(0.0), params, params)
    brain = float(jnp.bfloat16(0.1)) * np.sqrt(1000)
    np.testing.assert_allclose(found["grad_norm/half"], 300 * np.sqrt(300), rtol=1e-6)
    np.testing.assert_allclose(found["grad_norm/brain"], brain, rtol=1e-6)
    assert found["grad_norm/z"] == 5.0
    np.testing.assert_allclose(found["param_norm"], np.sqrt(300**3 + brain**2 + 25), rtol=1e-6)
    with jax.enable_x64(True):
        wide = {"w": jnp.full(3, 1e30), "steps": jnp.int32(7), "none": None}
        found = recorded_numbers(optax.identity(), wide, wide)
    assert found["param_norm"] == np.float32(np.sqrt(3) * 1e30)  # whose square no float32 holds
    assert "param_norm/steps" not in found
    assert recorded_numbers(optax.sgd(1.0), jnp.float32(3), jnp.float32(4)) == {
        "grad_norm": 4.0,
        "update_norm": 4.0,
        "param_norm": 3.0,
    }


SCHEDULE = optax.linear_schedule(1.0, 0.0, 4)
INJECTED = optax.inject_hyperparams(optax.sgd)
PARTED = {"slow": INJECTED(0.5), "fast": INJECTED(SCHEDULE)}
RATES = [
    ("injected", INJECTED(0.5), None, {"learning_rate": [0.5, 0.5]}),
    ("an injected schedule", INJECTED(SCHEDULE), None, {"learning_rate": [1.0, 0.75]}),
    ("a schedule", optax.adam(SCHEDULE), SCHEDULE, {"learning_rate": [1.0, 0.75]}),
    ("a number", optax.adam(0.25), 0.25, {"learning_rate": [0.25, 0.25]}),
    (
        "two in a chain",
        optax.chain(INJECTED(0.5), INJECTED(2.0)),
        None,
        {"learning_rate/0": [0.5] * 2, "learning_rate/1": [2.0] * 2},
    ),
    (
        "by group",
        optax.multi_transform(PARTED, LABELS),
        None,
        {"learning_rate/slow": [0.5, 0.5], "learning_rate/fast": [1.0, 0.75]},
    ),
    ("none", optax.adam(0.5), None, {}),
]


@pytest.mark.parametrize(("what", "optimizer", "given", "wanted"), RATES, ids=[case[0] for case in RATES])
def test_the_learning_rate_is_the_one_used(
    what: str, optimizer: Any, given: Any, wanted: dict[str, list[float]]
) -> None:
    config = {"every_n_updates": 1, "patterns": ["learning_rate", "grad_norm"], "reduce": "last"}
    recorder = record_optimizer(optimizer, config, learning_rate=given)
    state, update = recorder.init(PARAMS), jax.jit(recorder.update)
    found: dict[str, list[float]] = {}
    for number in range(2):
        _, state = update(gradients(number), state, PARAMS)
        for key, value in track_outputs(config).compute(optax.tree.get(state, "recorded")).items():
            found.setdefault(key, []).append(value.item())
    assert {key: values for key, values in found.items() if "rate" in key} == wanted


def test_around_multi_steps_an_update_has_one_update_norm(tmp_path: Path) -> None:
    keys = ["loss", "grad_norm", "update_norm", "learning_rate"]
    config = [{"every_n_updates": 2, "keys": keys, "reduce": ["mean", "count"]}]
    with Run(tmp_path, config, accumulation_steps=2) as run:
        accumulated = optax.MultiSteps(INJECTED(SCHEDULE), 2).gradient_transformation()
        optimizer = record_optimizer(accumulated, run, {"loss": jnp.float32(0)})
        state, step = optimizer.init(PARAMS), jax.jit(optimizer.update)
        for number in range(4):
            _, state = step(gradients(number), state, PARAMS, update_outputs={"loss": jnp.float32(number)})
            state = run.step(state)
    (entry,) = read_run(tmp_path).entries
    found = {key: (entry[f"{key}/mean/U2"], entry[f"{key}/count/U2"]) for key in keys}
    assert found == {
        "loss": (1.5, 4),
        "grad_norm": (7.5, 4),  # of 3, 6, 9 and 12
        "update_norm": (pytest.approx((4.5 + 0.75 * 10.5) / 2), 2),
        "learning_rate": (0.875, 2),
    }


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[ocp.CheckpointManager]:
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        yield manager


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("saved_at", [10, 14])  # in the middle of both intervals, and at an end of the first's
def test_a_restored_state_goes_on_to_the_bit(tmp_path: Path, checkpoints: ocp.CheckpointManager, saved_at: int) -> None:
    steps = outputs(40)
    wanted = by_hooks(tmp_path / "hooks", steps)
    first = Run(tmp_path / "parts", CONFIGS, **TRAINING)
    first.start()
    optimizer = before_multi_steps(first)
    state, step = optimizer.init(PARAMS), stepping(optimizer)
    for given in steps[:saved_at]:
        state = first.step(step(state, given))
    checkpoints.save(saved_at // 2, args=ocp.args.StandardSave(state))
    checkpoints.wait_until_finished()
    for given in steps[saved_at : saved_at + 3]:  # which the restart does again
        state = first.step(step(state, given))
    first.log_writer.close()  # as a killed process does
    with Run(tmp_path / "parts", CONFIGS, **TRAINING, start={"update": saved_at // 2}) as run:
        optimizer = before_multi_steps(run)
        target = jax.eval_shape(optimizer.init, PARAMS)
        state, step = checkpoints.restore(saved_at // 2, args=ocp.args.StandardRestore(target)), stepping(optimizer)
        for given in steps[saved_at:]:
            state = run.step(step(state, given))
    assert entries(tmp_path / "parts") == wanted


def test_a_state_is_not_counted_twice(tmp_path: Path) -> None:
    steps = outputs(40)
    wanted = by_hooks(tmp_path / "hooks", steps)
    first = Run(tmp_path / "parts", CONFIGS, **TRAINING)
    first.start()
    optimizer = before_multi_steps(first)
    state, step = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for given in steps[:9]:  # in the middle of an update too
        state = first.step(step(PARAMS, state, PARAMS, update_outputs=given)[1])
    saved = first.state_dict()
    first.log_writer.close()
    with Run(tmp_path / "parts", CONFIGS, **TRAINING) as run:
        run.load_state_dict(saved)
        optimizer = before_multi_steps(run)
        twice, state = state, with_records(state, optimizer.init(PARAMS))
        step = jax.jit(optimizer.update)
        for given in steps[9:]:
            state = run.step(step(PARAMS, state, PARAMS, update_outputs=given)[1])
    assert entries(tmp_path / "parts") == wanted
    run = Run(tmp_path / "twice", CONFIGS, **TRAINING)
    run.start()
    run.load_state_dict(saved)
    optimizer = before_multi_steps(run)
    optimizer.init(PARAMS)
    with pytest.raises(HookOrderError, match=r"load_state_dict has brought already.*with_records\("):
        run.step(step(PARAMS, twice, PARAMS, update_outputs=steps[9])[1])  # which ends an interval
    run.log_writer.close()


BASE = {"every_n_updates": 3, "keys": ["a"]}
CHANGES = [
    ("a key more", BASE | {"keys": ["a", "b"]}),
    ("a key less", BASE | {"keys": None, "patterns": ["norm"]}),
    ("another key", BASE | {"keys": ["b"]}),
    ("another reduction", BASE | {"reduce": ["mean", "std"]}),
    ("another interval", BASE | {"every_n_updates": 4}),
    ("nothing that comes", BASE | {"keys": None, "patterns": ["q"]}),
]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(("what", "config"), CHANGES, ids=[case[0] for case in CHANGES])
def test_under_another_config_the_moments_survive(
    checkpoints: ocp.CheckpointManager, tmp_path: Path, what: str, config: dict[str, Any]
) -> None:
    given = {"a": jnp.float32(1), "b": jnp.float32(2)}
    before, after = (record_optimizer(optax.adam(0.1), each, given) for each in (BASE, config))
    state = jax.jit(before.update)(gradients(0), before.init(PARAMS), PARAMS, update_outputs=given)[1]
    checkpoints.save(1, args=ocp.args.PyTreeSave({"whole": state, "without": without_records(state)}))
    checkpoints.wait_until_finished()
    fresh = after.init(PARAMS)
    with pytest.raises(ValueError, match=r"schema"):  # never are another key's sums taken for this one's
        checkpoints.restore(1, args=ocp.args.PyTreeRestore({"whole": fresh, "without": without_records(fresh)}))
    target = dict.fromkeys(["whole", "without"], without_records(fresh))
    restored = checkpoints.restore(1, args=ocp.args.PyTreeRestore(target, partial_restore=True))
    for each in restored.values():
        going_on = with_records(each, fresh)
        assert jax.tree.structure(going_on) == jax.tree.structure(fresh)
        assert jax.tree.all(jax.tree.map(np.array_equal, going_on.inner_state, state.inner_state))
        assert jax.tree.all(jax.tree.map(np.array_equal, going_on.record, fresh.record))


# ---------------------------------------------------------------------- what is refused


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    config, loss = {"every_n_updates": 1, "keys": ["loss"]}, {"loss": jnp.float32(0)}
    with pytest.raises(NoetherError, match=r"stack, which keeps every value"):
        record_outputs(config | {"reduce": "stack", "save_output": True}, loss)
    with pytest.raises(NoetherError, match=r"got steps_per_call=2 for a config.*give the run"):
        record_outputs(config, loss, steps_per_call=2)
    with pytest.raises(NoetherError, match=r"got a OnlineLossCallbackConfig to track outputs by"):
        record_outputs({"kind": "OnlineLossCallback", "every_n_updates": 1}, loss)
    with pytest.raises(MissingKeyError, match=r"'loss' is not among"):
        record_outputs(config, {"lost": 1.0}).init(PARAMS)
    recorder = record_outputs(config, loss)
    state = recorder.init(PARAMS)
    with pytest.raises(NoetherError, match=r"got no update outputs; call optimizer.update\(.*update_outputs=...\)"):
        recorder.update(PARAMS, state, PARAMS)
    with pytest.raises(NoetherError, match=r"records NoneType; expected what init returned, or with_records"):
        recorder.update(PARAMS, without_records(state), PARAMS, update_outputs=loss)
    with pytest.raises(
        NoetherError, match=r"the states of two different optimizers; give.*init\(params\) of the same optimizer: "
    ):
        with_records((state, state), (state,))
    with pytest.raises(NoetherError, match=r"the second has no record where the first has one"):
        with_records((state,), (without_records(state),))


def test_what_an_optimizer_cannot_give_is_refused(tmp_path: Path) -> None:
    config = {"every_n_updates": 1, "patterns": ["norm"]}
    with pytest.raises(UpdateOutputError, match=r"the example has 'grad_norm', which record_optimizer tracks itself"):
        record_optimizer(optax.sgd(0.1), config, {"grad_norm": 1.0}).init(PARAMS)
    with pytest.raises(NoetherError, match=r"the labels in groups do not fit the parameters"):
        record_optimizer(optax.sgd(0.1), config, groups={"encoder": "x"}).init(PARAMS)
    with pytest.raises(NoetherError, match=r"no count to give it; make the optimizer with that schedule"):
        record_optimizer(optax.sgd(0.1), config, learning_rate=SCHEDULE).init(PARAMS)
    with pytest.raises(MissingKeyError, match=r"'learning_rate' is not among.*'grad_norm'"):
        record_optimizer(optax.sgd(0.1), {"every_n_updates": 1, "keys": ["learning_rate"]}).init(PARAMS)
    recorder = record_optimizer(optax.sgd(0.1), config)
    with pytest.raises(NoetherError, match=r"param_norm is tracked, and update got no params"):
        recorder.update(PARAMS, recorder.init(PARAMS))


def test_a_state_in_two_places_is_refused(tmp_path: Path) -> None:
    with Run(tmp_path, [{"every_n_updates": 1, "keys": ["loss"]}]) as run:
        record = record_outputs(run, {"loss": jnp.float32(0)})
        optimizer = optax.chain(record, optax.named_chain(("again", record)))
        state = stepping(optimizer)(optimizer.init(PARAMS), {"loss": jnp.float32(1)})
        with pytest.raises(NoetherError, match=r"a tree with 2 states of tracked update outputs; expected one"):
            run.step(state)
        assert run.log_writer.log_entries[0]["loss/U1"] == 1.0


def test_step_takes_any_tree_that_holds_what_is_tracked(tmp_path: Path) -> None:
    with Run(tmp_path, [{"every_n_updates": 1, "keys": ["loss"]}]) as run:
        loss = {"loss": jnp.float32(1)}
        optimizer = optax.named_chain(("scale", optax.scale(1.0)), ("record", record_outputs(run, loss)))
        state, step = optimizer.init(PARAMS), stepping(optimizer)
        state = run.step(step(state, loss))
        assert isinstance(state, dict)
        params, (state, number) = run.step((PARAMS, [step(state, loss), 7]))
        assert (params, number) == (PARAMS, 7)
        with pytest.raises(NoetherError, match=r"update outputs"):
            run.step((PARAMS, 7))
        run.step(loss)  # and outputs are outputs still
        assert [entry["update"] for entry in run.log_writer.log_entries] == [1, 2, 3]


# ---------------------------------------------------------------------- the examples


@pytest.mark.parametrize(("name", "marked"), [("optax_plain", 3), ("optax_chain", 5)])
def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, marked: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["example", str(tmp_path / "run")])
    runpy.run_module(f"examples.{name}", run_name="__main__")
    assert "loss/E1" in capsys.readouterr().out
    run = read_run(tmp_path / "run")
    assert [point.epoch for point in run.series["loss/E1"]] == [1, 2, 3, 4]
    assert run.series["accuracy/E1"][-1].value > 0.9
    lines = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert sum(line.endswith("  # +") for line in lines) == marked
    assert len(lines) <= 60


def test_the_plain_example_trains_without_its_added_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "examples" / "optax_plain.py").read_text(encoding="utf-8").replace("EPOCHS = 4", "EPOCHS = 1")
    plain = re.sub(r"(?m)^( *)(with )?.*  # \+$", lambda line: line[1] + "if True:" if line[2] else "", source)
    assert "Run(" not in plain
    assert "run.step" not in plain
    monkeypatch.setattr(sys, "argv", ["example"])
    example: dict[str, Any] = {"__name__": "example"}
    exec(compile(plain, "optax_plain.py", "exec"), example)
    example["main"]()


def test_only_the_bridge_needs_optax() -> None:
    script = "import sys; sys.modules['optax'] = None; import noether_jax; import noether_jax.optax"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "MissingDependencyError: noether_jax.optax needs optax: pip install 'noether-callbacks[jax]'" in done.stderr
