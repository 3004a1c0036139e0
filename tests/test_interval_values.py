"""What an interval's values are reduced to, and which keys have a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hook_cases import array, each_front_end, every, logged, losses, train

from noether_core import MissingKeyError, read_run


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
def test_an_empty_array_adds_nothing_and_its_own_mean_is_nan(front_end: Any, tmp_path: Path) -> None:
    train(front_end, tmp_path, [every(2)], losses(front_end, [], 4, [], []))
    assert repr(logged(tmp_path, "loss/U2")) == "[(2, 4.0), (4, nan)]"
    train(front_end, tmp_path / "skip", [every(2, nonfinite="skip")], losses(front_end, [], 4, [], []))
    assert logged(tmp_path / "skip", "loss/U2") == [(2, 4.0)]


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
    run = train(front_end, tmp_path, [every(2, patterns=["grad"], keys=["loss"], missing="skip")], steps)
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
    with front_end.Run(tmp_path, [every(3, missing="skip")]) as run:
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
