"""Whole runs in virtual processes: what they log together is what one process would log, at a fixed number of exchanges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import noether_jax
import noether_torch
from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.errors import NoetherError
from noether_core.reduce.threads import ThreadExchange, run_threads
from noether_torch import (
    MetricEarlyStopCallback,
    MetricEarlyStopCallbackConfig,
    TrackAdditionalOutputsCallback,
    TrackAdditionalOutputsCallbackConfig,
)
from tests.virtual_processes import FRONT_ENDS, HOSTILE, drawn_value, in_key_order, reference, steps_of, train


@pytest.mark.sweep(20)
@pytest.mark.parametrize("seed", range(500))
def test_other_keys_orders_dtypes_and_updates(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    front_end = FRONT_ENDS[seed % 2]
    count = int(rng.integers(1, 5))
    updates = rng.integers(0, 8, count).tolist() if rng.random() < 0.5 else [6] * count
    reductions = [
        str(each) for each in rng.permutation(["mean", "sum", "min", "max", "std", "count"])[: rng.integers(1, 4)]
    ]
    configs = [
        {"every_n_updates": int(rng.integers(1, 5)), "patterns": [""], "reduce": reductions, "missing": "skip"},
        {
            "every_n_updates": int(rng.integers(1, 5)),
            "patterns": ["loss"],
            "reduce": "max",
            "missing": "skip",
            "id": "2",
        },
    ]
    configs[1]["reduce"] = {"loss": ["var"]}
    pool = [str(key) for key in rng.permutation(np.array(HOSTILE, object))[: rng.integers(1, 8)]]
    own_keys = [[key for key in pool if rng.random() < 0.7] for _ in range(count)]
    is_alike = rng.random() < 0.3

    def drawn(process: int) -> Any:
        if rng.random() < 0.1 and not is_alike:
            return None
        keys = pool if is_alike else [str(key) for key in rng.permutation(np.array(own_keys[process], object))]
        return {key: drawn_value(rng, front_end) for key in keys if is_alike or rng.random() < 0.8}

    outputs = [[drawn(process) for _ in range(updates[process])] for process in range(count)]
    found, told = train(tmp_path / "all", count, configs, steps_of(outputs), front_end=front_end)
    assert [outcome.error for outcome in found] == [None] * count
    expected = reference(tmp_path / "one", configs, outputs, front_end)
    assert in_key_order(found[0].entries) == in_key_order(expected)
    if is_alike and len(set(updates)) == 1:
        assert repr(found[0].entries) == repr(expected)  # the order too
        assert [list(outcome.entries) for outcome in found] == [found[0].entries] * count or "nan" in repr(expected)
    if expected:
        assert in_key_order(list(read_run(tmp_path / "all").entries)) == in_key_order(expected)
    differing = [message for message in told if "different keys" in message]
    assert len(differing) <= len(configs), told
    assert not list((tmp_path / "all").glob("unmerged/**/*.safetensors"))


def test_keys_that_come_and_go_are_not_remembered_for_ever(tmp_path: Path) -> None:
    runs: dict[int, Any] = {}

    def loop(run: Any, index: int) -> None:
        runs[index] = run
        for update in range(60):
            run.step({f"key {update} {at}": float(at + index) for at in range(100)})

    found, told = train(tmp_path, 2, [{"every_n_updates": 1, "patterns": ["key"]}], loop)
    assert [outcome.error for outcome in found] == [None, None]
    assert all(len(entry) == 103 for entry in found[0].entries)
    assert found[0].entries[-1]["key 59 7/U1"] == 7.5
    assert not told
    assert len(runs[0].pooling._meeting._pool._agreements[0].keys) < 1500


def test_one_warning_names_keys_and_processes(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(6):
            own = {} if index == 1 else {"only in 0 and 2": 1.0}
            later = {f"later {update}": 1.0} if index == 2 else {}
            run.step({"everywhere": 2.0} | own | later, losses={"aux": 1.0} if index == 2 else {"main": 1.0})

    configs = [{"every_n_updates": 2, "patterns": [""]}, {"every_n_updates": 1, "patterns": ["only"], "id": "2"}]
    _, told = train(tmp_path, 3, [*configs, {"kind": "OnlineLossCallback", "every_n_updates": 1}], loop)
    (first, *others) = [message for message in told if "processes have different keys" in message]
    assert "not in process 1: 'only in 0 and 2'" in first
    assert "not in process 2: 'loss/online/main'" in first
    assert len(others) <= 1  # of the callback that ends later, with what is new
    assert not any("'only in" in message for message in others)


def test_a_key_that_fewer_processes_have_later_is_told_of_with_how_many(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(8):
            gone = (index == 1 and update >= 4) or (index == 2 and update >= 6)
            run.step({"everywhere": 1.0} | ({} if gone else {"x": float(index), "y": 1.0}))

    found, told = train(tmp_path, 3, [{"every_n_updates": 2, "patterns": [""], "missing": "skip"}], loop)
    assert [outcome.error for outcome in found] == [None] * 3
    assert [entry["x/U2"] for entry in found[0].entries] == [1.0, 1.0, 1.0, 0.0]
    (only,) = [message for message in told if "have different keys" in message]
    assert "of the 3 processes have different keys from now on; in 2 of them: 'x', 'y'. Each number" in only


def test_a_process_that_ends_earlier_is_no_lack_of_keys(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for _ in range(8 if index else 4):
            run.step({"x": 1.0, "y": 1.0})

    _, told = train(tmp_path, 3, [{"every_n_updates": 2, "patterns": [""]}], loop)
    assert told == []


def calls_of(tmp_path: Path, configs: Any, keys: int, steps: int) -> list[str]:
    def loop(run: Any, index: int) -> None:
        for update in range(steps):
            before = len(run.exchange.calls)
            run.step({f"k{at}": float(update) for at in range(keys)})
            assert (update + 1) % 10 == 0 or len(run.exchange.calls) == before

    found, _ = train(tmp_path, 2, configs, loop)
    assert [outcome.error for outcome in found] == [None, None]
    return found[0].calls


def test_collectives_do_not_grow_with_keys_or_callbacks(tmp_path: Path) -> None:
    def configs(callbacks: int) -> list[dict[str, Any]]:
        return [
            {"every_n_updates": 10, "patterns": ["k"], "id": f"c{at}", "reduce": ["mean", "max", "last"]}
            for at in range(callbacks)
        ]

    found = {}
    for callbacks, keys in [(1, 1), (1, 1000), (10, 3)]:
        own = configs(callbacks)
        for at, config in enumerate(own):
            config["log_output"] = at == 0
            config["save_output"] = at > 0
        found[callbacks, keys] = [
            call for call in calls_of(tmp_path / f"{callbacks}-{keys}", own, keys, 20) if call != "gather"
        ]
    assert len({tuple(calls) for calls in found.values()}) == 1
    begin, interval = ["arrive", "all_gather"], ["arrive", "max", "sum", "max"]
    assert found[1, 1] == [*begin, *interval, *interval, "arrive", "max", "arrive"]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    def body(exchange: ThreadExchange) -> None:
        own = tmp_path / str(exchange.index)
        config = {"every_n_updates": 1, "keys": ["x"], "save_output": True, "reduce": "stack"}
        with noether_jax.Run(own, [config], processes=exchange) as run:
            run.step({"x": jnp.float32(1)})

    run_threads(3, body)
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [
        "config.yaml",
        "metrics",
        "starts",
        "unmerged",
        "update_outputs",
    ]
    assert not [path for at in (1, 2) for path in (tmp_path / str(at)).rglob("*") if path.is_file()]


@pytest.mark.parametrize("in_memory", [True, False])
def test_callbacks_without_a_run(in_memory: bool, tmp_path: Path) -> None:
    """The first process alone writes; the others decide as it does where their log writer holds what they log."""

    def body(exchange: ThreadExchange) -> tuple[list[Any], int]:
        counter = UpdateCounter()
        path = tmp_path if exchange.index == 0 or not in_memory else None
        writer = LogWriter(path, update_counter=counter)
        config = TrackAdditionalOutputsCallbackConfig(every_n_updates=2, keys=["x"], reduce=["sum", "last"])
        callback = TrackAdditionalOutputsCallback(config, log_writer=writer, processes=exchange)
        stop_config = MetricEarlyStopCallbackConfig(
            every_n_updates=2, source_metric_key="x/sum/U2", patience=1, higher_is_better=False
        )
        stop = MetricEarlyStopCallback(stop_config, log_writer=writer)
        stopped = 0
        callback.before_training(update_counter=counter)
        for update in range(5 if exchange.index else 3):
            outputs = {"x": torch.tensor(float(update))}
            callback.track_after_accumulation_step(update_counter=counter, update_outputs=outputs)
            counter.next_update()
            for each in (callback, stop):
                each.track_after_update_step(update_counter=counter)
                each.after_update(update_counter=counter)
            stopped = stopped or (update + 1 if stop.should_stop else 0)
        callback.after_training(update_counter=counter)
        stop.after_training(update_counter=counter)
        writer.close()
        return writer.log_entries, stopped

    (first, _), (second, stopped) = run_threads(2, body)
    assert [entry["x/sum/U2"] for entry in first] == [2.0, 7.0, 4.0]
    assert second == (first if in_memory else [])
    assert stopped == (4 if in_memory else 0)
    assert [entry["x/sum/U2"] for entry in read_run(tmp_path).entries] == [2.0, 7.0, 4.0]


def test_one_process_of_many_alone_and_wrong_arguments(tmp_path: Path) -> None:
    config = [{"every_n_updates": 1, "keys": ["x"]}]
    for processes in (2, 0, True, -1, "all", 1.5, object()):
        with pytest.raises(NoetherError, match=r"Run got processes=.*expected 1"):
            noether_torch.Run(tmp_path, config, processes=processes)
    for limit in (0, -1, float("nan"), float("inf"), 1e10, 10**400, "30", None, True):
        with pytest.raises(NoetherError, match="time_limit"):
            noether_jax.Run(tmp_path, config, time_limit=limit)

    def body(exchange: ThreadExchange) -> None:
        if exchange.index == 1:
            with noether_torch.Run(tmp_path / "alone", config, processes=1) as run:
                run.step({"x": 1.0})

    run_threads(2, body)
    assert len(list(read_run(tmp_path / "alone").entries)) == 1


def test_other_configs_are_refused_at_the_start(tmp_path: Path) -> None:
    def configs(index: int) -> list[dict[str, Any]]:
        return [{"every_n_updates": 3 if index == 1 else 2, "keys": ["x"]}]

    found, _ = train(tmp_path, 3, configs, lambda run, _: run.step({"x": 1.0}))
    assert all("config of process 1 is not that of process 0" in str(outcome.error) for outcome in found)


def test_a_recording_in_some_processes_only_is_refused_at_the_start(tmp_path: Path) -> None:
    def body(exchange: ThreadExchange) -> str:
        record = tmp_path / "recording" if exchange.index else None
        config = [{"every_n_updates": 1, "keys": ["x"]}]
        with pytest.raises(NoetherError, match="whether it has a `record`") as raised:
            noether_torch.Run(tmp_path / "run", config, processes=exchange, record=record).start()
        return str(raised.value)

    assert "process 1 is not that of process 0" in run_threads(2, body)[0]
