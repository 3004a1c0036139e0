"""Whole runs in virtual processes: what they log together is what one process would log, and nothing hangs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import noether_jax
import noether_torch
from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.emit.unmerged import find_unmerged, read_unmerged
from noether_core.errors import MissingKeyError, NoetherError, NonFiniteError, ProcessesMissingError, UpdateOutputError
from noether_core.reduce.threads import ThreadExchange, run_threads
from noether_torch import (
    MetricEarlyStopCallback,
    MetricEarlyStopCallbackConfig,
    TrackAdditionalOutputsCallback,
    TrackAdditionalOutputsCallbackConfig,
)

FRONT_ENDS = [noether_torch, noether_jax]
HOSTILE = ["loss", "🙂", "\ud800 alone", "nul\0", "x" * 3000, "a/b", " ", "ключ", "loss ", "'\"\\", "\n"]


class Outcome(NamedTuple):
    """Hold what a process's run came to: its entries, and what it raised."""

    entries: list[dict[str, Any]]
    error: Exception | None
    calls: list[str]


def train(
    path: Path,
    count: int,
    configs: Any,
    loop: Callable[[Any, int], None],
    *,
    front_end: Any = noether_torch,
    time_limit: float = 30.0,
    **arguments: Any,
) -> tuple[list[Outcome], list[str]]:
    """Run a loop, given the run and the process's number, in each process; return what each came to, and the warnings."""

    def body(exchange: ThreadExchange) -> Outcome:
        error, run = None, None
        try:
            own = configs(exchange.index) if callable(configs) else configs
            with front_end.Run(path, own, processes=exchange, **arguments) as run:
                loop(run, exchange.index)
        except Exception as raised:
            error = raised
        return Outcome([] if run is None else run.log_writer.log_entries, error, exchange.calls)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run_threads(count, body, time_limit=time_limit)
    return found, [str(each.message) for each in caught]


def steps_of(outputs: list[list[Any]]) -> Callable[[Any, int], None]:
    def loop(run: Any, index: int) -> None:
        for each in outputs[index]:
            run.step(each)

    return loop


def reference(path: Path, configs: Any, outputs: list[list[Any]], front_end: Any, **arguments: Any) -> list[Any]:
    """Return the entries of one process that has all of their values: its accumulation steps are the processes."""
    with (
        warnings.catch_warnings(),
        front_end.Run(path, configs, processes=1, accumulation_steps=len(outputs), **arguments) as run,
    ):
        warnings.simplefilter("ignore")
        for update in range(max(map(len, outputs))):
            for own in outputs:
                run.step(own[update] if update < len(own) else None)
    return list(run.log_writer.log_entries)


def drawn_value(rng: np.random.Generator, front_end: Any) -> Any:
    dtype = [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, bool, np.float64, np.int64][
        rng.integers(8)
    ]
    shape = [(), (), (2,), (1,), (0,), (3, 2)][rng.integers(6)]
    value = np.asarray(rng.normal(size=shape) * 50).astype(dtype)
    if rng.random() < 0.1 and value.dtype.kind == "f":
        value = np.full_like(value, [np.nan, np.inf, -np.inf][rng.integers(3)])
    if rng.random() < 0.4 and value.dtype != bool:
        return front_end.Run.backend.from_numpy(value)
    if rng.random() < 0.2 and value.ndim == 0:
        return value.item()
    return value


def in_key_order(entries: list[dict[str, Any]]) -> list[str]:
    return [repr(sorted(entry.items(), key=lambda pair: repr(pair[0]))) for entry in entries]


# ---------------------------------------------------------------------- keys


@pytest.mark.sweep(40)
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


# ---------------------------------------------------------------------- an end that is not alike


@pytest.mark.parametrize("seed", range(40))
def test_a_pattern_that_matches_nothing_in_any_process_is_told_of_once(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 4))
    names = ["loss/a", "loss/b", "rate", "norm", "no"]
    own = [[str(name) for name in rng.choice(names, rng.integers(1, 4), replace=False)] for _ in range(count)]
    patterns = ["loss", "rate", "norm", "typo", "loss/a/"]
    outputs = [[dict.fromkeys(keys, 1.0)] * 4 for keys in own]
    configs = [{"every_n_updates": 2, "patterns": patterns}]
    found, told = train(tmp_path, count, configs, steps_of(outputs))
    assert [outcome.error for outcome in found] == [None] * count
    of_patterns = [pattern for text in told for pattern in patterns if f"pattern {pattern!r} matched" in text]
    assert sorted(of_patterns) == sorted(
        pattern for pattern in patterns if not any(pattern in key for keys in own for key in keys)
    )


@pytest.mark.parametrize("seed", range(40))
def test_arrays_of_other_shapes_in_the_processes_cost_their_key_alone(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    count, reductions = int(rng.integers(2, 4)), {"a": "stack", "b": "last", "c": ["mean"], "d": ["last", "stack"]}
    shapes = [{key: tuple(rng.integers(1, 3, rng.integers(1, 3)).tolist()) for key in reductions} for _ in range(count)]
    configs = [{"every_n_updates": 1, "keys": [*reductions], "reduce": reductions}]
    configs[0] |= {"save_output": True, "log_output": False}
    raised: list[str] = []

    def loop(run: Any, index: int) -> None:
        try:
            run.step({key: np.ones(shape) for key, shape in shapes[index].items()})
        except UpdateOutputError as error:
            raised.append(str(error))

    found, _ = train(tmp_path, count, configs, loop)
    assert [outcome.error for outcome in found] == [None] * count
    differ = [key for key in "abd" if len({own[key] for own in shapes}) > 1]
    saved = load_file(tmp_path / "update_outputs/U1/E0_U1_S1.safetensors")
    assert {name[0] for name in saved} == {*reductions} - {*differ}
    assert len(raised) == bool(differ)
    for text in raised:
        assert f"{differ[0]!r} has the shapes" in text
        assert f"`{reductions[differ[0]] if differ[0] != 'd' else 'last'}` saves all" in text


def test_what_an_exception_leaves_is_kept_and_the_others_are_told(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(10):
            if index == 1 and update == 3:
                raise RuntimeError("of the training")
            run.step({"x": float(update)})

    found, _ = train(tmp_path, 3, [{"every_n_updates": 2, "keys": ["x"]}], loop, time_limit=0.5)
    assert str(found[1].error) == "of the training"
    for at in (0, 2):
        assert isinstance(found[at].error, ProcessesMissingError)
        assert found[at].error.missing == (1,)
        assert "'x'" in str(found[at].error)
    kept = {(str(saved.iteration), saved.index) for saved in map(read_unmerged, find_unmerged(tmp_path))}
    assert {("E0_U3_S3", 1), ("E0_U4_S4", 0), ("E0_U4_S4", 2)} <= kept


def test_the_next_interval_works_after_one_that_some_missed(tmp_path: Path) -> None:
    errors: list[tuple[int, str]] = []

    def loop(run: Any, index: int) -> None:
        for update in range(6):
            if index == 1 and update == 1:
                time.sleep(1.4)
            try:
                run.step({"x": float(update), "y": 1.0})
            except ProcessesMissingError as error:
                errors.append((index, str(error)))

    configs = [{"every_n_updates": 2, "patterns": [""]}]
    found, _ = train(tmp_path, 3, configs, loop, time_limit=1)
    assert sorted(index for index, _ in errors) == [0, 1, 2]
    assert all("processes 1 did not" in message and "'x', 'y'" in message for _, message in errors)
    assert [entry["x/U2"] for entry in found[0].entries] == [2.5, 4.5]


def test_a_run_that_ends_without_the_others_says_so(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(2):
            if index == 1 and update == 1:
                raise RuntimeError("of the training")
            run.step({"x": float(update)})

    found, _ = train(tmp_path, 2, [{"every_n_updates": 1, "keys": ["x"]}], loop, time_limit=0.3)
    assert isinstance(found[0].error, ProcessesMissingError)

    def early(run: Any, index: int) -> None:
        if index:
            raise RuntimeError("of the training")

    found, _ = train(tmp_path / "2", 2, [{"every_n_updates": 1, "keys": ["x"]}], early, time_limit=0.3)
    assert isinstance(found[0].error, ProcessesMissingError)


def test_a_process_that_cannot_say_what_it_has_costs_no_waiting(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(4):
            run.step({"x": np.float32(update)})
            if index == 1 and update == 1:
                run.callbacks[0].sources[0].partials = broken  # until the interval's end

    def broken() -> Any:
        raise RuntimeError("the device is gone")

    found, _ = train(tmp_path, 2, [{"every_n_updates": 3, "keys": ["x"]}], loop, time_limit=5)
    assert found[1].error is None or "the device is gone" in str(found[1].error)
    assert "process 1 could not say" in str(found[0].error)


# ---------------------------------------------------------------------- callbacks


def full_configs(**more: Any) -> list[dict[str, Any]]:
    return [
        {"every_n_updates": 3, "keys": ["a"], "reduce": ["mean", "max"]},
        {"every_n_epochs": 1, "patterns": ["b"], "id": "epochs"},
        {"every_n_samples": 20, "keys": ["a", "b/c"], "id": "samples", "reduce": "sum"},
        {"kind": "OnlineLossCallback", "every_n_updates": 1},
        {"kind": "LearningRateCallback", "every_n_updates": 1, "key": "lr"},
        {
            "kind": "BestMetricCallback",
            "every_n_updates": 1,
            "source_metric_key": "loss/online/total/U1",
            "higher_is_better": False,
        },
        {"kind": "ProgressCallback", "every_n_updates": 4},
        *(
            [
                {
                    "kind": "MetricEarlyStopCallback",
                    "every_n_updates": 1,
                    "source_metric_key": "loss/online/total/U1",
                    "higher_is_better": False,
                    "patience": 3,
                }
            ]
        ),
    ]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("count", [2, 3])
def test_every_callback_logs_what_one_process_would(front_end: Any, count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(count)
    outputs = rng.normal(size=(count, 40, 3)).astype(np.float32)
    losses = rng.normal(size=(count, 40))
    losses[:, 7] -= 9
    stopped: dict[int, int] = {}

    def step(run: Any, process: int, update: int) -> None:
        a, b, _ = outputs[process, update]
        run.step({"a": a, "b": {"c": b}, "lr": np.float32(0.1 * 0.9**update)}, losses=losses[process, update])

    def loop(run: Any, index: int) -> None:
        for update in range(40):
            step(run, index, update)
            if run.is_finished:
                break
        stopped[index] = run.counter.update

    arguments = {"updates_per_epoch": 4, "effective_batch_size": 12}
    found, told = train(tmp_path / "all", count, full_configs(), loop, front_end=front_end, **arguments)
    assert [outcome.error for outcome in found] == [None] * count
    assert not told
    assert len(set(stopped.values())) == 1
    with front_end.Run(tmp_path / "one", full_configs(), processes=1, accumulation_steps=count, **arguments) as run:
        for update in range(40):
            for process in range(count):
                step(run, process, update)
            if run.is_finished:
                break
    assert run.counter.update == stopped[0] < 40
    assert found[0].entries == list(run.log_writer.log_entries)
    assert found[0].entries == list(read_run(tmp_path / "all").entries)
    assert [list(entry) for entry in found[0].entries] == [list(entry) for entry in run.log_writer.log_entries]


def test_the_rate_is_the_rate_and_differing_ones_are_told_of(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(4):
            run.step({"lr": 0.5 if update < 2 else 0.5 + index, "steps": 2**53 + 1, "x": float(index)})

    configs = [
        {"kind": "LearningRateCallback", "every_n_updates": 2, "key": "lr"},
        {"every_n_updates": 2, "keys": ["steps", "x"], "reduce": ["last", "sum"], "replicated": ["steps"]},
    ]
    found, told = train(tmp_path, 3, configs, loop)
    assert [entry["optim/lr/U2"] for entry in found[0].entries] == [0.5, 0.5]
    assert [entry["steps/last/U2"] for entry in found[0].entries] == [2**53 + 1] * 2
    assert [entry["steps/sum/U2"] for entry in found[0].entries] == [2**54 + 2] * 2
    assert [entry["x/sum/U2"] for entry in found[0].entries] == [6.0] * 2
    (message,) = [message for message in told if "replicated" in message]
    assert "'optim/lr'" in message


def test_what_is_replicated_is_of_the_first_process_that_has_values(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(2 if index == 0 else 8):
            run.step({"lr": 0.5**update, "x": 1.0})

    configs = [
        {"kind": "LearningRateCallback", "every_n_updates": 2, "key": "lr"},
        {"every_n_updates": 2, "keys": ["x"], "reduce": ["count", "sum", "last"], "replicated": ["x"]},
    ]
    found, told = train(tmp_path, 3, configs, loop)
    assert [outcome.error for outcome in found] == [None] * 3
    assert [entry["optim/lr/U2"] for entry in found[0].entries] == [0.5, 0.125, 2.0**-5, 2.0**-7]
    assert [(entry["x/count/U2"], entry["x/sum/U2"], entry["x/last/U2"]) for entry in found[0].entries] == [
        (2, 2.0, 1.0)
    ] * 4
    assert not [message for message in told if "replicated" in message]


def test_ints_stay_ints_in_last(tmp_path: Path) -> None:
    values = {
        "same": [2**24 + 1, 2**24 + 1],
        "even": [2**53 + 1, 2**53 + 3],
        "odd": [1, 2],
        "big": [2**64 - 1, 2**64 - 1],
    }

    def loop(run: Any, index: int) -> None:
        run.step(
            {key: np.uint64(pair[index]) if key == "big" else np.int64(pair[index]) for key, pair in values.items()}
        )

    found, _ = train(tmp_path, 2, [{"every_n_updates": 1, "patterns": [""], "reduce": "last"}], loop)
    expected = {"same/U1": 2**24 + 1, "even/U1": 2**53 + 2, "odd/U1": 1.5, "big/U1": 2**64 - 1}
    assert {key: found[0].entries[0][key] for key in expected} == expected


def test_last_and_stack_in_the_file(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(2):
            shape = (2,) if index < 2 else (3,)
            run.step(
                {
                    "x": np.full(2, 10 * update + index, np.int32),
                    "mixed": np.full(shape, index, np.float32),
                    "alike": np.full(2, update, np.float32),
                    "y": np.float32(index),
                }
            )

    configs = [
        {
            "every_n_updates": 2,
            "keys": ["x", "mixed", "alike", "y"],
            "reduce": {"x": ["last", "stack"], "alike": ["last", "stack"], "mixed": ["last"], "y": ["last", "stack"]},
            "replicated": ["alike"],
            "save_output": True,
            "log_output": False,
        }
    ]
    found, _ = train(tmp_path, 3, configs, loop, time_limit=2)  # the others wait at the end for the one that raised
    (error, *_others) = [outcome.error for outcome in found]
    assert "'mixed'" in str(error)
    assert "shape" in str(error)
    arrays = load_file(tmp_path / "update_outputs" / "U2" / "E0_U2_S2.safetensors")
    assert arrays["x/last"].tolist() == [[10, 10], [11, 11], [12, 12]]
    assert arrays["x/stack"][:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert arrays["alike/last"].tolist() == [1, 1]
    assert arrays["alike/stack"].tolist() == [[0, 0], [1, 1]]
    assert arrays["y/last"].tolist() == [0, 1, 2]
    assert arrays["y/stack"].tolist() == [0, 1, 2, 0, 1, 2]
    assert "mixed" not in arrays


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_what_is_not_finite_raises_everywhere_and_names_the_process(front_end: Any, tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for update in range(4):
            run.step({"x": np.float32("nan" if (index, update) == (2, 1) else 1)})

    configs = [{"every_n_updates": 4, "keys": ["x"], "nonfinite": "raise"}]
    found, _ = train(tmp_path, 3, configs, loop, front_end=front_end)
    assert {str(outcome.error) for outcome in found} == {str(found[0].error)}
    assert isinstance(found[0].error, NonFiniteError)
    assert "1 NaN, 0 +inf, 0 -inf of 12 values, first at update 2, accumulation step 0, process 2" in str(
        found[0].error
    )


def test_a_missing_key_is_an_error_where_it_is_missing(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        run.step({"y" if index else "x": 1.0})

    found, _ = train(tmp_path, 2, [{"every_n_updates": 1, "keys": ["x"]}], loop, time_limit=0.3)
    assert isinstance(found[1].error, MissingKeyError)
    assert isinstance(found[0].error, ProcessesMissingError)


# ---------------------------------------------------------------------- one's own values, evaluations


def test_log_and_evaluate(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        for _update in range(2):
            run.step({"x": 1.0})
            run.log({"own": index})
            with run.evaluate("val"):
                for at in range(index + 1):
                    run.step({"x": float(at), **({"y": 1.0} if index else {})})
            if index == 1:
                with run.evaluate("alone", processes=1):
                    run.step({"x": 5.0})

    configs = [{"every_n_updates": 2, "patterns": ["x", "y"], "reduce": ["mean", "count"]}]
    found, told = train(tmp_path, 3, configs, loop)
    assert [outcome.error for outcome in found] == [None] * 3
    for entry in found[0].entries:
        assert entry["own"] == 0
        assert (entry["val/x/count"], entry["val/x/mean"]) == (6, pytest.approx(4 / 6, abs=0))
        assert entry["val/y/count"] == 5
        assert "alone/x/mean" not in entry
    assert found[1].entries[0]["alone/x/count"] == 1
    assert sum("different keys" in message for message in told) == 1
    with noether_torch.Run(tmp_path / "one", configs, processes=1) as run:
        for wrong in (2, 0, True, "all"):
            with pytest.raises(NoetherError, match="expected 1"), run.evaluate("val", processes=wrong):
                pass


def test_an_evaluation_of_what_is_not_finite_names_the_process(tmp_path: Path) -> None:
    def loop(run: Any, index: int) -> None:
        run.step({"x": 1.0})
        with run.evaluate("val"):
            run.step({"x": float("inf") if index else 1.0})

    found, _ = train(tmp_path, 2, [{"every_n_updates": 2, "keys": ["x"], "nonfinite": "raise"}], loop)
    assert {str(outcome.error) for outcome in found} == {str(found[0].error)}
    assert "process 1" in str(found[0].error)


# ---------------------------------------------------------------------- what is exchanged, and who writes


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
