"""What a compiled function carried, given back wrongly: not taken, of another config, of another place in the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from noether_core import read_run
from noether_core.errors import HookOrderError, NoetherError
from noether_jax import OutputTracker, Run, track_outputs
from noether_jax.optax import record_outputs


def scanning(run: Run) -> Any:
    return jax.jit(lambda tracked, xs: jax.lax.scan(lambda c, x: (run.track(c, {"loss": x}), None), tracked, xs)[0])


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(12))
def test_a_result_that_is_not_taken_is_noticed_at_the_next_interval(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    accumulation, chunk = int(rng.integers(1, 3)), int(rng.choice([1, 1, 2, 5]))
    config = [{"every_n_updates": int(n), "keys": ["loss"], "id": str(n)} for n in rng.permutation([1, 2, 3, 5])[:2]]
    is_loaded, in_optimizer = rng.integers(2), rng.integers(2)
    first_end = min(each["every_n_updates"] for each in config) * accumulation
    run = Run(tmp_path, config, accumulation_steps=accumulation)
    run.start()
    begin = 0
    if is_loaded:
        begin = int(rng.integers(1, 4))
        for _ in range(begin):
            run.step({"loss": jnp.float32(1)})
        run.load_state_dict(run.state_dict())
    if in_optimizer:
        optimizer = optax.chain(record_outputs(run, {"loss": jnp.float32(0)}, steps_per_call=chunk), optax.sgd(0.1))
        state = optimizer.init({"w": jnp.ones(2)})

        def steps(state: Any, losses: Any) -> Any:
            for loss in losses:
                state = optimizer.update({"w": jnp.ones(2)}, state, update_outputs={"loss": loss})[1]
            return state
    else:
        state, steps = run.init({"loss": jnp.float32(0)}, steps_per_call=chunk), scanning(run)
    last_of_first = -(-(first_end - begin % first_end) // chunk)  # the call that ends the first interval after init

    def go(state: Any, calls: int) -> None:
        for _ in range(calls):
            state = steps(state, jnp.ones(chunk))
            run.step(state, steps=chunk)

    longest = max(each["every_n_updates"] for each in config) * accumulation
    with pytest.raises(HookOrderError, match=r"Take what run.step returns.*tracked = run.step\(tracked\)"):
        go(state, last_of_first + longest)
    run.log_writer.close()
    for series in read_run(tmp_path).series.values():
        assert set(series.value.tolist()) == {1.0}


def test_means_are_right_up_to_the_error(tmp_path: Path) -> None:
    run = Run(tmp_path, [{"every_n_updates": 2, "keys": ["loss"]}])
    run.start()
    tracked = run.init({"loss": jnp.float32(0)})
    for loss in range(1, 4):
        tracked = run.track(tracked, {"loss": jnp.float32(loss)})
        taken = run.step(tracked)
        if loss == 2:
            right = taken
    wrong = run.track(tracked, {"loss": jnp.float32(4)})
    for _ in range(2):  # what failed was not counted
        with pytest.raises(HookOrderError, match=r"4 steps were tracked where 2 were to come"):
            run.step(wrong)
    for loss in range(3, 5):
        right = run.track(right, {"loss": jnp.float32(loss)})
    run.step(right)
    run.finish()
    assert read_run(tmp_path).series["loss/U2"].value.tolist() == [1.5, 3.5]


EXAMPLE = {"a": jnp.float32(0), "b": jnp.float32(0), "w": jnp.float32(0), "v": jnp.float32(0), "n": jnp.int32(0)}


def drawn(rng: np.random.Generator) -> dict[str, Any]:
    config: dict[str, Any] = {"keys": [str(key) for key in rng.permutation(["a", "b", "n"])[: rng.integers(1, 4)]]}
    wanted = [str(name) for name in rng.permutation(["mean", "std", "min", "last", "sum"])[: rng.integers(1, 3)]]
    config["reduce"] = {key: wanted if rng.integers(3) else "last" for key in config["keys"]}
    if rng.integers(3) == 0:
        config["weight"] = str(rng.choice(["w", "v"]))
    return config


def filled(tracker: OutputTracker) -> Any:
    state = tracker.init(EXAMPLE)
    for number in (1, 2):
        state = tracker.update(
            state, {key: jnp.asarray(at + number, value.dtype) for at, (key, value) in enumerate(EXAMPLE.items())}
        )
    return state


def test_arrays_of_another_config_are_refused_or_give_the_right_numbers() -> None:
    """Lose the structure on the way, as a checkpoint of leaves does, and put the arrays into another config's."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        saved, own = ({"every_n_updates": 2, **drawn(rng)} for _ in range(2))
        if rng.integers(5) == 0:
            own = saved
        tracker = track_outputs(own)
        leaves = jax.tree.leaves(filled(track_outputs(saved)))
        structure = jax.tree.structure(tracker.init(EXAMPLE))
        if structure.num_leaves != len(leaves):
            continue
        state = jax.tree.unflatten(structure, leaves)
        try:
            computed = tracker.compute(state)
            tracker.compute(tracker.update(state, EXAMPLE))
        except NoetherError as error:
            refused += "made by another config" in str(error)
        else:
            wanted = tracker.compute(filled(tracker))
            assert computed.keys() == wanted.keys()
            assert all(np.array_equal(computed[name], wanted[name]) for name in wanted), (saved, own)
    assert refused > 5


@pytest.mark.parametrize("precisions", [("binary64", "binary32"), ("binary32", "binary64")])
def test_sums_of_another_precision_are_refused(precisions: tuple[Any, Any]) -> None:
    config = {"every_n_updates": 2, "keys": ["a"]}
    saved, own = (track_outputs(config, precision=precision) for precision in precisions)
    state = jax.tree.unflatten(jax.tree.structure(own.init(EXAMPLE)), jax.tree.leaves(filled(saved)))
    with pytest.raises(NoetherError, match=r"made by another config"):
        own.compute(state)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("seed", range(8))
def test_an_optimizers_state_of_another_config_is_refused(seed: int, tmp_path: Path) -> None:
    """Go on from the arrays, or from the whole state, that a run of another config left in the middle of an interval."""
    rng = np.random.default_rng(seed)
    params = {"w": jnp.ones(2)}
    every = {"every_n_updates": int(rng.integers(2, 5))}
    configs = [every | drawn(rng), every | drawn(rng)]
    if seed < 3:  # what used to go through: the same form, other meanings
        keys = [["a", "b"], ["b", "a"], ["a", "b"]][seed]
        configs = [
            every | {"keys": ["a", "b"], "reduce": ["mean", "std"]},
            every | {"keys": keys, "reduce": ["mean", "std"]},
        ]
        configs[1] |= [{"keys": ["a", "w"]}, {"keys": ["b", "v"]}, {"every_n_updates": every["every_n_updates"] + 1}][
            seed
        ]
    optimizers, states = [], []
    for number, config in enumerate(configs):
        run = Run(
            tmp_path / str(number), [config | {"log_output": False, "save_output": True}], start={"update": number}
        )
        run.start()
        optimizers.append((run, optax.chain(record_outputs(run, EXAMPLE), optax.sgd(0.1))))
        states.append(optimizers[-1][1].init(params))
    (first, before), (second, after) = optimizers
    given = {key: value + 1 for key, value in EXAMPLE.items()}
    state = first.step(before.update(params, states[0], params, update_outputs=given)[1])
    structure = jax.tree.structure(states[1])
    arrays = jax.tree.leaves(state)
    whole_or_arrays = (
        state if rng.integers(2) or structure.num_leaves != len(arrays) else jax.tree.unflatten(structure, arrays)
    )
    if configs[0] != configs[1]:

        def go(state: Any) -> None:
            for _ in range(9):
                state = second.step(after.update(params, state, params, update_outputs=given)[1])

        with pytest.raises(NoetherError, match=r"config|example"):
            go(whole_or_arrays)
    for run in (first, second):
        run.log_writer.close()


# ---------------------------------------------------------------------- what else run.step takes


def test_a_fused_step_drops_no_argument(tmp_path: Path) -> None:
    configs: list[Any] = [
        {"every_n_updates": 2, "keys": ["x"]},
        {"kind": "OnlineLossCallback", "every_n_updates": 2},
        {"kind": "ThroughputCallback", "every_n_updates": 2},
    ]
    logs = []
    for way in ("hooks", "fused"):
        with Run(tmp_path / way, configs, accumulation_steps=2, effective_batch_size=4) as run:
            tracked = run.init({"x": jnp.float32(0)}) if way == "fused" else None
            for number in range(12):
                given = {"x": jnp.float32(number)}
                told: dict[str, Any] = {
                    "losses": {"total": jnp.float32(number)},
                    "samples": 1 + number % 3,
                    "batch": {},
                }
                told["times"] = {"data": 0.5}
                if tracked is None:
                    run.step(given, **told)
                else:
                    tracked = run.step(run.track(tracked, given), **told)
        entries = read_run(tmp_path / way).entries
        logs.append(
            [{k: v for k, v in entry.items() if "per_second" not in k and "time" not in k} for entry in entries]
        )
    assert logs[0] == logs[1]
    assert any("loss" in key for key in logs[0][0])


def test_a_fused_step_refuses_what_it_cannot_honour(tmp_path: Path) -> None:
    with Run(tmp_path, [{"every_n_samples": 8, "keys": ["x"]}], effective_batch_size=4) as run:
        tracked = run.track(run.init({"x": jnp.float32(0)}, steps_per_call=3), {"x": jnp.float32(0)})
        for told, reason in [
            ({"samples": 3}, "laid out by effective_batch_size"),
            ({"ends_update": True}, "laid out by accumulation_steps"),
            ({"ends_epoch": False}, "laid out by updates_per_epoch"),
            ({"steps": 2, "losses": {"total": 1.0}}, "it made 2 steps; track the losses too"),
        ]:
            with pytest.raises(HookOrderError, match=f"together with what run.track returned: .*{reason}"):
                run.step(tracked, **told)
        with run.evaluate(), pytest.raises(HookOrderError, match=r"within run.evaluate"):
            run.step(tracked)
        run.step(tracked)  # and nothing was counted before
        assert run.counter.update == 1
