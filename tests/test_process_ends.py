"""Intervals and trainings in virtual processes that do not end alike: nothing hangs, and nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from noether_core.emit.unmerged import find_unmerged, read_unmerged
from noether_core.errors import ProcessesMissingError, UpdateOutputError
from tests.virtual_processes import steps_of, train


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
