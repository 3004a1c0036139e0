"""Keys that are absent and values that are not finite are reported as the config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hook_cases import INF, NAN, each_front_end, every, logged, losses, train

from noether_core import MissingKeyError, NonFiniteError, read_run


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
def test_a_pattern_that_matches_nothing_is_warned_about_after_the_first_update_at_the_users_line(
    front_end: Any, tmp_path: Path
) -> None:
    with front_end.Run(tmp_path, [every(2, patterns=["grda", "loss"])]) as run:
        with pytest.warns(UserWarning, match="'grda' matched no update output in the first update") as warned:
            run.step({"loss": 1.0})
        assert [Path(each.filename).name for each in warned] == [Path(__file__).name]
        for _ in range(5):
            run.step({"loss": 1.0})
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
    train(front_end, tmp_path, [every(2, patterns=["loss"], missing="skip")], steps)
    assert logged(tmp_path, "loss/U2") == [(2, 2.0), (4, 3.0)]


@each_front_end
def test_an_update_without_outputs_obeys_missing(front_end: Any, tmp_path: Path) -> None:
    for missing in ("error", "warn", "skip"):
        with front_end.Run(tmp_path / missing, [every(2, missing=missing)], accumulation_steps=2) as run:
            run.step({"loss": 1.0})
            run.step()  # the update has some
            run.step()
            if missing == "error":
                with pytest.raises(MissingKeyError, match="'loss' is not among the update outputs, which have none"):
                    run.step()
                assert (run.counter.update, run.accumulated) == (1, 1)
                run.step({"loss": 3.0})
            elif missing == "warn":
                with pytest.warns(UserWarning, match="'loss' is not among the update outputs, which have none"):
                    run.step()
            else:
                run.step()
        assert logged(tmp_path / missing, "loss/U2") == [(2, 2.0 if missing == "error" else 1.0)]


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
def test_callbacks_of_one_interval_count_together_what_is_not_finite(front_end: Any, tmp_path: Path) -> None:
    config: dict[str, Any] = {"every_n_updates": 2, "keys": ["loss"], "weight": "w"}
    weighted = {**config, "reduce": "sum", "id": "3"}
    configs = [every(2), every(2, reduce=["max", "std"], id="2"), weighted]
    weights = [0.0, 1.0, 1.0, 1.0]
    steps = [{**each, "w": weight} for each, weight in zip(losses(front_end, NAN, NAN, 1, NAN), weights, strict=True)]
    first, second = train(front_end, tmp_path, configs, steps).log_writer.log_entries
    assert (first["loss/nonfinite/U2"], first["loss/nonfinite/nonfinite/U2"]) == (
        2,
        1,
    )  # what has weight 0 counts for nothing
    assert second["loss/nonfinite/U2"] == 1
    assert "loss/nonfinite/nonfinite/U2" not in second


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
