"""Configs that the Noether framework takes, and that are to work here."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

import noether_jax
import noether_torch
from noether_core import LogWriter, MissingKeyError, UpdateCounter, load_callbacks, read_run
from noether_core.config.load import parse_callback
from noether_core.explanation import explain_together, render
from noether_core.parity import differing_files, read_recording, replay

each_front_end = pytest.mark.parametrize("front_end", [noether_jax, noether_torch], ids=lambda module: module.__name__)

SILENT = {"every_n_updates": 2, "keys": ["v"], "log_output": False, "save_output": False}
NOTHING = r"^log_output, save_output and verbose are all false, so nothing comes out; set one to true$"


def train(front_end: Any, path: Path, configs: list[dict[str, Any]], **arguments: Any) -> Any:
    with front_end.Run(path, configs, **arguments) as run:
        for number in range(3):
            run.step({"v": front_end.Run.backend.from_numpy(np.asarray(number, np.float32))})
    return run


def explained(config: dict[str, Any], outputs: dict[str, tuple[int, ...]]) -> tuple[Any, str]:
    found = explain_together([parse_callback(config)], outputs)
    file = io.StringIO()
    Console(file=file, width=200).print(render(found, outputs))
    return found[0], file.getvalue()


# ---------------------------------------------------------------------- no log, no files


@pytest.mark.parametrize("reduce", ["mean", "last", ["mean", "max"]])
@each_front_end
def test_verbose_alone_tells_logging_and_writes_nothing(
    front_end: Any, reduce: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = train(front_end, tmp_path, [{**SILENT, "verbose": True, "reduce": reduce}])
    told = [record.getMessage() for record in caplog.records if record.name == str(run.callbacks[0])]
    assert (
        told
        == {
            "mean": ["v/U2: 0.50000", "v/U2: 2.00000"],
            "last": ["v/U2: 1.00000", "v/U2: 2.00000"],
            "meanmax": ["v/mean/U2: 0.50000", "v/max/U2: 1.00000", "v/mean/U2: 2.00000", "v/max/U2: 2.00000"],
        }["".join(reduce)]
    )
    assert run.log_writer.log_entries == []
    assert (read_run(tmp_path).series, list(read_run(tmp_path).arrays)) == ({}, [])


def test_verbose_without_the_log_leaves_arrays_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = {"every_n_updates": 1, "keys": ["a", "v"], "reduce": "last", "verbose": True}
    with noether_torch.Run(tmp_path, [{**config, "log_output": False, "save_output": True}]) as run:
        run.step({"a": np.ones(3), "v": 0.25})
    told = [record.getMessage() for record in caplog.records if record.name == str(run.callbacks[0])]
    assert told == ["v/U1: 0.25000"]
    assert read_run(tmp_path).arrays[0].load()["a"].tolist() == [1, 1, 1]


@each_front_end
def test_a_config_from_which_nothing_comes_is_valid_and_warned_about_once(front_end: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(front_end, tmp_path, [SILENT])
        load_callbacks(tmp_path / "config.yaml")  # another config, and so another warning
    assert [str(warning.message) for warning in caught] == [NOTHING[1:-1]] * 2
    assert run.log_writer.log_entries == []
    with pytest.warns(UserWarning, match=NOTHING) as of_the_class:
        front_end.TrackAdditionalOutputsCallbackConfig(**SILENT)
    assert [warning.filename for warning in of_the_class] == [__file__]


def test_stack_still_needs_the_files() -> None:
    for more in ({}, {"verbose": True}):
        with pytest.raises(ValidationError, match="reduce asks for stack, which is saved and never logged; set save"):
            parse_callback({**SILENT, **more, "reduce": "stack"})


def test_explain_says_what_is_told_to_logging_only_and_that_nothing_comes_out() -> None:
    found, text = explained({**SILENT, "verbose": True}, {"v": ()})
    assert found.is_clean
    assert (found.matched[0].logged, found.matched[0].told, found.matched[0].saved) == ((), ("v/U2",), ())
    assert "v/U2 (logging only)" in text
    with pytest.warns(UserWarning, match=NOTHING):
        found, text = explained(SILENT, {"v": ()})
    assert not found.is_clean
    assert f"✗ {NOTHING[1:-1]}" in text
    both = [parse_callback({**SILENT, "verbose": True}), parse_callback({"every_n_updates": 2, "keys": ["v"]})]
    assert all(each.is_clean for each in explain_together(both, {"v": ()}))  # the log has the key only once


# ---------------------------------------------------------------------- an empty key

EMPTY = {"every_n_updates": 2, "keys": ["", "v"], "save_output": True}


@pytest.mark.parametrize(
    ("reduce", "logged", "saved"),
    [
        ("mean", {"/U2": [1.5, 4.0], "v/U2": [0.5, 2.0]}, {"": 1.5, "v": 0.5}),
        ({"": "max", "v": "last"}, {"/max/U2": [2.0, 4.0], "v/last/U2": [1.0, 2.0]}, {"": 2.0, "v": 1.0}),
        (
            ["last", "mean"],
            {"/last/U2": [2.0, 4.0], "/mean/U2": [1.5, 4.0], "v/last/U2": [1.0, 2.0], "v/mean/U2": [0.5, 2.0]},
            {"/last": 2.0, "/mean": 1.5, "v/last": 1.0, "v/mean": 0.5},
        ),
    ],
)
@each_front_end
def test_an_empty_key_is_an_exact_key_like_another(
    front_end: Any, reduce: Any, logged: dict[str, Any], saved: dict[str, float], tmp_path: Path
) -> None:
    config = {**EMPTY, "reduce": reduce}
    steps = [{"v": float(number), "": np.float32(2**number)} for number in range(3)]
    with front_end.Run(tmp_path / "first", [config], record=tmp_path / "recorded") as run:
        for outputs in steps[:1]:
            run.step(outputs)
        state = run.state_dict()
    assert list(read_recording(tmp_path / "recorded")) == [{"v": 0.0, "": np.float32(1)}]
    with front_end.Run(tmp_path / "run", [config], record=tmp_path / "again") as run:
        run.load_state_dict(state)
        for outputs in steps[1:]:
            run.step(outputs)
    read = read_run(tmp_path / "run")
    found = {key: [point.value for point in series] for key, series in read.series.items()}
    assert found == logged
    assert {name: float(array) for name, array in read.arrays[0].load().items()} == saved


def test_an_empty_key_works_inside_of_a_compiled_step(tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path, [EMPTY]) as run:
        tracked = run.init({"": jnp.float32(0), "v": jnp.float32(0)})
        step = jax.jit(run.track)
        for number in range(2):
            tracked = run.step(step(tracked, {"": jnp.float32(number), "v": jnp.float32(1)}))
    assert read_run(tmp_path).entries[0]["/U2"] == 0.5


def test_explain_and_the_messages_name_an_empty_key() -> None:
    found, text = explained(EMPTY, {"": (), "v": ()})
    assert found.is_clean
    assert [(match.key, match.by, match.logged, match.saved) for match in found.matched] == [
        ("", "key", ("/U2",), ("",)),
        ("v", "key", ("v/U2",), ("v",)),
    ]
    assert "/U2" in text
    found, text = explained(EMPTY, {"v": ()})
    assert "✗ key '' is not among the update outputs." in text
    writer = LogWriter(update_counter=UpdateCounter())
    config = noether_torch.TrackAdditionalOutputsCallbackConfig(every_n_updates=1, keys=[""])
    callback = noether_torch.TrackAdditionalOutputsCallback(config, log_writer=writer)
    with pytest.raises(MissingKeyError, match=r"key '' is not among the update outputs, which have 'v'"):
        callback.track_after_accumulation_step(update_counter=UpdateCounter(), update_outputs={"v": 1.0})


# ---------------------------------------------------------------------- values that a trainer's step may hand back


@each_front_end
def test_a_list_or_tuple_of_numbers_is_an_array(front_end: Any, tmp_path: Path) -> None:
    values = [[1, 2], (0.5, 0.25), [[True], [False]], [2**63, 1], []]
    entry = {"every_n_updates": len(values), "keys": ["v"], "reduce": ["mean", "sum", "count"], "save_output": True}
    stacked = {
        "every_n_updates": 1,
        "keys": ["v"],
        "reduce": "last",
        "log_output": False,
        "save_output": True,
        "id": "last",
    }
    with front_end.Run(tmp_path / "lists", [entry, stacked], record=tmp_path / "r") as run:
        for value in values:
            run.step({"v": value})
    with front_end.Run(tmp_path / "arrays", [entry, stacked]) as run:
        for value in values:
            run.step({"v": np.asarray(value, np.float64)})
    assert not [name for name in differing_files(tmp_path / "lists", tmp_path / "arrays")[0] if "last" not in name]
    last = [next(iter(file.load().values())) for file in read_run(tmp_path / "lists").arrays if "last" in file.interval]
    assert [array.dtype.name for array in last] == ["int64", "float64", "bool", "float64", "float64"]
    assert [array.shape for array in last] == [(2,), (2,), (2, 1), (2,), (0,)]
    replay(tmp_path / "r", front_end.Run(tmp_path / "again", [entry, stacked]))
    assert differing_files(tmp_path / "lists", tmp_path / "again")[0] == []


@each_front_end
def test_a_list_weighs_and_a_compiled_step_takes_one(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [{"every_n_updates": 2, "keys": ["v"], "weight": "w"}]) as run:
        run.step({"v": front_end.Run.backend.from_numpy(np.float32([1, 2])), "w": [3, 1]})
        run.step({"v": [5.0, 7.0], "w": (0, 0)})
    assert read_run(tmp_path).series["v/U2"].value.tolist() == [1.25]


@each_front_end
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**70 + 1, 10**300])
def test_an_int_beyond_64_bits_is_the_nearest_float64(front_end: Any, number: int, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [{"every_n_updates": 1, "keys": ["v"], "reduce": ["mean", "max"]}]) as run:
        run.step({"v": number})
    values = {key: series.value.tolist() for key, series in read_run(tmp_path).series.items()}
    assert values == {"v/mean/U1": [float(number)], "v/max/U1": [float(number)]}


@each_front_end
def test_the_mean_of_no_elements_is_nan_unless_what_is_not_finite_is_skipped(front_end: Any, tmp_path: Path) -> None:
    for policy, wanted in (("propagate", ["v/mean/U1", "v/sum/U1"]), ("skip", ["v/sum/U1"])):
        entry = {"every_n_updates": 1, "keys": ["v"], "reduce": ["mean", "sum"], "nonfinite": policy}
        with front_end.Run(tmp_path / policy, [entry]) as run:
            run.step({"v": front_end.Run.backend.from_numpy(np.zeros((0, 3), np.float32))})
        series = read_run(tmp_path / policy).series
        assert list(series) == wanted
        assert all(np.isnan(series[key].value).all() == (key == "v/mean/U1") for key in wanted)
