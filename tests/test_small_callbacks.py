"""What all the smaller callbacks have in common: how they are built, explained and resumed."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console
from small_callback_cases import FRONT_ENDS, INF, MINIMAL, TRACK, each_front_end, each_kind, entry, points, step, train

import noether_core
import noether_jax
import noether_torch
from noether_core import (
    CallbackBase,
    ConfigFileError,
    DuplicateKeyError,
    HookOrderError,
    LogWriter,
    NoetherError,
    ProgressCallback,
    ProgressCallbackConfig,
    UpdateCounter,
    load_callbacks,
)
from noether_core.config.load import KINDS, parse_callback
from noether_core.explanation import explain_together, render


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
    with noether_jax.Run(tmp_path / "jax", [*configs, TRACK], effective_batch_size=1) as run:
        for number in range(3):
            step(run, number)
        state = run.state_dict()
    with noether_torch.Run(tmp_path / "torch", [*configs, TRACK], effective_batch_size=1) as run:
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
    with front_end.Run(tmp_path, [entry(kind), TRACK], effective_batch_size=1) as run:
        step(run, 0)
        before = run.callbacks[0].state_dict()
        run.callbacks[0].at_eval(update_counter=run.counter)
        assert str(run.callbacks[0].state_dict()) == str(before)
    assert all(series[0][0] == 1 for series in points(tmp_path).values())  # only what the training's end emitted


BAD: list[tuple[dict[str, Any], str]] = [
    (entry("OnlineLossCallback", nonfinite="stop"), "'raise', 'propagate' or 'skip'"),
    (entry("OnlineLossCallback", keys=["loss"]), "'keys' is no field of OnlineLossCallbackConfig"),
    ({"kind": "OnlineLossCallback"}, "set exactly one of every_n_epochs, every_n_updates and every_n_samples"),
    (entry("LearningRateCallback", key=""), "at least 1 character"),
    (entry("LearningRateCallback", source="optimizer"), "The name of an update output is `key`"),
    (entry("ProgressCallback", bar="yes"), "valid boolean"),
    ({"kind": "BestMetricCallback", "every_n_updates": 1, "source_metric_key": "a"}, "higher_is_better\n  it is missing"),
    (entry("BestMetricCallback", source_metric_key=""), "at least 1 character"),
    (entry("BestMetricCallback", target_metric_keys="loss"), "write a list: [loss]"),
    (entry("BestMetricCallback", target_metric_keys=[]), "at least 1 item"),
    (entry("BestMetricCallback", target_metric_keys=["a", ""]), "which every log key contains"),
    (entry("MetricEarlyStopCallback", patience=0), "got 0; expected at least 1"),
    (entry("MetricEarlyStopCallback", patience=1.5), "valid integer"),
    (entry("MetricEarlyStopCallback", min_delta=-0.1), "got -0.1; expected at least 0"),
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


@pytest.mark.parametrize("kind", ["OnlineLossCallback", "LearningRateCallback"])
def test_what_tracks_for_it_goes_by_its_name(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(DuplicateKeyError) as caught:
        train(noether_torch, tmp_path, [entry(kind), entry(kind, id="too")])
    assert f"by {kind}(every_n_updates=2)" in str(caught.value)
    train(noether_torch, tmp_path, [entry(kind, verbose=True)])
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


def test_beside_a_compiled_step_only_tracking_callbacks_take_part_in_it(tmp_path: Path) -> None:
    rate = {"kind": "LearningRateCallback", "every_n_updates": 1, "source": lambda update: 0.5**update}
    with noether_jax.Run(tmp_path, [rate, TRACK, entry("OnlineLossCallback", 3)]) as run:
        tracked = run.init({"v": jnp.float32(0), "optim/lr": jnp.float32(0)})
        assert len(tracked.windows) == 1
        for number in range(2):
            tracked = run.step(run.track(tracked, {"v": jnp.float32(number), "optim/lr": jnp.float32(9)}))
    assert points(tmp_path) == {"optim/lr/U1": [(1, 1.0), (2, 0.5)], "v/U2": [(2, 1.0)]}
