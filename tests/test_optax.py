"""Tracking inside of an optax optimizer: the same numbers as a loop's, whatever carries the state."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from optax_cases import (
    CONFIGS,
    PARAMS,
    SCHEDULE,
    TRAINING,
    before_multi_steps,
    by_hooks,
    entries,
    gradients,
    outputs,
    stacked,
    stepping,
)

from noether_core.errors import MissingKeyError, NoetherError, NonFiniteError, UpdateOutputError
from noether_jax import Run, track_outputs
from noether_jax.optax import record_optimizer, record_outputs, record_specs, with_records, without_records

ROOT = Path(__file__).parents[1]


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
        optimizer = record_optimizer(optax.sgd(0.5), run, {"x": jnp.zeros(2)}, axis_name="data", mesh=mesh)
        state = optimizer.init(jnp.ones(4))
        specs = record_specs(state, "data")

        def update(state: Any, x: Any) -> Any:
            return optimizer.update(jnp.ones(4), state, jnp.ones(4), update_outputs={"x": x})[1]

        step = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=(specs, P("data")), out_specs=specs))
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
        with pytest.raises(NoetherError, match=r"update_outputs is tuple"):
            run.step((PARAMS, 7))
        run.step(loss)  # and outputs are outputs still
        assert [entry["update"] for entry in run.log_writer.log_entries] == [1, 2, 3]


# ---------------------------------------------------------------------- the examples


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
    assert "MissingDependencyError: noether_jax.optax needs optax" in done.stderr
    assert "pip install '.[jax]'" in done.stderr
