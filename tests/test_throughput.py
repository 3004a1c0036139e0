"""Updates and samples a second, and the time spent waiting for data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_callback_cases import NAN, Clock, each_front_end, entry, points

import noether_torch
from noether_core import (
    HookOrderError,
    LogWriter,
    ThroughputCallback,
    ThroughputCallbackConfig,
    UpdateCounter,
    UpdateOutputError,
)


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
    with noether_torch.Run(
        tmp_path, [entry("ThroughputCallback", 1)], accumulation_steps=2, effective_batch_size=1
    ) as run:
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
    with front_end.Run(
        tmp_path, [entry("ThroughputCallback", 1, "epoch")], updates_per_epoch=3, effective_batch_size=1
    ) as run:
        for _ in range(6):
            run.step()
    found = points(tmp_path)
    assert set(found) == {"profiling/samples_per_second/E1", "profiling/updates_per_second/E1"}
    assert all(value > 0 and math.isfinite(value) for series in found.values() for _, value in series)


def test_where_no_time_passed_there_is_no_rate(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [entry("ThroughputCallback", 1)], effective_batch_size=1) as run:
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
