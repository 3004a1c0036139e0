"""The best of a metric is logged, and training ends where it stops improving."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_callback_cases import NAN, each_front_end, entry, points

import noether_torch
from noether_core import (
    BestMetricCallback,
    BestMetricCallbackConfig,
    HookOrderError,
    LogWriter,
    MetricEarlyStopCallback,
    MetricEarlyStopCallbackConfig,
    NoetherError,
    TrainingIteration,
    UpdateCounter,
)


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
