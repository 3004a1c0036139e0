"""An interval ends where its count says, and what is left is logged at training's end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hook_cases import array, each_front_end, every, lines, logged, losses, saved_and_logged, train, write_nothing

from noether_core import PeriodicCallback, PeriodicCallbackConfig, UpdateCounter, read_run


@each_front_end
def test_an_update_that_logs_is_one_line_even_where_it_ends_an_epoch(front_end: Any, tmp_path: Path) -> None:
    configs = [
        every(1),
        every(2),
        {"every_n_epochs": 1, "keys": ["loss"]},
        {"every_n_samples": 8, "keys": ["loss"]},
        {"every_n_epochs": 2, "keys": ["lr"]},
    ]
    steps = [{"loss": array(front_end, n), "lr": 0.5} for n in range(1, 9)]
    train(front_end, tmp_path, configs, steps, updates_per_epoch=4, effective_batch_size=4)
    entries = [json.loads(line) for line in lines(tmp_path)]
    assert [entry["update"] for entry in entries] == list(range(1, 9))
    assert [list(entry)[3:-1] for entry in entries] == [
        ["loss/U1"],
        ["loss/U1", "loss/U2", "loss/S8"],
        ["loss/U1"],
        ["loss/U1", "loss/U2", "loss/S8", "loss/E1"],
        ["loss/U1"],
        ["loss/U1", "loss/U2", "loss/S8"],
        ["loss/U1"],
        ["loss/U1", "loss/U2", "loss/S8", "loss/E1", "lr/E2"],
    ]
    assert [entry["loss/E1"] for entry in entries if "loss/E1" in entry] == [2.5, 6.5]


@each_front_end
def test_updates_that_log_nothing_are_no_lines(front_end: Any, tmp_path: Path) -> None:
    train(front_end, tmp_path, [every(3)], losses(front_end, *range(9)))
    assert [json.loads(line)["update"] for line in lines(tmp_path)] == [3, 6, 9]


@pytest.mark.parametrize(
    ("interval", "updates", "ends"),
    [
        ({"every_n_updates": 3}, 7, [3, 6, 7]),
        ({"every_n_updates": 3}, 6, [3, 6]),
        ({"every_n_updates": 10}, 2, [2]),
        ({"every_n_epochs": 2}, 16, [6, 12, 16]),
        ({"every_n_epochs": 2}, 12, [6, 12]),
        ({"every_n_epochs": 1}, 7, [3, 6, 7]),
        ({"every_n_samples": 20}, 11, [3, 5, 8, 10, 11]),
        ({"every_n_samples": 20}, 10, [3, 5, 8, 10]),
        ({"every_n_samples": 3}, 3, [1, 2, 3]),
    ],
)
@each_front_end
def test_an_interval_ends_where_its_count_says_and_the_rest_is_logged_at_the_end(
    front_end: Any, interval: dict[str, int], updates: int, ends: list[int], tmp_path: Path
) -> None:
    steps = losses(front_end, *range(1, updates + 1))
    train(front_end, tmp_path, [{**interval, "keys": ["loss"]}], steps, updates_per_epoch=3, effective_batch_size=8)
    ((key, points),) = read_run(tmp_path).series.items()
    assert key == f"loss/{next(iter(interval))[8].upper()}{next(iter(interval.values()))}"
    starts = [0, *ends[:-1]]
    expected = [
        (end // 3, end, 8 * end, (start + 1 + end) / 2) for start, end in zip(starts, ends, strict=True)
    ]  # the mean of start + 1, ..., end
    assert [(point.epoch, point.update, point.sample, point.value) for point in points] == expected


@each_front_end
def test_the_rest_is_merged_into_the_last_updates_entry(front_end: Any, tmp_path: Path) -> None:
    run = train(front_end, tmp_path, [every(1), every(2)], losses(front_end, 1, 2, 3))
    assert run.log_writer.log_entries[-1] == {"epoch": 0, "update": 3, "sample": 3, "loss/U1": 3.0, "loss/U2": 3.0}
    assert read_run(tmp_path).entries == run.log_writer.log_entries


@each_front_end
def test_the_rest_is_logged_when_the_loop_fails(front_end: Any, tmp_path: Path) -> None:
    def failing() -> Iterable[Any]:
        yield from losses(front_end, 1, 2, 4)
        raise RuntimeError("the data is gone")

    with pytest.raises(RuntimeError, match="the data is gone"):
        train(front_end, tmp_path, [every(2)], failing())
    assert logged(tmp_path, "loss/U2") == [(2, 1.5), (3, 4.0)]


@pytest.mark.parametrize("fields", [{"save_output": True, "log_output": False}, {}])
@each_front_end
def test_steps_of_an_update_that_never_ended_change_nothing_that_is_out(
    front_end: Any, fields: dict[str, Any], tmp_path: Path
) -> None:
    config = every(2, **fields)
    with front_end.Run(tmp_path / "whole", [config], accumulation_steps=2) as whole:
        whole.step(losses(front_end, 1, 2, 3, 4))
    with front_end.Run(tmp_path / "more", [config], accumulation_steps=2) as more:
        more.step(losses(front_end, 1, 2, 3, 4, 100))
    assert len(lines(tmp_path / "whole")) + len(read_run(tmp_path / "whole").arrays) == 1
    assert saved_and_logged([tmp_path / "more"]) == saved_and_logged([tmp_path / "whole"])


@each_front_end
def test_steps_of_an_update_that_never_ended_are_part_of_the_rest(front_end: Any, tmp_path: Path) -> None:
    train(front_end, tmp_path, [every(2)], losses(front_end, 1, 2, 6), accumulation_steps=2)
    assert logged(tmp_path, "loss/U2") == [(1, 3.0)]


@each_front_end
def test_a_run_without_steps_logs_nothing(front_end: Any, tmp_path: Path) -> None:
    assert train(front_end, tmp_path, [every(2)], []).log_writer.log_entries == []
    assert read_run(tmp_path).entries == []


def test_a_periodic_callback_is_told_which_trigger_fired() -> None:
    seen = []

    class Mine(PeriodicCallback):
        def periodic_callback(self, *, interval_type: Any, update_counter: Any, **_: Any) -> None:
            seen.append((interval_type, str(update_counter.cur_iteration)))

    counter = UpdateCounter(updates_per_epoch=2, effective_batch_size=4)
    mine = [
        Mine(PeriodicCallbackConfig(**{f"every_n_{unit}s": n}), log_writer=write_nothing())
        for unit, n in (("epoch", 1), ("sample", 6), ("update", 2))
    ]
    for _ in range(2):
        counter.add_samples(4)
        counter.next_update()
        for each in mine:
            each.after_update(update_counter=counter)
    counter.next_epoch()
    for each in mine:
        each.after_epoch(update_counter=counter)
    mine[0].at_eval(update_counter=counter)
    at_the_end = "E1_U2_S8"
    assert seen == [("sample", "E0_U2_S8"), ("update", "E0_U2_S8"), ("epoch", at_the_end), ("eval", at_the_end)]
