"""The learning rate is read from an update output, an optimizer or a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_callback_cases import array, each_front_end, entry, points

import noether_jax
import noether_torch
from noether_core import LearningRateCallbackConfig, MissingKeyError, NoetherError, UpdateOutputError, read_run
from noether_core.callbacks.learning_rate import distinct, read_rates


@each_front_end
def test_the_learning_rate_of_the_intervals_last_update_is_logged(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [entry("LearningRateCallback", 2)]) as run:
        for rate in (1.0, 0.5, 0.25):
            run.step({"lr": array(front_end, rate)})
    assert points(tmp_path) == {"optim/lr/U2": [(2, 0.5), (3, 0.25)]}


def test_a_dict_of_learning_rates_is_logged_by_name(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("LearningRateCallback", 1)]) as run:
        run.step({"lr": {"trunk": 0.1, "head": 0.2}, "lr_scale": 3.0})
    assert points(tmp_path) == {"optim/lr/head/U1": [(1, 0.2)], "optim/lr/trunk/U1": [(1, 0.1)]}


def test_a_learning_rate_that_is_absent_names_the_closest_key(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("LearningRateCallback", key="rate")]) as run:
        with pytest.raises(MissingKeyError, match=r"'rate' is not among .* have 'rat', 'v'.* Did you mean 'rat'"):
            run.step({"rat": 0.1, "v": 1.0})
        run.step(None)  # a step without outputs has no learning rate to look for


def torch_groups(names: bool) -> tuple[Any, Callable[[], None]]:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": torch.tensor(0.5)}]
    if names:
        groups[0]["name"], groups[1]["name"] = "trunk", "head"
    optimizer = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    return optimizer, lambda: (optimizer.step(), schedule.step())[0]


@pytest.mark.parametrize(("names", "found"), [(True, ["trunk", "head"]), (False, ["0", "1"])])
def test_the_rates_of_torch_parameter_groups_are_logged(names: bool, found: list[str], tmp_path: Path) -> None:
    optimizer, advance = torch_groups(names)
    with noether_torch.Run(
        tmp_path, [{"kind": "LearningRateCallback", "every_n_updates": 2, "source": optimizer}]
    ) as run:
        for _ in range(3):
            advance()
            run.step()
    assert points(tmp_path) == {
        f"optim/lr/{found[0]}/U2": [(2, 0.5), (3, 0.25)],
        f"optim/lr/{found[1]}/U2": [(2, 0.25), (3, 0.125)],
    }
    assert "source" not in (tmp_path / "config.yaml").read_text(encoding="utf-8")


def test_optax_states_and_schedules_are_read(tmp_path: Path) -> None:
    schedule = optax.exponential_decay(1.0, 1, 0.5)
    chain = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(learning_rate=schedule))
    weights = {"w": jnp.zeros(2)}
    state = [chain.init(weights)]
    sources = {"state": lambda _: state[0], "schedule": schedule}
    configs = [
        noether_jax.LearningRateCallbackConfig(every_n_updates=every, source=source)
        for every, source in zip((2, 3), sources.values(), strict=True)
    ]
    with noether_jax.Run(tmp_path, configs) as run:
        for _ in range(6):
            _, state[0] = jax.jit(chain.update)(weights, state[0], weights)
            run.step()
    # both are the rate that the update was made with: 0.5 to the updates before it
    assert points(tmp_path) == {
        "optim/lr/U2": [(2, 0.5), (4, 0.125), (6, 0.03125)],
        "optim/lr/U3": [(3, 0.25), (6, 0.03125)],
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (optax.adam(0.1).init(jnp.zeros(2)), "optax's state of inject_hyperparams"),
        (lambda _: "slow", "the learning rate '' is str 'slow'"),
        (lambda _: None, "expected a number"),
    ],
)
def test_a_source_without_a_learning_rate_says_what_it_could_be(source: Any, message: str, tmp_path: Path) -> None:
    run = noether_jax.Run(tmp_path, [{"kind": "LearningRateCallback", "every_n_updates": 1, "source": source}])
    run.start()
    with pytest.raises(UpdateOutputError) as caught:
        run.step()
    assert message in str(caught.value)
    run.log_writer.close()


@pytest.mark.parametrize(
    ("fields", "got"), [({"key": None}, "neither key nor source"), ({"source": dict}, "both key and source")]
)
def test_a_learning_rate_has_one_place(fields: dict[str, Any], got: str, tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match=got):
        noether_jax.Run(tmp_path, [entry("LearningRateCallback", **fields)])


def test_a_learning_rate_that_never_comes_is_reported(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("LearningRateCallback", 1)]) as run:
        with pytest.warns(
            UserWarning, match=r"a whole interval had no update outputs to read 'lr' from; give them to run"
        ):
            run.step(None)
        run.step(None)  # warned about once


@pytest.mark.parametrize("scheduler_first", [False, True])
def test_the_rate_logged_is_the_one_the_update_used(scheduler_first: bool, tmp_path: Path) -> None:
    """Whether the scheduler steps before or after the run does, or the optimizer in between."""
    parameters = [torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    config = LearningRateCallbackConfig(every_n_updates=1, source=optimizer)
    used = []
    with noether_torch.Run(tmp_path, [config]) as run:
        for _ in range(4):
            parameters[0].grad = torch.ones(2)
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if scheduler_first:
                scheduler.step()
            run.step()
            if not scheduler_first:
                scheduler.step()
    assert read_run(tmp_path).series["optim/lr/U1"].value.tolist() == used == [1.0, 0.5, 0.25, 0.125]
    assert not optimizer._optimizer_step_post_hooks


NAMES = st.lists(
    st.sampled_from(["decay", "bias", "decay/0", "decay/1", "0", "1", "decay/0/1", ""]), min_size=2, max_size=7
)


@given(NAMES)
def test_groups_that_share_a_name_are_all_logged(names: list[str]) -> None:
    found = distinct([(name, at) for at, name in enumerate(names)])
    assert sorted(found.values()) == list(range(len(names)))
    for name in names:
        if names.count(name) == 1 and not any(other != name and name.startswith(f"{other}/") for other in names):
            assert name in found


def test_two_groups_of_one_name_are_two_series(tmp_path: Path) -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "name": "decay"} for lr in (0.1, 0.2)]
    config = LearningRateCallbackConfig(every_n_updates=1, source=torch.optim.SGD(groups))
    with noether_torch.Run(tmp_path, [config]) as run:
        run.step()
    assert {key: series.value.tolist() for key, series in read_run(tmp_path).series.items()} == {
        "optim/lr/decay/0/U1": [0.1],
        "optim/lr/decay/1/U1": [0.2],
    }


def test_what_reduce_on_plateau_scales_is_part_of_the_rate(tmp_path: Path) -> None:
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    inner = optax.inject_hyperparams(lambda learning_rate: optax.chain(optax.sgd(learning_rate), plateau))(
        learning_rate=0.1
    )
    outer = optax.chain(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), plateau)
    for name, optimizer in (("inner", inner), ("outer", outer)):
        params = {"w": jnp.ones(())}
        state = optimizer.init(params)
        moved = []
        config = LearningRateCallbackConfig(every_n_updates=1, source=lambda _: state)  # noqa: B023 - as a loop has it
        with noether_jax.Run(tmp_path / name, [config]) as run:
            for _ in range(6):
                updates, state = optimizer.update({"w": jnp.ones(())}, state, params, value=1.0)
                moved.append(-float(updates["w"]))
                run.step()
        assert read_run(tmp_path / name).series["optim/lr/U1"].value.tolist() == pytest.approx(moved)
        assert moved[0] > moved[-1]


def test_rates_of_labelled_parts_go_by_their_labels() -> None:
    parts = {
        label: optax.inject_hyperparams(optax.sgd)(learning_rate=rate) for label, rate in (("a", 0.5), ("b", 0.25))
    }
    state = optax.multi_transform(parts, {"x": "a", "y": "b"}).init({"x": jnp.ones(1), "y": jnp.ones(1)})
    assert {name: float(rate) for name, rate in read_rates(state, 0).items()} == {"a": 0.5, "b": 0.25}
