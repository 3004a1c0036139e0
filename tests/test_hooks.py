from __future__ import annotations

import copy
import gc
import inspect
import io
import json
import logging
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import noether_jax
import noether_torch
from noether_core import (
    CallbackBase,
    CallbackBaseConfig,
    HookOrderError,
    LogWriter,
    MissingKeyError,
    NonFiniteError,
    PeriodicCallback,
    PeriodicCallbackConfig,
    TrackAdditionalOutputsCallbackConfig,
    TrainingIteration,
    UpdateCounter,
    read_run,
)

FRONT_ENDS = (noether_jax, noether_torch)
HOOKS = (
    "before_training",
    "track_after_accumulation_step",
    "track_after_update_step",
    "after_update",
    "after_epoch",
    "at_eval",
    "after_training",
)
NAN, INF = float("nan"), float("inf")

each_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS)


def every(updates: int, **fields: Any) -> dict[str, Any]:
    return {"every_n_updates": updates, **({} if "patterns" in fields else {"keys": ["loss"]}), **fields}


def array(front_end: Any, value: Any, dtype: Any = np.float32) -> Any:
    return front_end.Run.backend.from_numpy(np.asarray(value, dtype))


def train(front_end: Any, path: Path, configs: Sequence[Any], steps: Iterable[Any], **arguments: Any) -> Any:
    with front_end.Run(path, configs, **arguments) as run:
        for outputs in steps:
            run.step(outputs)
    return run


def losses(front_end: Any, *values: Any) -> list[dict[str, Any]]:
    return [{"loss": array(front_end, value)} for value in values]


def logged(path: Path, key: str) -> list[tuple[int, Any]]:
    return [(point.update, point.value) for point in read_run(path).series.get(key, [])]


def lines(path: Path) -> list[bytes]:
    return b"".join(file.read_bytes() for file in sorted((path / "metrics").glob("*.jsonl"))).splitlines()


def tracker(front_end: Any, log_writer: Any, path: Path | None = None, **fields: Any) -> Any:
    config = TrackAdditionalOutputsCallbackConfig(**fields)
    return front_end.TrackAdditionalOutputsCallback(config, log_writer=log_writer, output_path=path)


def write_nothing() -> LogWriter:
    return LogWriter(update_counter=UpdateCounter())


class Recorder(CallbackBase):
    """Note every call with the counter as it shows, and fail at the hooks that are named."""

    def __init__(self, fail_at: Sequence[str] = (), message: str = "no") -> None:
        super().__init__(CallbackBaseConfig(), log_writer=write_nothing())
        self.calls: list[tuple[Any, ...]] = []
        self._fail_at, self._message = fail_at, message

    def _note(self, hook: str, update_counter: UpdateCounter, *more: Any) -> None:
        self.calls.append((hook, str(update_counter.cur_iteration), *more))
        if hook in self._fail_at:
            raise OSError(self._message)

    def before_training(self, *, update_counter: Any, **_: Any) -> None:
        self._note("before_training", update_counter)

    def track_after_accumulation_step(self, *, update_counter: Any, **more: Any) -> None:
        shown = [more[name] for name in ("accumulation_step", "accumulation_steps", "update_outputs")]
        self._note("track_after_accumulation_step", update_counter, *shown)

    def track_after_update_step(self, *, update_counter: Any, **_: Any) -> None:
        self._note("track_after_update_step", update_counter)

    def after_update(self, *, update_counter: Any, **_: Any) -> None:
        self._note("after_update", update_counter)

    def after_epoch(self, *, update_counter: Any, **_: Any) -> None:
        self._note("after_epoch", update_counter)

    def after_training(self, *, update_counter: Any, **_: Any) -> None:
        self._note("after_training", update_counter)


# ---------------------------------------------------------------------- the order of the hooks


@each_front_end
def test_the_hooks_come_in_order_and_the_counter_moves_after_the_last_accumulation_step(
    front_end: Any, tmp_path: Path
) -> None:
    recorder = Recorder()
    train(
        front_end,
        tmp_path,
        [recorder],
        [{"n": n} for n in range(6)],
        updates_per_epoch=2,
        effective_batch_size=8,
        accumulation_steps=2,
    )
    step = "track_after_accumulation_step"
    assert recorder.calls == [
        ("before_training", "E0_U0_S0"),
        (step, "E0_U0_S0", 0, 2, {"n": 0}),
        (step, "E0_U0_S0", 1, 2, {"n": 1}),
        ("track_after_update_step", "E0_U1_S8"),
        ("after_update", "E0_U1_S8"),
        (step, "E0_U1_S8", 0, 2, {"n": 2}),
        (step, "E0_U1_S8", 1, 2, {"n": 3}),
        ("track_after_update_step", "E1_U2_S16"),
        ("after_update", "E1_U2_S16"),
        ("after_epoch", "E1_U2_S16"),
        (step, "E1_U2_S16", 0, 2, {"n": 4}),
        (step, "E1_U2_S16", 1, 2, {"n": 5}),
        ("track_after_update_step", "E1_U3_S24"),
        ("after_update", "E1_U3_S24"),
        ("after_training", "E1_U3_S24"),
    ]


@each_front_end
def test_each_hook_is_called_for_all_callbacks_before_the_next_hook(front_end: Any, tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    second.calls = first.calls
    train(front_end, tmp_path, [first, second], [{}], updates_per_epoch=1)
    assert [call[0] for call in first.calls] == [hook for hook in HOOKS if hook != "at_eval" for _ in range(2)]


@each_front_end
def test_batch_and_losses_reach_the_hooks(front_end: Any, tmp_path: Path) -> None:
    seen = []

    class Mine(Recorder):
        def track_after_accumulation_step(self, *, batch: Any, losses: Any, **_: Any) -> None:
            seen.append((batch, losses))

    with front_end.Run(tmp_path, [Mine()]) as run:
        run.step({}, batch="a batch", losses={"total": 1.0})
    assert seen == [("a batch", {"total": 1.0})]


@each_front_end
def test_a_list_of_dicts_is_that_many_accumulation_steps(front_end: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    steps = losses(front_end, 1, 2, 3, 4, 5, 6)
    config = every(1, reduce=["mean", "last"])
    together = train(front_end, tmp_path / "a", [recorder, config], [steps[:3], tuple(steps[3:])], accumulation_steps=2)
    apart = train(front_end, tmp_path / "b", [config], steps, accumulation_steps=2)
    assert together.log_writer.log_entries == apart.log_writer.log_entries
    assert logged(tmp_path / "a", "loss/mean/U1") == [(1, 1.5), (2, 3.5), (3, 5.5)]
    numbers = [call[1:3] for call in recorder.calls if call[0] == "track_after_accumulation_step"]
    assert numbers == [(f"E0_U{update}_S{update}", step) for update in range(3) for step in range(2)]


# ---------------------------------------------------------------------- when the intervals end


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


# ---------------------------------------------------------------------- what is reduced


@each_front_end
def test_the_mean_is_over_all_elements_of_all_steps(front_end: Any, tmp_path: Path) -> None:
    steps = [{"loss": array(front_end, [1, 2, 3])}, {"loss": array(front_end, [10, 20, 30, 40, 50])}]
    train(front_end, tmp_path / "updates", [every(2)], steps)
    train(front_end, tmp_path / "accumulation", [every(1)], steps, accumulation_steps=2)
    assert logged(tmp_path / "updates", "loss/U2") == [(2, 156 / 8)]
    assert logged(tmp_path / "accumulation", "loss/U1") == [(1, 156 / 8)]


@each_front_end
def test_a_mean_of_float32_is_rounded_once(front_end: Any, tmp_path: Path) -> None:
    values = np.float32([1e8, 1, -1e8, 1])
    train(front_end, tmp_path, [every(4)], losses(front_end, *values))
    assert logged(tmp_path, "loss/U4") == [(4, 0.5)]


@each_front_end
def test_an_empty_array_adds_nothing(front_end: Any, tmp_path: Path) -> None:
    train(front_end, tmp_path, [every(2)], losses(front_end, [], 4, [], []))
    assert logged(tmp_path, "loss/U2") == [(2, 4.0)]


@each_front_end
def test_last_is_the_value_of_the_last_update_at_its_last_step_that_had_one(front_end: Any, tmp_path: Path) -> None:
    one, two, three = losses(front_end, 1, 2, 3)
    steps = [one, two, three, {}, {}, one, {}, None, two, three]  # five updates of two steps
    config = every(1, reduce=["mean", "last"], missing="skip")
    train(front_end, tmp_path / "1", [config], steps, accumulation_steps=2)
    assert logged(tmp_path / "1", "loss/last/U1") == [(1, 2.0), (2, 3.0), (3, 1.0), (5, 3.0)]
    train(front_end, tmp_path / "2", [{**config, "every_n_updates": 2}], steps[:8], accumulation_steps=2)
    assert logged(tmp_path / "2", "loss/last/U2") == [(2, 3.0)]
    assert logged(tmp_path / "2", "loss/mean/U2") == [(2, 2.0), (4, 1.0)]


@pytest.mark.parametrize(
    ("value", "dtype", "plain"),
    [(True, np.bool_, True), (2**40 + 1, np.int64, 2**40 + 1), (255, np.uint8, 255), (0.1, np.float64, 0.1)],
)
@each_front_end
def test_last_is_logged_as_it_is(front_end: Any, value: Any, dtype: Any, plain: Any, tmp_path: Path) -> None:
    train(front_end, tmp_path, [every(1, reduce="last")], [{"loss": array(front_end, value, dtype)}])
    ((_, found),) = logged(tmp_path, "loss/U1")
    assert (type(found), found) == (type(plain), plain)


@each_front_end
def test_a_key_that_comes_only_at_times_is_the_mean_of_what_came(front_end: Any, tmp_path: Path) -> None:
    steps = [
        {"loss": array(front_end, 1)},
        {"loss": array(front_end, 3), "grad/a": array(front_end, [2, 4])},
        {"grad/b": 7, "loss": array(front_end, 5)},
        {"loss": array(front_end, 7)},
    ]
    run = train(front_end, tmp_path, [every(2, patterns=["grad"], keys=["loss"])], steps)
    assert run.log_writer.log_entries == [
        {"epoch": 0, "update": 2, "sample": 2, "loss/U2": 2.0, "grad/a/U2": 3.0},
        {"epoch": 0, "update": 4, "sample": 4, "loss/U2": 6.0, "grad/b/U2": 7.0},
    ]


@each_front_end
def test_keys_are_logged_in_the_configs_order_then_those_of_patterns_as_they_came(
    front_end: Any, tmp_path: Path
) -> None:
    steps = [{"zz": 1.0, "grad/b": 1.0}, {"grad/a": 1.0, "grad/b": 1.0, "a": 1.0, "grad/c": 1.0}]
    config = every(2, keys=["a", "zz"], patterns=["grad/c", "grad"], missing="skip")
    run = train(front_end, tmp_path, [config], steps)
    assert [key.removesuffix("/U2") for key in list(run.log_writer.log_entries[0])[3:]] == [
        "a",
        "zz",
        "grad/b",
        "grad/a",
        "grad/c",
    ]


@each_front_end
def test_a_key_matched_several_times_is_tracked_once(front_end: Any, tmp_path: Path) -> None:
    config = every(2, keys=["loss", "loss"], patterns=["los", "oss", ""])
    run = train(front_end, tmp_path, [config], losses(front_end, 1, 2))
    assert run.log_writer.log_entries == [{"epoch": 0, "update": 2, "sample": 2, "loss/U2": 1.5}]


@each_front_end
def test_nothing_to_track_counts_the_step_only(front_end: Any, tmp_path: Path) -> None:
    one, _, three = losses(front_end, 1, 2, 3)
    with front_end.Run(tmp_path, [every(3)]) as run:
        run.step(one)
        run.step()
        run.step(None)
        run.step(three)
    assert logged(tmp_path, "loss/U3") == [(3, 1.0), (4, 3.0)]


@each_front_end
def test_a_value_of_none_is_as_if_it_were_not_there(front_end: Any, tmp_path: Path) -> None:
    steps = [{"loss": array(front_end, 1), "more": {"a": None}}, {"loss": None, "more": {"a": 4.0}}]
    train(front_end, tmp_path, [every(2, keys=["loss", "more/a"], missing="skip")], steps)
    assert logged(tmp_path, "loss/U2") == [(2, 1.0)]
    assert logged(tmp_path, "more/a/U2") == [(2, 4.0)]
    with pytest.raises(MissingKeyError, match="'loss' is not among"):
        train(front_end, tmp_path / "error", [every(2)], steps)


@each_front_end
def test_an_evaluation_leaves_the_interval_as_it_was(front_end: Any, tmp_path: Path) -> None:
    config = every(2, save_output=True, reduce=["mean", "last"])
    with front_end.Run(tmp_path, [config]) as run:
        for outputs in losses(front_end, 1, 3, 5, 7):
            run.step(outputs)
            before = run.callbacks[0].tracked_values
            run.callbacks[0].at_eval(update_counter=run.counter)
            assert run.callbacks[0].tracked_values == before
    assert logged(tmp_path, "loss/mean/U2") == [(2, 2.0), (4, 6.0)]
    assert [file.path.name for file in read_run(tmp_path).arrays] == [
        "E0_U2_S2.safetensors",
        "E0_U4_S4.safetensors",
    ]


@each_front_end
def test_the_interval_so_far_can_be_read(front_end: Any, tmp_path: Path) -> None:
    config = every(3, keys=["field", "loss"], reduce={"loss": ["mean", "last"], "field": "last"})
    with front_end.Run(tmp_path, [{**config, "log_output": False, "save_output": True}]) as run:
        (callback,) = run.callbacks
        assert callback.tracked_values == {}
        for n in (1, 2):
            run.step({"loss": array(front_end, n), "field": array(front_end, [n, n])})
        values = callback.tracked_values
        assert list(values) == ["field", "loss"]
        assert values["loss"] == [1.5, 2.0]
        np.testing.assert_array_equal(values["field"], [[2, 2]], strict=False)
        assert values["field"][0].dtype == np.float32
        run.step({"loss": array(front_end, 3), "field": array(front_end, [3, 3])})
        assert callback.tracked_values == {}


# ---------------------------------------------------------------------- missing and non-finite


@each_front_end
def test_a_missing_key_is_an_error_unless_told_otherwise(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [every(2)]) as run:
        run.step({"loss": 1.0})
        with pytest.raises(MissingKeyError, match=r"'loss' is not among .* which have 'lr'"):
            run.step({"lr": 1.0})
        run.step({"loss": 2.0})
    assert logged(tmp_path, "loss/U2") == [(2, 1.5)]


@each_front_end
def test_a_missing_key_is_warned_about_once(front_end: Any, tmp_path: Path) -> None:
    steps = [{"lr": 1.0}, {"loss": 2.0}, {}, {"lr": 3.0}, {"lr": 4.0}]
    with pytest.warns(UserWarning, match="not among the update outputs") as warned:
        train(front_end, tmp_path, [every(2, keys=["loss", "norm"], missing="warn")], steps)
    assert [str(each.message).count("'loss'") for each in warned] == [2, 1]
    assert [each.category for each in warned] == [UserWarning, UserWarning]
    assert "'norm' is not among" in str(warned[1].message)
    assert logged(tmp_path, "loss/U2") == [(2, 2.0)]


@each_front_end
def test_a_missing_key_is_skipped_without_a_word(front_end: Any, tmp_path: Path) -> None:
    train(front_end, tmp_path, [every(2, missing="skip")], [{"lr": 1.0}, {"loss": 2.0}, {}, {}])
    assert logged(tmp_path, "loss/U2") == [(2, 2.0)]


@each_front_end
def test_a_pattern_that_matches_nothing_in_a_whole_interval_is_warned_about_once(
    front_end: Any, tmp_path: Path
) -> None:
    steps = [{"loss": 1.0}] * 6
    with pytest.warns(UserWarning, match="'grda' matched no update output in a whole interval") as warned:
        train(front_end, tmp_path, [every(2, patterns=["grda", "loss"])], steps)
    assert len(warned) == 1
    assert logged(tmp_path, "loss/U2") == [(2, 1.0), (4, 1.0), (6, 1.0)]


@each_front_end
def test_a_pattern_that_stops_matching_is_warned_about(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [every(2, patterns=["loss"])]) as run:
        for outputs in ({"loss": 1.0}, {"lr": 1.0}, {"lr": 1.0}):
            run.step(outputs)
        with pytest.warns(UserWarning, match="'loss' matched no update output") as warned:
            run.step({"lr": 1.0})
    assert len(warned) == 1


@each_front_end
def test_a_pattern_that_matches_once_an_interval_is_not_warned_about(front_end: Any, tmp_path: Path) -> None:
    steps = [{"lr": 1.0}, {"loss": 2.0}, {"loss": 3.0}, {"lr": 4.0}, None, None]
    train(front_end, tmp_path, [every(2, patterns=["loss"])], steps)
    assert logged(tmp_path, "loss/U2") == [(2, 2.0), (4, 3.0)]


@pytest.mark.parametrize(
    ("values", "mean", "count"),
    [
        ([1, NAN], NAN, 1),
        ([1, INF], INF, 1),
        ([-INF, 1], -INF, 1),
        ([INF, -INF], NAN, 2),
        ([[INF, 1, NAN], [2, -INF]], NAN, 3),
    ],
)
@each_front_end
def test_a_value_that_is_not_finite_shows_in_the_mean_and_is_counted(
    front_end: Any, values: Any, mean: float, count: int, tmp_path: Path
) -> None:
    run = train(front_end, tmp_path, [every(2)], [*losses(front_end, *values), *losses(front_end, 1, 2)])
    first, second = run.log_writer.log_entries
    np.testing.assert_equal(first["loss/U2"], mean)
    assert first["loss/nonfinite/U2"] == count
    assert second == {"epoch": 0, "update": 4, "sample": 4, "loss/U2": 1.5}


@each_front_end
def test_values_that_are_not_finite_are_left_out_and_counted(front_end: Any, tmp_path: Path) -> None:
    steps = losses(front_end, [1, NAN, 3], INF, 5, NAN, NAN, -INF)
    run = train(front_end, tmp_path, [every(2, nonfinite="skip", reduce=["mean", "last"])], steps[1:])
    assert run.log_writer.log_entries == [
        {"epoch": 0, "update": 2, "sample": 2, "loss/mean/U2": 5.0, "loss/last/U2": 5.0, "loss/nonfinite/U2": 1},
        {"epoch": 0, "update": 4, "sample": 4, "loss/nonfinite/U2": 2},
        {"epoch": 0, "update": 5, "sample": 5, "loss/nonfinite/U2": 1},
    ]
    train(front_end, tmp_path / "array", [every(2, nonfinite="skip")], steps[:2])
    assert logged(tmp_path / "array", "loss/U2") == [(2, 2.0)]
    assert logged(tmp_path / "array", "loss/nonfinite/U2") == [(2, 2)]


@each_front_end
def test_a_value_that_is_not_finite_ends_training_at_the_intervals_end_and_is_located(
    front_end: Any, tmp_path: Path
) -> None:
    steps = losses(front_end, 1, 2, 3, NAN, INF, 4)
    config = every(3, nonfinite="raise", save_output=True)
    with front_end.Run(tmp_path, [config, every(1)], accumulation_steps=2) as run:
        for outputs in steps[:5]:
            run.step(outputs)
        expected = r"'loss': 1 NaN, 1 \+inf, 0 -inf of 6 values, first at update 2, accumulation step 1"
        with pytest.raises(NonFiniteError, match=expected):
            run.step(steps[5])
        run.step(losses(front_end, 1, 2))
    assert [update for update, _ in logged(tmp_path, "loss/U1")] == [1, 2, 3, 4]
    assert logged(tmp_path, "loss/nonfinite/U3") == [(3, 2)]
    assert logged(tmp_path, "loss/U3")[1:] == [(4, 1.5)]
    assert len(read_run(tmp_path).arrays) == 2


# ---------------------------------------------------------------------- what comes out


@each_front_end
def test_verbose_tells_the_callbacks_logger(front_end: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = train(front_end, tmp_path, [every(2, verbose=True), every(1)], losses(front_end, 1, 2))
    name = "TrackAdditionalOutputsCallback(every_n_updates=2, keys=['loss'], patterns=[])"
    assert str(run.callbacks[0]) == name
    ours = [record for record in caplog.records if record.name.startswith("TrackAdditional")]
    assert [(record.name, record.levelno, record.getMessage()) for record in ours] == [
        (name, logging.INFO, "loss/U2: 1.50000")
    ]


@pytest.mark.parametrize(("fields", "directory"), [({}, "U2"), ({"id": "mine"}, "mine/U2")])
@each_front_end
def test_saved_output_is_a_file_an_interval(
    front_end: Any, fields: dict[str, Any], directory: str, tmp_path: Path
) -> None:
    config = every(2, keys=["loss", "field"], save_output=True, log_output=False, **fields)
    config["reduce"] = {"loss": ["mean", "last"], "field": "last"}
    steps = [
        {"loss": array(front_end, n), "field": array(front_end, [[n, 2 * n]], ml_dtypes.bfloat16)} for n in range(3)
    ]
    run = train(front_end, tmp_path, [config], steps)
    saved = tmp_path / "update_outputs" / directory
    assert run.callbacks[0].out == saved
    assert sorted(file.name for file in saved.iterdir()) == ["E0_U2_S2.safetensors", "E0_U3_S3.safetensors"]
    first, rest = (file.load() for file in read_run(tmp_path).arrays)
    assert {name: (value.dtype, value.shape) for name, value in first.items()} == {
        "field": (ml_dtypes.bfloat16, (1, 2)),
        "loss/last": (np.float32, ()),
        "loss/mean": (np.float32, ()),
    }
    assert [first["loss/mean"], first["loss/last"], rest["loss/mean"]] == [0.5, 1.0, 2.0]
    assert first["field"].astype(float).tolist() == [[1, 2]]
    assert run.log_writer.log_entries == []


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.uint64, np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
@each_front_end
def test_a_saved_last_keeps_its_dtype_and_bits(front_end: Any, dtype: Any, tmp_path: Path) -> None:
    value = np.asarray([0, 1, 1.5, 3], dtype)
    config = every(1, reduce="last", save_output=True, log_output=False)
    train(front_end, tmp_path, [config], [{"loss": array(front_end, value, dtype)}])
    (file,) = read_run(tmp_path).arrays
    found = file.load()["loss"]
    assert (found.dtype, found.tobytes()) == (value.dtype, value.tobytes())


def test_both_front_ends_write_the_same_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(7, 2, 3)).astype(np.float32)
    config = every(2, keys=["a/b", "c"], reduce={"a/b": ["mean", "last"]}, log_output=False, save_output=True)
    for front_end in FRONT_ENDS:
        steps = [{"a": {"b": array(front_end, value)}, "c": array(front_end, value[0, 0])} for value in values]
        train(front_end, tmp_path / front_end.__name__, [config, every(3, keys=["c"])], steps)
    first, second = (saved_and_logged([tmp_path / front_end.__name__]) for front_end in FRONT_ENDS)
    assert len(first) == 5
    assert first == second


def saved_and_logged(paths: Sequence[Path]) -> dict[str, bytes]:
    saved = {str(file.relative_to(path)): file.read_bytes() for path in paths for file in path.rglob("*.safetensors")}
    return {**saved, "metrics": b"\n".join(line for path in paths for line in lines(path))}


@each_front_end
def test_a_writer_of_the_users_own_gets_plain_python_numbers(front_end: Any) -> None:
    class Mine:
        def __init__(self) -> None:
            self.logged: list[tuple[str, Any]] = []

        def add_scalar(self, key: str, value: Any, logger: Any = None, format_str: Any = None) -> None:
            self.logged.append((key, value))

    mine, counter = Mine(), UpdateCounter()
    callback = tracker(
        front_end, mine, **every(1, keys=["loss", "ok"], reduce={"loss": "mean", "ok": "last"}, nonfinite="skip")
    )
    callback.before_training(update_counter=counter)
    outputs = {"loss": array(front_end, [0.5, NAN]), "ok": array(front_end, True, np.bool_)}
    callback.track_after_accumulation_step(update_counter=counter, update_outputs=outputs)
    counter.next_update()
    callback.after_update(update_counter=counter)
    assert mine.logged == [("loss/mean/U1", 0.5), ("loss/nonfinite/U1", 1), ("ok/last/U1", True)]
    assert [type(value) for _, value in mine.logged] == [float, int, bool]


# ---------------------------------------------------------------------- a value is taken at the call

SHAPES = [(), (1,), (3,), (2000,)]
TAKEN = every(9, reduce={"loss": ["mean", "last"]}, log_output=False, save_output=True)


def taken(path: Path, shape: tuple[int, ...]) -> None:
    """Check what is saved of the values 1 and 3."""
    (file,) = read_run(path).arrays
    arrays = file.load()
    assert arrays["loss/mean"] == 2.0
    np.testing.assert_array_equal(arrays["loss/last"], np.full(shape, 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tensor_is_taken_at_the_call(shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [TAKEN]) as run:
        for value in (1.0, 3.0):
            tensor = torch.full(shape, value, dtype=dtype)
            if value == 3.0:
                noted = run.callbacks[0].tracked_values["loss"]
            run.step({"loss": tensor})
            tensor.add_(100.0)
    assert noted[0] == 1.0
    taken(tmp_path, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_view_of_a_buffer_that_is_used_again_is_taken_at_the_call(shape: tuple[int, ...], tmp_path: Path) -> None:
    buffer = torch.zeros((2, *shape), dtype=torch.float64)
    with noether_torch.Run(tmp_path, [TAKEN]) as run:
        for value in (1.0, 3.0):
            buffer.fill_(value)
            run.step({"loss": buffer[1]})
        buffer.fill_(7.0)
    taken(tmp_path, shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@each_front_end
def test_a_numpy_array_is_taken_at_the_call(front_end: Any, shape: tuple[int, ...], dtype: Any, tmp_path: Path) -> None:
    buffer = np.zeros(shape, dtype)
    with front_end.Run(tmp_path, [TAKEN]) as run:
        for value in (1.0, 3.0):
            buffer[...] = value
            run.step({"loss": buffer})
            buffer[...] = NAN
    taken(tmp_path, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_donated_buffer_is_taken_at_the_call(shape: tuple[int, ...], tmp_path: Path) -> None:
    add_two = jax.jit(lambda value: value + 2, donate_argnums=0)
    value = jnp.full(shape, 1.0)
    with noether_jax.Run(tmp_path, [TAKEN]) as run:
        for _ in range(2):
            run.step({"loss": value})
            donated, value = value, add_two(value)
            assert donated.is_deleted()
    taken(tmp_path, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_keeps_the_graph_of_a_tensor_that_requires_grad(shape: tuple[int, ...], tmp_path: Path) -> None:
    saved = []
    with noether_torch.Run(tmp_path, [TAKEN]) as run:
        weight = torch.ones(shape, requires_grad=True)
        for value in (1.0, 3.0):
            inner = weight * value
            loss = inner * inner / value  # saves `inner` for the backward pass
            saved.append(weakref.ref(inner))
            run.step({"loss": loss})
            loss.sum().backward()
            assert weight.grad is not None
            del inner, loss
            gc.collect()
            assert [each() for each in saved] == [None] * len(saved)
    taken(tmp_path, shape)


def test_the_graph_is_freed_without_a_backward_pass(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [every(10, reduce=["mean", "last"])]) as run:
        weight = torch.ones((), requires_grad=True)
        inner = weight * 2
        loss = inner * inner
        saved = weakref.ref(inner)
        run.step({"loss": loss})
        del inner, loss
        gc.collect()
        assert saved() is None
        assert run.callbacks[0].tracked_values == {"loss": [4.0, 4.0]}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hook_inside", [False, True])
def test_tensors_of_inference_mode_are_taken_beside_others(
    shape: tuple[int, ...], hook_inside: bool, tmp_path: Path
) -> None:
    with noether_torch.Run(tmp_path, [TAKEN]) as run:
        with torch.inference_mode():
            first = torch.full(shape, 1.0)
            if hook_inside:
                run.step({"loss": first})
        if not hook_inside:
            run.step({"loss": first})
        run.step({"loss": torch.full(shape, 3.0, requires_grad=True)})
    taken(tmp_path, shape)


# ---------------------------------------------------------------------- going on from a checkpoint

LONG = {
    "every_n_updates": 4,
    "keys": ["loss", "field", "flag"],
    "patterns": ["grad"],
    "reduce": {"loss": ["mean", "last"], "field": ["mean", "last"], "flag": "last"},
    "log_output": False,
    "save_output": True,
    "missing": "skip",
}
LOGGED = [
    {"every_n_updates": 3, "keys": ["loss"], "patterns": ["grad"], "reduce": ["mean", "last"]},
    {"every_n_samples": 50, "keys": ["loss"], "nonfinite": "skip"},
    {"every_n_epochs": 1, "keys": ["loss", "count"], "id": "epochs", "save_output": True},
]


def outputs_of(front_end: Any, at: int) -> dict[str, Any]:
    rng = np.random.default_rng(at)
    outputs = {
        "loss": array(front_end, NAN if at == 9 else rng.normal()),
        "field": array(front_end, rng.normal(size=(2, 3)), ml_dtypes.bfloat16),
        "flag": array(front_end, at % 3 == 0, np.bool_),
        "count": array(front_end, rng.integers(2**50), np.int64),
    }
    if at % 4 == 1:
        del outputs["flag"]
        outputs["grad/w"] = rng.normal()
    return outputs | {f"grad/{at % 2}": array(front_end, rng.normal(), np.float64)}


def new_run(front_end: Any, path: Path) -> Any:
    return front_end.Run(path, [LONG, *LOGGED], updates_per_epoch=5, effective_batch_size=8, accumulation_steps=2)


def plain(state: Any) -> Any:
    """Give back the state as it comes from a JSON file beside a NumPy archive."""
    arrays: list[np.ndarray[Any, Any]] = []

    def out(value: Any) -> Any:
        if isinstance(value, dict):
            assert all(type(name) is str for name in value)
            return {"dict": {name: out(item) for name, item in value.items()}}
        if isinstance(value, list):
            return {"list": [out(item) for item in value]}
        if isinstance(value, np.ndarray):
            assert type(value) is np.ndarray
            assert not value.dtype.hasobject
            arrays.append(value)
            return {"array": len(arrays) - 1}
        assert value is None or type(value) in (int, float, bool, str), f"{value!r} is no plain value"
        return {"value": value}

    def back(value: Any) -> Any:
        ((kind, held),) = value.items()
        if kind == "dict":
            return {name: back(item) for name, item in held.items()}
        if kind == "list":
            return [back(item) for item in held]
        return read[f"arr_{held}"] if kind == "array" else held

    text = json.dumps(out(state), allow_nan=False)
    archive = io.BytesIO()
    np.savez(archive, *arrays)
    archive.seek(0)
    with np.load(archive, allow_pickle=False) as read:
        return back(json.loads(text))


def uninterrupted(path: Path, steps: int) -> dict[str, bytes]:
    with new_run(noether_jax, path) as run:
        for at in range(steps):
            run.step(outputs_of(noether_jax, at))
    return saved_and_logged([path])


def interrupted(path: Path, cuts: Sequence[int], steps: int, through: Any = lambda state: state) -> dict[str, bytes]:
    """Train to each cut in turn, in JAX, PyTorch, JAX and so on, going on from the state of the one before."""
    state, start, paths = None, 0, []
    for number, stop in enumerate([*cuts, steps]):
        front_end = FRONT_ENDS[number % 2]
        paths.append(path / str(number))
        run = new_run(front_end, paths[-1])
        run.start()
        if state is not None:
            run.load_state_dict(through(state))
        for at in range(start, stop):
            run.step(outputs_of(front_end, at))
        start, state = stop, run.state_dict()
        if stop < steps:
            run.log_writer.close()
        else:
            run.finish()
    return saved_and_logged(paths)


@pytest.mark.parametrize("cuts", [(5, 18), (1, 2), (7, 9), (12, 13), (0, 23)])
def test_a_run_that_goes_on_in_the_other_framework_and_back_writes_the_same(
    cuts: tuple[int, int], tmp_path: Path
) -> None:
    expected = uninterrupted(tmp_path / "whole", 26)
    assert len(expected) == 8
    assert interrupted(tmp_path / "cut", cuts, 26) == expected


def test_the_state_is_plain_and_survives_json_and_a_numpy_archive(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "whole", 26)
    assert interrupted(tmp_path / "cut", (5, 18), 26, through=plain) == expected


@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.int64,
        np.bool_,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e5m2,
    ],
)
@each_front_end
def test_a_last_value_survives_a_numpy_archive(front_end: Any, dtype: Any, tmp_path: Path) -> None:
    config = every(1, reduce="last", log_output=False, save_output=True, missing="skip")
    first = front_end.Run(tmp_path, [config], accumulation_steps=2)
    first.start()
    first.step({"loss": array(front_end, [0, 1, 3], dtype)})
    with front_end.Run(tmp_path, [config], accumulation_steps=2) as second:
        second.load_state_dict(plain(first.state_dict()))
        second.step({})
    (file,) = read_run(tmp_path).arrays
    found = file.load()["loss"]
    assert (found.dtype, found.tobytes()) == (dtype, np.asarray([0, 1, 3], dtype).tobytes())


def test_a_state_is_the_same_from_both_front_ends(tmp_path: Path) -> None:
    states = []
    for front_end in FRONT_ENDS:
        run = new_run(front_end, tmp_path / front_end.__name__)
        run.start()
        for at in range(5):
            run.step(outputs_of(front_end, at))
        states.append(run.state_dict())
        run.log_writer.close()
    np.testing.assert_equal(states[0], states[1])


@each_front_end
def test_a_state_does_not_change_as_training_goes_on(front_end: Any, tmp_path: Path) -> None:
    with new_run(front_end, tmp_path) as run:
        for at in range(3):
            run.step(outputs_of(front_end, at))
        state = run.state_dict()
        kept = copy.deepcopy(state)
        for at in range(3, 12):
            run.step(outputs_of(front_end, at))
        np.testing.assert_equal(state, kept)


@each_front_end
def test_a_pattern_that_matched_before_the_checkpoint_is_not_warned_about(front_end: Any, tmp_path: Path) -> None:
    first = front_end.Run(tmp_path, [every(2, patterns=["loss"])])
    first.start()
    first.step({"loss": 1.0})
    with front_end.Run(tmp_path, [every(2, patterns=["loss"])]) as second:
        second.load_state_dict(first.state_dict())
        second.step({"lr": 1.0})
    assert logged(tmp_path, "loss/U2") == [(2, 1.0)]


# ---------------------------------------------------------------------- hooks called by another trainer


@each_front_end
def test_any_trainer_can_call_the_hooks_and_pass_more_than_they_know(front_end: Any, tmp_path: Path) -> None:
    counter = UpdateCounter(updates_per_epoch=2, effective_batch_size=4)
    writer = LogWriter(tmp_path, update_counter=counter)
    more = {"trainer": object(), "anything": 3}
    callback = tracker(front_end, writer, **every(2))
    callback.before_training(update_counter=counter, **more)
    for update in range(5):
        for step in range(2):
            outputs = {"loss": array(front_end, 2 * update + step)}
            callback.track_after_accumulation_step(
                update_counter=counter,
                batch=None,
                losses={},
                update_outputs=outputs,
                accumulation_steps=2,
                accumulation_step=step,
                **more,
            )
        counter.add_samples(4)
        counter.next_update()
        callback.track_after_update_step(update_counter=counter, times={"forward": 0.1}, **more)
        callback.after_update(update_counter=counter, **more)
        if counter.is_full_epoch:
            counter.next_epoch()
            callback.after_epoch(update_counter=counter, **more)
        writer.flush()
        callback.at_eval(update_counter=counter, **more)
    callback.after_training(update_counter=counter, **more)
    writer.close()
    assert logged(tmp_path, "loss/U2") == [(2, 1.5), (4, 5.5), (5, 8.5)]


@pytest.mark.parametrize("hook", HOOKS)
@each_front_end
def test_a_hook_takes_no_positional_argument(front_end: Any, hook: str) -> None:
    callback = tracker(front_end, write_nothing(), **every(2))
    with pytest.raises(TypeError, match="positional"):
        getattr(callback, hook)(UpdateCounter())
    kinds = {each.kind for each in inspect.signature(getattr(callback, hook)).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@each_front_end
def test_a_counter_of_the_users_own_works(front_end: Any, tmp_path: Path) -> None:
    counter = SimpleNamespace(epoch=0, update=0, sample=0, cur_iteration=TrainingIteration(0, 0, 0))
    writer = LogWriter(tmp_path, update_counter=counter)
    callback = tracker(front_end, writer, tmp_path, **every(2, save_output=True))
    for update in range(1, 5):
        callback.track_after_accumulation_step(
            update_counter=counter, update_outputs={"loss": array(front_end, update)}
        )
        counter.update, counter.sample = update, 3 * update
        counter.cur_iteration = TrainingIteration(0, update, 3 * update)
        callback.after_update(update_counter=counter)
    writer.close()
    assert logged(tmp_path, "loss/U2") == [(2, 1.5), (4, 3.5)]
    assert [str(file.iteration) for file in read_run(tmp_path).arrays] == ["E0_U2_S6", "E0_U4_S12"]


@each_front_end
def test_what_trainers_pass_to_every_callback_is_kept(front_end: Any) -> None:
    names = ("trainer", "model", "data_container", "tracker", "checkpoint_writer", "metric_property_provider", "name")
    given = {name: object() for name in names}
    callback = front_end.TrackAdditionalOutputsCallback(
        TrackAdditionalOutputsCallbackConfig(**every(2)), log_writer=write_nothing(), **given
    )
    assert {name: getattr(callback, name) for name in names} == given
    assert (callback.keys, callback.patterns, callback.reduce, callback.out) == (["loss"], [], "mean", None)


# ---------------------------------------------------------------------- one callback fails


@pytest.mark.parametrize("hook", ["after_update", "after_epoch", "after_training"])
@each_front_end
def test_a_callback_that_fails_at_a_periodic_hook_costs_the_others_nothing(
    front_end: Any, hook: str, tmp_path: Path
) -> None:
    configs = [Recorder([hook], "the first"), every(1), {"every_n_epochs": 1, "keys": ["loss"]}, every(10)]
    second = Recorder([hook], "the second")
    run = front_end.Run(tmp_path, [*configs, second], updates_per_epoch=1)
    run.start()
    with pytest.raises(OSError, match="the first"):  # noqa: PT012
        run.step({"loss": 1.0})
        run.finish()
    if hook != "after_training":
        assert [json.loads(line)["loss/E1"] for line in lines(tmp_path)] == [1.0]
        with pytest.raises(OSError, match="the first"):
            run.step({"loss": 3.0})
        run.finish()
        assert logged(tmp_path, "loss/U1") == logged(tmp_path, "loss/E1") == [(1, 1.0), (2, 3.0)]
        assert logged(tmp_path, "loss/U10") == [(2, 2.0)]
    else:
        assert run.log_writer.log_entries == [
            {"epoch": 1, "update": 1, "sample": 1, "loss/U1": 1.0, "loss/E1": 1.0, "loss/U10": 1.0}
        ]
        assert read_run(tmp_path).entries == run.log_writer.log_entries
    assert sum(call[0] == hook for call in second.calls) == (1 if hook == "after_training" else 2)


@each_front_end
def test_a_callback_that_cannot_save_costs_the_others_nothing(front_end: Any, tmp_path: Path) -> None:
    (tmp_path / "update_outputs").write_text("in the way")
    configs = [every(1, save_output=True, keys=["a"]), every(1, keys=["b"])]
    run = front_end.Run(tmp_path, configs)
    run.start()
    for n in (1.0, 2.0):
        with pytest.raises(OSError, match="update_outputs"):
            run.step({"a": n, "b": n})
    run.finish()
    assert logged(tmp_path, "a/U1") == logged(tmp_path, "b/U1") == [(1, 1.0), (2, 2.0)]


@each_front_end
def test_a_step_that_one_callback_refuses_is_counted_by_none(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [every(3), every(3, keys=["norm"])]) as run:
        run.step({"loss": 1.0, "norm": 1.0})
        with pytest.raises(MissingKeyError, match="'norm'"):
            run.step({"loss": 100.0})
        run.step({"loss": 2.0, "norm": 2.0})
        run.step({"loss": 3.0, "norm": 3.0})
    assert logged(tmp_path, "loss/U3") == logged(tmp_path, "norm/U3") == [(3, 2.0)]


@each_front_end
def test_a_step_counted_twice_is_refused_and_changes_nothing(front_end: Any) -> None:
    counter = UpdateCounter()
    callback = tracker(front_end, write_nothing(), **every(2))
    callback.track_after_accumulation_step(update_counter=counter, update_outputs={"loss": 1.0})
    with pytest.raises(HookOrderError, match="came after step 0 after 0 updates"):
        callback.track_after_accumulation_step(update_counter=counter, update_outputs={"loss": 2.0})
    assert callback.tracked_values == {"loss": [1.0]}
