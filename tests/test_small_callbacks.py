from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import yaml
from pydantic import ValidationError
from rich.console import Console

import noether_core
import noether_jax
import noether_torch
from noether_core import (
    BestMetricCallback,
    BestMetricCallbackConfig,
    CallbackBase,
    ConfigFileError,
    DuplicateKeyError,
    HookOrderError,
    LogWriter,
    MetricEarlyStopCallback,
    MetricEarlyStopCallbackConfig,
    MissingKeyError,
    NoetherError,
    NonFiniteError,
    ProgressCallback,
    ProgressCallbackConfig,
    ThroughputCallback,
    ThroughputCallbackConfig,
    TrainingIteration,
    UpdateCounter,
    UpdateOutputError,
    load_callbacks,
    read_run,
)
from noether_core.config.load import KINDS, parse_callback
from noether_core.inspect.explain import explain_together, render

FRONT_ENDS = (noether_jax, noether_torch)
NAN, INF = math.nan, math.inf

each_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda module: module.__name__)

MINIMAL: dict[str, dict[str, Any]] = {
    "OnlineLossCallback": {},
    "LearningRateCallback": {"key": "lr"},
    "ThroughputCallback": {},
    "ProgressCallback": {},
    "BestMetricCallback": {"source_metric_key": "v/U2", "higher_is_better": False},
    "MetricEarlyStopCallback": {"source_metric_key": "v/U2", "higher_is_better": False, "patience": 2},
}
each_kind = pytest.mark.parametrize("kind", MINIMAL)


def entry(kind: str, every: int = 2, unit: str = "update", **fields: Any) -> dict[str, Any]:
    return {"kind": kind, f"every_n_{unit}s": every, **MINIMAL[kind], **fields}


TRACK = {"every_n_updates": 2, "keys": ["v"], "reduce": "last"}


def array(front_end: Any, value: Any) -> Any:
    return front_end.Run.backend.from_numpy(np.asarray(value, np.float32))


def step(run: Any, number: int) -> None:
    """Do one step of a training in which everything has something to log."""
    value = float(number * 7 % 5) / 4
    losses = (run.backend.from_numpy(np.asarray(loss, np.float32)) for loss in (value, 2 * value))
    run.step(
        {"v": value, "lr": 0.1 / (1 + number)},
        losses=dict(zip(("data", "physics"), losses, strict=True)),
        times={"data": 0.25 * (number % 3), "update": 1.0},
    )


def train(front_end: Any, path: Path, callbacks: Any, steps: Iterable[int] = range(9), **arguments: Any) -> Any:
    with front_end.Run(path, callbacks, **arguments) as run:
        for number in steps:
            step(run, number)
            if run.is_finished:
                break
    return run


def points(path: Path) -> dict[str, list[tuple[int, Any]]]:
    return {key: [(p.update, p.value) for p in series] for key, series in read_run(path).series.items()}


class Clock:
    """Count seconds by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------------- all of them


@each_front_end
@each_kind
@pytest.mark.parametrize("prefix", ["", "noether.core.callbacks."])
def test_each_is_built_from_yaml_by_its_kind(front_end: Any, kind: str, prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "callbacks.yaml"
    file.write_text(yaml.safe_dump({"callbacks": [{**entry(kind), "kind": prefix + kind}, TRACK]}), encoding="utf-8")
    run = train(front_end, tmp_path / "run", file)
    assert type(run.callbacks[0]) is getattr(front_end, kind)
    assert type(run.callbacks[0].callback_config) is getattr(front_end, f"{kind}Config")
    assert str(run.callbacks[0]) == f"{kind}(every_n_updates=2)"
    kept = load_callbacks(tmp_path / "run" / "config.yaml")
    assert kept == [parse_callback({**entry(kind), "kind": prefix + kind}), parse_callback(TRACK)]


@each_front_end
@each_kind
def test_each_is_built_from_its_class(front_end: Any, kind: str) -> None:
    config = getattr(front_end, f"{kind}Config")(**entry(kind))
    callback = getattr(front_end, kind)(config, log_writer=LogWriter(update_counter=UpdateCounter()), name="mine")
    assert isinstance(callback, CallbackBase)
    assert (callback.callback_config, callback.name) == (config, "mine")
    with pytest.raises(ValidationError):
        config.id = "else"


@each_front_end
@pytest.mark.parametrize("unit", ["update", "sample", "epoch"])
@pytest.mark.parametrize("cut", [3, 4, 5])
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(front_end: Any, unit: str, cut: int, tmp_path: Path) -> None:
    every = {"update": 2, "sample": 6, "epoch": 1}[unit]
    label = f"{unit[0].upper()}{every}"
    metric = {"source_metric_key": f"v/{label}"}
    configs = [
        entry("BestMetricCallback", every, unit, **metric, target_metric_keys=["loss/", "v"]),
        entry("MetricEarlyStopCallback", every, unit, **metric, patience=9),
        entry("OnlineLossCallback", every, unit),
        entry("LearningRateCallback", every, unit),
        entry("ThroughputCallback", every, unit),
        entry("ProgressCallback", every, unit),
        {f"every_n_{unit}s": every, "keys": ["v"], "reduce": "last"},
    ]
    arguments = {"updates_per_epoch": 2, "effective_batch_size": 3}
    train(front_end, tmp_path / "whole", configs, **arguments)
    with front_end.Run(tmp_path / "first", configs, **arguments) as run:
        for number in range(cut):
            step(run, number)
        state = run.state_dict()
    with front_end.Run(tmp_path / "second", configs, **arguments) as run:
        run.load_state_dict(state)
        for number in range(cut, 9):
            step(run, number)
    whole, second = points(tmp_path / "whole"), points(tmp_path / "second")
    late = {key: [point for point in series if point[0] > cut] for key, series in whole.items()}
    assert second == {key: series for key, series in late.items() if series}
    assert set(late) >= {f"loss/online/data/{label}", f"optim/lr/{label}", f"profiling/data_wait_share/{label}"}


def test_what_jax_saved_pytorch_goes_on_from(tmp_path: Path) -> None:
    configs = [entry(kind) for kind in MINIMAL]
    with noether_jax.Run(tmp_path / "jax", [*configs, TRACK]) as run:
        for number in range(3):
            step(run, number)
        state = run.state_dict()
    with noether_torch.Run(tmp_path / "torch", [*configs, TRACK]) as run:
        run.load_state_dict(state)
        step(run, 3)
    assert points(tmp_path / "torch")["loss/online/data/U2"] == [(4, (1.0 + 0.25) / 2)]


def test_both_front_ends_log_the_same_bytes(tmp_path: Path) -> None:
    configs = [TRACK, *(entry(kind) for kind in MINIMAL)]
    written = []
    for front_end in FRONT_ENDS:
        train(front_end, tmp_path / front_end.__name__, configs)
        written.append((tmp_path / front_end.__name__ / "metrics" / "1.jsonl").read_bytes())
    assert written[0] == written[1]


@each_kind
def test_a_damaged_state_is_refused(kind: str) -> None:
    callback = getattr(noether_torch, kind)(
        parse_callback(entry(kind)), log_writer=LogWriter(update_counter=UpdateCounter())
    )
    with pytest.raises(NoetherError, match="state"):
        callback.load_state_dict({"best": "?"})
    callback.load_state_dict(callback.state_dict())


@each_front_end
@each_kind
def test_an_evaluation_changes_nothing(front_end: Any, kind: str, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [entry(kind), TRACK]) as run:
        step(run, 0)
        before = run.callbacks[0].state_dict()
        run.callbacks[0].at_eval(update_counter=run.counter)
        assert str(run.callbacks[0].state_dict()) == str(before)
    assert all(series[0][0] == 1 for series in points(tmp_path).values())  # only what the training's end emitted


BAD: list[tuple[dict[str, Any], str]] = [
    (entry("OnlineLossCallback", nonfinite="stop"), "'raise', 'propagate' or 'skip'"),
    (entry("OnlineLossCallback", keys=["loss"]), "Extra inputs are not permitted"),
    ({"kind": "OnlineLossCallback"}, "set exactly one of every_n_epochs, every_n_updates and every_n_samples"),
    (entry("LearningRateCallback", key=""), "at least 1 character"),
    (entry("LearningRateCallback", source="optimizer"), "The name of an update output is `key`"),
    (entry("ProgressCallback", bar="yes"), "valid boolean"),
    ({"kind": "BestMetricCallback", "every_n_updates": 1, "source_metric_key": "a"}, "higher_is_better\n  Field required"),
    (entry("BestMetricCallback", source_metric_key=""), "at least 1 character"),
    (entry("BestMetricCallback", target_metric_keys="loss"), "write a list: [loss]"),
    (entry("BestMetricCallback", target_metric_keys=[]), "at least 1 item"),
    (entry("BestMetricCallback", target_metric_keys=["a", ""]), "which every log key contains"),
    (entry("MetricEarlyStopCallback", patience=0), "greater than or equal to 1"),
    (entry("MetricEarlyStopCallback", patience=1.5), "valid integer"),
    (entry("MetricEarlyStopCallback", min_delta=-0.1), "greater than or equal to 0"),
    (entry("MetricEarlyStopCallback", min_delta=INF), "give a finite number of at least 0"),
    (entry("MetricEarlyStopCallback", higher_is_better=1), "valid boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_bad_config_says_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_callback(fields)
    assert message in str(caught.value)


def test_a_kind_that_is_not_known_or_not_the_class_is_refused() -> None:
    with pytest.raises(ConfigFileError, match="Did you mean 'ThroughputCallback'") as caught:
        parse_callback({"kind": "noether.core.callbacks.ThroughPutCallback", "every_n_updates": 1})
    assert all(kind in str(caught.value) for kind in KINDS)
    with pytest.raises(ValidationError, match=r"use 'noether\.core\.callbacks\.ProgressCallback'"):
        ProgressCallbackConfig(kind="ThroughputCallback", every_n_updates=1)
    assert type(parse_callback({"name": "ProgressCallback", "every_n_updates": 1})) is ProgressCallbackConfig


def test_a_config_of_the_users_own_needs_its_callback_object(tmp_path: Path) -> None:
    class MineConfig(noether_core.config.NamedCallbackConfig):
        name: str = "Mine"

    with pytest.raises(NoetherError, match="Run got a MineConfig, for which it knows no callback"):
        noether_torch.Run(tmp_path, [MineConfig(every_n_updates=1)])

    class OftenConfig(ProgressCallbackConfig):
        """Set nothing new."""

    assert isinstance(noether_torch.Run(tmp_path, [OftenConfig(every_n_updates=1)]).callbacks[0], ProgressCallback)


def test_explain_lists_what_they_log() -> None:
    configs = [parse_callback(entry(kind)) for kind in MINIMAL]
    configs.append(parse_callback(entry("LearningRateCallback", key="eta")))
    found = explain_together([*configs, parse_callback(TRACK)], {"v": (), "lr/a": ()})
    assert [each.is_clean for each in found] == [True] * 6 + [False, True]
    file = io.StringIO()
    Console(file=file, width=200).print(render(found, {"v": (), "lr/a": ()}))
    lines = [line.strip() for line in file.getvalue().splitlines()]
    for name in [
        "loss/online/{name}/U2",
        "optim/lr/U2",
        "optim/lr/{name}/U2",
        *(f"profiling/{name}/U2" for name in ("samples_per_second", "updates_per_second")),
        *(f"profiling/{name}/U2" for name in ("data_wait_seconds", "data_wait_share")),
        "v/U2/at_best/v/U2",
        "no values",
    ]:
        assert f"logs {name}" in lines
    assert "MetricEarlyStopCallback(every_n_updates=2)" in lines
    assert any(line.startswith("✗ key 'eta' is not among the update outputs.") for line in lines)


def test_what_explain_lists_is_what_is_logged(tmp_path: Path) -> None:
    train(noether_torch, tmp_path, [TRACK, *(entry(kind) for kind in MINIMAL)])
    listed = {
        name.replace("{name}", loss)
        for kind in MINIMAL
        for name in parse_callback(entry(kind)).logs
        for loss in ("data", "physics")
    }
    assert set(points(tmp_path)) - {"v/U2"} == listed - {"optim/lr/data/U2", "optim/lr/physics/U2"}


# ---------------------------------------------------------------------- online loss


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


def test_a_step_without_losses_that_another_refused_leaves_the_step_before_it(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("OnlineLossCallback"), TRACK]) as run:
        run.step({"v": 1.0}, losses=torch.tensor(1.0))
        with pytest.raises(MissingKeyError):
            run.step({"w": 1.0})
        run.step({"v": 1.0}, losses=torch.tensor(2.0))
    assert points(tmp_path)["loss/online/total/U2"] == [(2, 1.5)]


@pytest.mark.parametrize("kind", ["OnlineLossCallback", "LearningRateCallback"])
def test_what_tracks_for_it_goes_by_its_name(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(DuplicateKeyError) as caught:
        train(noether_torch, tmp_path, [entry(kind, verbose=True), entry(kind, id="too")])
    assert f"logged first by {kind}(every_n_updates=2)" in str(caught.value)
    assert {record.name for record in caplog.records if "/U2: " in record.getMessage()} == {
        f"{kind}(every_n_updates=2)"
    }
    callback = getattr(noether_torch, kind)(
        parse_callback(entry(kind)), log_writer=LogWriter(update_counter=UpdateCounter())
    )
    counter = UpdateCounter()
    callback.before_training(update_counter=counter)
    for _ in range(2):
        counter.next_update()
    with pytest.raises(HookOrderError, match=rf"^{kind}\(every_n_updates=2\) was at update 0 and is now at 2"):
        callback.track_after_accumulation_step(update_counter=counter)


def test_losses_that_never_come_and_losses_that_are_no_numbers_are_reported(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path / "a", [entry("OnlineLossCallback", 1)]) as run:
        with pytest.warns(UserWarning, match=r"a whole interval had no losses; hand them over: run\.step\("):
            run.step({"v": 1.0})
        run.step({"v": 1.0})  # warned about once
        with pytest.raises(UpdateOutputError, match="'loss/online/total' is str 'low'"):
            run.step(losses="low")


# ---------------------------------------------------------------------- learning rate


def test_a_learning_rate_that_never_comes_is_reported(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("LearningRateCallback", 1)]) as run:
        with pytest.warns(
            UserWarning, match=r"a whole interval had no update outputs to read 'lr' from; give them to run"
        ):
            run.step(None)
        run.step(None)  # warned about once


def test_beside_a_compiled_step_only_tracking_callbacks_take_part_in_it(tmp_path: Path) -> None:
    rate = {"kind": "LearningRateCallback", "every_n_updates": 1, "source": lambda update: 0.5**update}
    with noether_jax.Run(tmp_path, [rate, TRACK, entry("OnlineLossCallback", 3)]) as run:
        tracked = run.init({"v": jnp.float32(0), "optim/lr": jnp.float32(0)})
        assert len(tracked.windows) == 1
        for number in range(2):
            tracked = run.step(run.track(tracked, {"v": jnp.float32(number), "optim/lr": jnp.float32(9)}))
    assert points(tmp_path) == {"optim/lr/U1": [(1, 1.0), (2, 0.5)], "v/U2": [(2, 1.0)]}


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


# ---------------------------------------------------------------------- throughput


def test_the_times_that_the_loop_hands_over_are_what_counts(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("ThroughputCallback", 2)], effective_batch_size=8) as run:
        for waited in (0.5, 1.5, 3.0):
            run.step(times={"data": waited, "update": 1.0})
    assert points(tmp_path) == {
        "profiling/data_wait_seconds/U2": [(2, 2.0), (3, 3.0)],
        "profiling/data_wait_share/U2": [(2, 0.5), (3, 0.75)],
        "profiling/samples_per_second/U2": [(2, 4.0), (3, 2.0)],
        "profiling/updates_per_second/U2": [(2, 0.5), (3, 0.25)],
    }


def test_the_times_of_accumulation_steps_add_up(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("ThroughputCallback", 1)], accumulation_steps=2) as run:
        run.step(times={"data": 0.5})
        run.step(times={"data": 0.5, "update": 1.0})
        run.step([None, None], times={"update": 4.0})
        with pytest.raises(HookOrderError, match="time one update a call"):
            run.step([None] * 4, times={"update": 4.0})
    found = points(tmp_path)
    assert found["profiling/updates_per_second/U1"] == [(1, 0.5), (2, 0.25)]
    assert found["profiling/data_wait_share/U1"] == [(1, 0.5)]


def test_without_times_the_wall_clock_counts(tmp_path: Path) -> None:
    clock, counter = Clock(), UpdateCounter(effective_batch_size=8)
    writer = LogWriter(update_counter=counter)
    config = ThroughputCallbackConfig(every_n_samples=16)
    callback = ThroughputCallback(config, log_writer=writer, clock=clock)
    clock.now += 1000.0  # before training
    callback.before_training(update_counter=counter)
    for _ in range(3):
        clock.now += 2.0
        counter.add_samples(8)
        counter.next_update()
        callback.track_after_update_step(update_counter=counter)
        callback.after_update(update_counter=counter)
    state = callback.state_dict()
    resumed = ThroughputCallback(config, log_writer=writer, clock=clock)
    resumed.before_training(update_counter=counter)
    clock.now += 500.0  # in between
    resumed.load_state_dict(json.loads(json.dumps(state)))
    clock.now += 6.0
    counter.add_samples(8)
    counter.next_update()
    resumed.track_after_update_step(update_counter=counter)
    resumed.after_update(update_counter=counter)
    writer.close()
    assert writer.get_all_metric_values("profiling/samples_per_second/S16") == [4.0, 2.0]
    assert writer.get_all_metric_values("profiling/updates_per_second/S16") == [0.5, 0.25]
    assert not writer.get_all_metric_values("profiling/data_wait_share/S16")


@each_front_end
def test_a_plain_loop_has_a_throughput_too(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [entry("ThroughputCallback", 1, "epoch")], updates_per_epoch=3) as run:
        for _ in range(6):
            run.step()
    found = points(tmp_path)
    assert set(found) == {"profiling/samples_per_second/E1", "profiling/updates_per_second/E1"}
    assert all(value > 0 and math.isfinite(value) for series in found.values() for _, value in series)


def test_where_no_time_passed_there_is_no_rate(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("ThroughputCallback", 1)]) as run:
        run.step(times={"data": 0.0})
    assert points(tmp_path) == {"profiling/data_wait_seconds/U1": [(1, 0.0)]}


@pytest.mark.parametrize("times", [{"data": -1.0}, {"data": NAN}, {"data": "long"}, [1.0]])
def test_times_that_are_none_are_refused(times: Any) -> None:
    counter = UpdateCounter()
    callback = ThroughputCallback(
        ThroughputCallbackConfig(every_n_updates=1), log_writer=LogWriter(update_counter=counter)
    )
    with pytest.raises(UpdateOutputError, match="expected a mapping from names to seconds"):
        callback.track_after_update_step(update_counter=counter, times=times)


# ---------------------------------------------------------------------- progress


def progress(clock: Clock, counter: UpdateCounter, **arguments: Any) -> ProgressCallback:
    config = ProgressCallbackConfig(every_n_updates=2, bar="console" in arguments)
    return ProgressCallback(config, log_writer=LogWriter(update_counter=counter), clock=clock, **arguments)


def advance(callback: CallbackBase, counter: UpdateCounter, clock: Clock, updates: int) -> None:
    for _ in range(updates):
        clock.now += 30.0
        counter.add_samples(4)
        counter.next_update()
        callback.track_after_update_step(update_counter=counter)
        callback.after_update(update_counter=counter)


def test_progress_says_where_how_much_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, counter = Clock(), UpdateCounter(None, TrainingIteration(update=8), effective_batch_size=4)
    callback = progress(clock, counter)
    callback.before_training(update_counter=counter)
    advance(callback, counter, clock, 5)
    resumed = progress(clock, counter)
    resumed.before_training(update_counter=UpdateCounter())
    clock.now += 5000.0
    resumed.load_state_dict(callback.state_dict())
    advance(resumed, counter, clock, 3)
    assert caplog.messages == [
        "E0_U2_S8 of E0_U8_S32: 25.0 %, 0:03:00 left",
        "E0_U4_S16 of E0_U8_S32: 50.0 %, 0:02:00 left",
        "E0_U6_S24 of E0_U8_S32: 75.0 %, 0:01:00 left",
        "E0_U8_S32 of E0_U8_S32: 100.0 %, 0:00:00 left",
    ]
    assert {record.name for record in caplog.records} == {"ProgressCallback(every_n_updates=2)"}


def test_progress_without_an_end_says_how_fast(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, counter = Clock(), UpdateCounter()
    callback = progress(clock, counter)
    callback.before_training(update_counter=counter)
    advance(callback, counter, clock, 2)
    assert caplog.messages == ["E0_U2_S8, 0.0333 updates/s"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_is_shown_on_a_terminal_only(is_terminal: bool) -> None:
    file, clock, counter = io.StringIO(), Clock(), UpdateCounter(None, TrainingIteration(update=8))
    callback = progress(clock, counter, console=Console(file=file, force_terminal=is_terminal, width=80))
    callback.before_training(update_counter=counter)
    advance(callback, counter, clock, 6)
    callback.after_training(update_counter=counter)
    assert ("6/8" in file.getvalue()) is is_terminal


# ---------------------------------------------------------------------- the best metric


def metrics(front_end: Any, path: Path, callbacks: Sequence[Any], values: Iterable[float], **arguments: Any) -> Any:
    with front_end.Run(path, callbacks, **arguments) as run:
        for number, value in enumerate(values):
            run.step({"v": value, "accuracy": 10.0 + number})
            if run.is_finished:
                break
    return run


TRACKS = [{"every_n_updates": 1, "keys": ["v", "accuracy"]}]


@each_front_end
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("higher", "best"), [(False, [1, 2, 5]), (True, [1, 4])])
def test_targets_are_logged_whenever_the_source_improves_wherever_it_stands(
    front_end: Any, is_first: bool, higher: bool, best: list[int], tmp_path: Path
) -> None:
    watch = BestMetricCallbackConfig(
        every_n_updates=1, source_metric_key="v/U1", higher_is_better=higher, target_metric_keys=["accuracy/U1", "v/"]
    )
    values = [3.0, 2.0, NAN, 7.0, 1.0, 1.0, 5.0]
    metrics(front_end, tmp_path, [watch, *TRACKS] if is_first else [*TRACKS, watch], values)
    found = points(tmp_path)
    assert found["accuracy/U1/at_best/v/U1"] == [(update, 9.0 + update) for update in best]
    assert found["v/U1/at_best/v/U1"] == [(update, values[update - 1]) for update in best]


def test_without_targets_the_source_itself_is_logged(tmp_path: Path) -> None:
    metrics(
        noether_torch, tmp_path, [entry("BestMetricCallback", 1, source_metric_key="v/U1"), *TRACKS], [2.0, 3.0, 1.0]
    )
    assert points(tmp_path)["v/U1/at_best/v/U1"] == [(1, 2.0), (3, 1.0)]


def test_what_an_epochs_end_logs_is_seen_by_an_update_interval(tmp_path: Path) -> None:
    watch = entry("BestMetricCallback", 2, source_metric_key="v/E1")
    with noether_torch.Run(tmp_path, [watch, {"every_n_epochs": 1, "keys": ["v"]}], updates_per_epoch=4) as run:
        for value in (1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0):
            run.step({"v": value})
    assert points(tmp_path)["v/E1/at_best/v/E1"] == [(4, 1.0), (8, 0.0)]


def test_what_training_ended_in_the_middle_of_counts_too(tmp_path: Path) -> None:
    metrics(
        noether_torch,
        tmp_path,
        [entry("BestMetricCallback", 2), {"every_n_updates": 2, "keys": ["v"]}],
        [2.0, 2.0, 1.0],
    )
    assert points(tmp_path)["v/U2/at_best/v/U2"] == [(2, 2.0), (3, 1.0)]


def test_a_source_or_target_that_is_not_logged_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = entry("BestMetricCallback", 1, source_metric_key="v/U2")
    metrics(noether_torch, tmp_path, [watch, *TRACKS], [2.0, 1.0, 0.0])
    assert len(caplog.messages) == 1
    assert (
        "'v/U2' is not a number that this update logged; it logged 'v/U1', 'accuracy/U1'. Did you mean 'v/U1'?"
        in caplog.text
    )
    caplog.clear()
    watch = entry("BestMetricCallback", 1, source_metric_key="v/U1", target_metric_keys=["accurate"])
    metrics(noether_torch, tmp_path / "b", [watch, *TRACKS], [2.0])
    assert "the target 'accurate' is neither a log key of this update nor part of one" in caplog.text


def test_a_log_writer_that_cannot_be_read_is_refused() -> None:
    class Blind:
        def add_scalar(self, key: str, value: Any, logger: Any = None, format_str: Any = None) -> None:
            """Log nothing."""

    config = BestMetricCallbackConfig(every_n_updates=1, source_metric_key="v", higher_is_better=True)
    with pytest.raises(NoetherError, match=r"log_writer Blind has no current_values\(\)"):
        BestMetricCallback(config, log_writer=Blind())


def test_a_log_writer_shows_what_the_update_logged_flushed_or_not() -> None:
    counter = UpdateCounter()
    writer = LogWriter(update_counter=counter)
    assert writer.current_values() == {}
    writer.add_scalar("a", 1)
    writer.flush()
    writer.bind("me").add_nonscalar("b", "two")
    assert writer.current_values() == writer.bind("me").current_values() == {"a": 1, "b": "two"}
    counter.next_update()
    assert writer.current_values() == {}


# ---------------------------------------------------------------------- early stop


def stop(**fields: Any) -> dict[str, Any]:
    return entry("MetricEarlyStopCallback", 1, **{"source_metric_key": "v/U1", **fields})


@each_front_end
@pytest.mark.parametrize(
    ("fields", "values", "last"),
    [
        ({}, [3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0], 6),
        ({"patience": 1}, [3.0, 2.0, 2.0, 1.0], 3),
        ({"min_delta": 0.5}, [3.0, 2.6, 2.4, 2.3, 2.2, 0.0], 5),  # 2.4 is better than 3.0 by more, 2.6 is not
        ({"higher_is_better": True}, [1.0, 2.0, 1.5, 1.5, 3.0], 4),
        ({}, [3.0, NAN, NAN, 1.0], 3),
        ({}, [NAN, NAN, 1.0], 2),
        ({}, [5.0, 4.0, 3.0, 2.0], None),
    ],
)
def test_training_ends_when_the_metric_stops_improving(
    front_end: Any, fields: dict[str, Any], values: list[float], last: int | None, tmp_path: Path
) -> None:
    run = metrics(front_end, tmp_path, [stop(**fields), *TRACKS], values)
    assert run.counter.update == (last or len(values))
    assert run.is_finished is (last is not None)
    assert len(points(tmp_path)["v/U1"]) == run.counter.update


def test_only_interval_ends_that_have_the_metric_count(tmp_path: Path) -> None:
    run = metrics(
        noether_torch, tmp_path, [stop(source_metric_key="v/U3"), {"every_n_updates": 3, "keys": ["v"]}], [1.0] * 20
    )
    assert run.counter.update == 9  # the first is the best, two are no better


def test_a_run_that_was_stopped_says_so_and_takes_no_more_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with noether_torch.Run(tmp_path, [stop(patience=1), *TRACKS, {**TRACKS[0], "every_n_updates": 5}]) as run:
        run.step([{"v": 1.0, "accuracy": 0.0}] * 4)  # one call's updates are all counted
        with pytest.raises(
            HookOrderError, match=r"after MetricEarlyStopCallback\(every_n_updates=1\) ended the training"
        ):
            run.step({"v": 0.0, "accuracy": 0.0})
        state = run.state_dict()
    assert caplog.messages == [
        "training ends at E0_U2_S2: in 1 interval ends in a row 'v/U1' was not better than 1.0, its value at update 1"
    ]
    assert points(tmp_path)["v/U5"] == [(4, 1.0)]  # the interval under way is emitted as at any other end
    with noether_torch.Run(tmp_path / "b", [stop(patience=1), *TRACKS, {**TRACKS[0], "every_n_updates": 5}]) as run:
        run.load_state_dict(state)
        assert run.is_finished


def test_patience_goes_on_in_a_resumed_run(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path / "a", [stop(patience=3), *TRACKS]) as run:
        for value in (1.0, 2.0, 2.0):
            run.step({"v": value, "accuracy": 0.0})
        state = json.loads(json.dumps(run.callbacks[0].state_dict()))
    config = MetricEarlyStopCallbackConfig(**stop(patience=3))
    counter = UpdateCounter(TrainingIteration(update=3))
    writer = LogWriter(update_counter=counter)
    callback = MetricEarlyStopCallback(config, log_writer=writer)
    callback.before_training(update_counter=counter)
    callback.load_state_dict(state)
    assert not callback.should_stop
    counter.next_update()
    writer.add_scalar("v/U1", 1.0)
    callback.after_update(update_counter=counter)
    assert callback.should_stop
