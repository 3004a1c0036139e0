"""Losses are averaged exactly, and one that is not finite is reported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_callback_cases import INF, NAN, TRACK, array, each_front_end, entry, points

import noether_torch
from noether_core import MissingKeyError, NonFiniteError, UpdateOutputError


@each_front_end
def test_a_loss_is_averaged_over_all_accumulation_steps_exactly(front_end: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(1.0, 0.3, 12).astype(np.float32)
    with front_end.Run(tmp_path, [entry("OnlineLossCallback", 2)], accumulation_steps=3) as run:
        for value in values:
            run.step(losses=array(front_end, value))
    exact = [float(np.float32(math.fsum(part.tolist()) / 6)) for part in (values[:6], values[6:])]
    assert points(tmp_path) == {"loss/online/total/U2": [(2, exact[0]), (4, exact[1])]}


@each_front_end
def test_a_dict_of_losses_may_be_nested_and_lack_some_at_times(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [entry("OnlineLossCallback", 3)]) as run:
        run.step(losses={"data": 1.0, "physics": {"mass": array(front_end, 2.0), "heat": None}})
        run.step(losses=None)
        run.step(losses={"data": 4})
        run.step(losses={"data": 8.0})  # an interval of its own, which training ends in
    logged = {"loss/online/data/U3": [(3, 2.5), (4, 8.0)], "loss/online/physics/mass/U3": [(3, 2.0)]}
    assert points(tmp_path) == logged


@each_front_end
def test_a_loss_that_is_not_finite_ends_the_interval_with_an_error_that_says_where(
    front_end: Any, tmp_path: Path
) -> None:
    run = front_end.Run(
        tmp_path, [entry("OnlineLossCallback", 3), {**TRACK, "every_n_updates": 3}], accumulation_steps=2
    )
    run.start()
    for number in range(5):
        run.step({"v": 1.0}, losses={"fine": 1.0, "data": array(front_end, INF if number in (3, 4) else 1.0)})
    with pytest.raises(NonFiniteError) as caught:
        run.step({"v": 1.0}, losses={"fine": 1.0, "data": array(front_end, NAN)})
    assert "'loss/online/data': 1 NaN, 2 +inf, 0 -inf of 6 values, first at update 2, accumulation step 1" in str(
        caught.value
    )
    assert "OnlineLossCallback(every_n_updates=3)" in str(caught.value)
    assert "'loss/online/fine'" not in str(caught.value)
    run.finish()
    logged = points(tmp_path)
    assert logged["loss/online/fine/U3"] == [(3, 1.0)]
    assert logged["loss/online/data/nonfinite/U3"] == [(3, 3)]
    assert math.isnan(logged["loss/online/data/U3"][0][1])
    assert logged["v/U3"] == [(3, 1.0)]


@pytest.mark.parametrize(("nonfinite", "mean"), [("propagate", INF), ("skip", 1.0)])
def test_a_config_may_go_on_past_a_loss_that_is_not_finite(nonfinite: str, mean: float, tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("OnlineLossCallback", 2, nonfinite=nonfinite)]) as run:
        run.step(losses=1.0)
        run.step(losses=torch.tensor(INF))
    assert points(tmp_path) == {"loss/online/total/U2": [(2, mean)], "loss/online/total/nonfinite/U2": [(2, 1)]}


def test_a_loss_is_taken_at_the_call_and_a_step_that_another_refused_is_not_counted(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("OnlineLossCallback"), TRACK]) as run:
        loss = torch.tensor(1.0)
        run.step({"v": 1.0}, losses=loss)
        loss.fill_(50.0)
        with pytest.raises(MissingKeyError):
            run.step({"w": 1.0}, losses=torch.tensor(70.0))
        run.step({"v": 1.0}, losses=torch.tensor(2.0))
    assert points(tmp_path)["loss/online/total/U2"] == [(2, 1.5)]


def test_losses_that_never_come_and_losses_that_are_no_numbers_are_reported(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path / "a", [entry("OnlineLossCallback", 1)]) as run:
        with pytest.warns(UserWarning, match=r"a whole interval had no losses; hand them over: run\.step\("):
            run.step({"v": 1.0})
        run.step({"v": 1.0})  # warned about once
        with pytest.raises(UpdateOutputError, match="'loss/online/total' is str 'low'"):
            run.step(losses="low")


def test_a_step_without_losses_that_another_refused_leaves_the_step_before_it(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("OnlineLossCallback"), TRACK]) as run:
        run.step({"v": 1.0}, losses=torch.tensor(1.0))
        with pytest.raises(MissingKeyError):
            run.step({"w": 1.0})
        run.step({"v": 1.0}, losses=torch.tensor(2.0))
    assert points(tmp_path)["loss/online/total/U2"] == [(2, 1.5)]
