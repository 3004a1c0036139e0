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
from small_callback_cases import array, each_front_end, entry, points

import noether_jax
import noether_torch
from noether_core import MissingKeyError, NoetherError, UpdateOutputError


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
def test_torch_parameter_groups_are_read_at_the_intervals_end(names: bool, found: list[str], tmp_path: Path) -> None:
    optimizer, advance = torch_groups(names)
    with noether_torch.Run(
        tmp_path, [{"kind": "LearningRateCallback", "every_n_updates": 2, "source": optimizer}]
    ) as run:
        for _ in range(3):
            advance()
            run.step()
    assert points(tmp_path) == {
        f"optim/lr/{found[0]}/U2": [(2, 0.25), (3, 0.125)],
        f"optim/lr/{found[1]}/U2": [(2, 0.125), (3, 0.0625)],
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
