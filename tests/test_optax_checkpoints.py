"""Optimizers that record, saved and restored by Orbax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from optax_cases import CONFIGS, PARAMS, TRAINING, before_multi_steps, by_hooks, entries, gradients, outputs, stepping

from noether_core.errors import HookOrderError
from noether_jax import Run
from noether_jax.optax import record_optimizer, with_records, without_records


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
