"""Several starts on one run directory: what stands is the newest line of descent, of entries and arrays alike."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import jax
import pytest

import noether_jax
import noether_torch
from noether_core import read_run

FRONT_ENDS = [noether_jax, noether_torch]
TRACKED = {"every_n_updates": 2, "keys": ["loss"], "save_output": True}
both = pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda module: module.__name__)


def train(run: Any, until: int, attempt: int = 0) -> None:
    while run.counter.update < until:
        run.step({"loss": 100.0 * attempt + run.counter.update + 1})


def updates(path: Path, key: str = "loss/U2") -> list[int]:
    return read_run(path).series[key].update.tolist()  # type: ignore[no-any-return]


@both
def test_a_value_logged_first_after_a_resume_hides_nothing(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [TRACKED]) as run:
        train(run, 4)
        state = run.state_dict()
    with front_end.Run(tmp_path, [TRACKED]) as run:
        run.load_state_dict(state)
        run.log({"val/acc": 0.9})
        train(run, 6)
    assert read_run(tmp_path).entries == [
        {"epoch": 0, "update": 2, "sample": 2, "loss/U2": 1.5},
        {"epoch": 0, "update": 4, "sample": 4, "loss/U2": 3.5, "val/acc": 0.9},
        {"epoch": 0, "update": 6, "sample": 6, "loss/U2": 5.5},
    ]


@both
def test_a_state_loaded_in_mid_training_takes_back_what_came_after_it(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [TRACKED]) as run:
        train(run, 3)
        state = run.state_dict()
        train(run, 7)
        run.load_state_dict(state)
        train(run, 8, attempt=1)
        assert run.log_writer.get_all_metric_values("loss/U2") == [1.5, 53.5, 105.5, 107.5]
    read = read_run(tmp_path)
    assert [(point.update, point.value) for point in read.series["loss/U2"]] == [
        (2, 1.5),
        (4, 53.5),
        (6, 105.5),
        (8, 107.5),
    ]
    assert read.superseded == 2  # of updates 4 and 6; 7, in the middle of an interval, was not logged
    assert [file.iteration.update for file in read.arrays] == [2, 4, 6, 8]


@both
def test_the_values_in_mid_training_are_those_of_the_branch_that_it_goes_on(front_end: Any, tmp_path: Path) -> None:
    every = {"every_n_updates": 1, "keys": ["loss"]}
    states = {}
    with front_end.Run(tmp_path, [every]) as run:
        for until in (5, 8, 10):
            train(run, until)
            states[until] = run.state_dict()
        run.load_state_dict(states[5])
        train(run, 12, attempt=1)
        run.load_state_dict(states[8])  # of the first branch
        train(run, 9, attempt=2)
        expected = [*range(1, 9), 209]
        assert run.log_writer.get_all_metric_values("loss/U1") == expected
        assert [entry["loss/U1"] for entry in run.log_writer.log_entries] == expected
    assert read_run(tmp_path).series["loss/U1"].value.tolist() == expected


@both
def test_what_is_logged_at_the_update_that_a_load_went_back_to_is_of_one_entry(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [TRACKED]) as run:
        train(run, 4)
        run.log({"own": 1.0})
        state = run.state_dict()
        train(run, 6)
        run.load_state_dict(state)
        run.log({"own": 2.0})
        assert run.log_writer.get_all_metric_values("own") == [2.0]
        kept = run.log_writer.log_entries
    assert kept == read_run(tmp_path).entries


@both
def test_a_start_from_the_beginning_supersedes_all_before_it(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [TRACKED]) as run:
        train(run, 9)
    with front_end.Run(tmp_path, [TRACKED]) as run:
        train(run, 4, attempt=1)
    read = read_run(tmp_path)
    assert [(point.update, point.value) for point in read.series["loss/U2"]] == [(2, 101.5), (4, 103.5)]
    assert [file.iteration.update for file in read.arrays] == [2, 4]
    assert [file.iteration.update for file in read.superseded_arrays] == [2, 4, 6, 8, 9]


@both
def test_a_start_that_wrote_nothing_supersedes_nothing(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [TRACKED]) as run:
        train(run, 4)
    with front_end.Run(tmp_path, [TRACKED]) as run:
        run.step({"loss": 1.0})
        run._state = "killed"  # before anything came out
    assert updates(tmp_path) == [2, 4]


@both
@pytest.mark.parametrize("seed", range(12))
def test_any_history_reads_back_as_its_last_line_of_descent(front_end: Any, seed: int, tmp_path: Path) -> None:
    """Stop, resume from any checkpoint of any attempt, roll back, or start anew, and compare with books kept by hand."""
    random_ = random.Random(seed)
    checkpoints: list[tuple[dict[str, Any], dict[int, float]]] = []
    books: dict[int, float] = {}
    attempt = 0
    for _ in range(random_.randint(2, 5)):
        run = front_end.Run(tmp_path, [TRACKED]).__enter__()
        books = {}
        if checkpoints and random_.random() < 0.7:
            state, saved = random_.choice(checkpoints)
            run.load_state_dict(state)
            books = dict(saved)
        for _ in range(random_.randint(1, 3)):
            if checkpoints and random_.random() < 0.3:
                state, saved = random_.choice(checkpoints)
                run.load_state_dict(state)
                books = dict(saved)
            attempt += 1
            until = run.counter.update + 2 * random_.randint(1, 4)
            begun = run.counter.update
            train(run, until, attempt)
            books.update({at: 100.0 * attempt + at - 0.5 for at in range(begun + 2, until + 1, 2)})
            checkpoints.append((run.state_dict(), dict(books)))
        run.finish()
    read = read_run(tmp_path)
    assert read.problems == []
    assert {point.update: point.value for point in read.series["loss/U2"]} == books
    assert sorted(file.iteration.update or 0 for file in read.arrays) == sorted(books)


@both
def test_a_state_loaded_at_the_end_logs_nothing_and_takes_nothing_back(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [TRACKED]) as run:
        train(run, 3)
        best = run.state_dict()
        train(run, 8)
        run.load_state_dict(best)
    assert updates(tmp_path) == [2, 4, 6, 8]


@both
def test_a_record_of_each_start_and_the_time_of_each_entry(front_end: Any, tmp_path: Path) -> None:
    before = time.time()
    for _ in range(2):
        with front_end.Run(tmp_path, [TRACKED]) as run:
            train(run, 4)
            state = run.state_dict()
    with front_end.Run(tmp_path, [TRACKED]) as run:
        run.load_state_dict(state)
        train(run, 6)
    records = [json.loads((tmp_path / "starts" / f"{number}.json").read_bytes()) for number in (1, 2, 3)]
    assert [record["iteration"] for record in records] == [None, None, {"epoch": 0, "update": 4, "sample": 4}]
    assert [record["parent"] for record in records] == [None, None, records[1]["id"]]
    assert len({record["id"] for record in records}) == 3
    assert {record["config"] for record in records} == {records[0]["config"]}
    assert all(record["processes"] == 1 and record["versions"]["numpy"] and record["host"] for record in records)
    series = read_run(tmp_path).series["loss/U2"]
    assert series.update.tolist() == [2, 4, 6]
    assert before <= series.time[0] <= series.time[1] <= series.time[2] <= time.time()


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[" * 100_000, b'{"id": 1, "parent": null, "iteration": null}', b"\xff"]
)
def test_a_damaged_record_is_said_and_costs_no_entry(damage: bytes, tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [TRACKED]) as run:
        train(run, 4)
    (tmp_path / "starts" / "1.json").write_bytes(damage)
    read = read_run(tmp_path)
    assert read.series["loss/U2"].update.tolist() == [2, 4]
    assert len(read.problems) == 1
    assert "no record of a start" in read.problems[0]


def test_where_no_record_or_time_was_written_the_entries_stand(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [TRACKED]) as run:
        train(run, 4)
    (tmp_path / "starts" / "1.json").unlink()
    (tmp_path / "metrics" / "1.time.jsonl").unlink()
    series = read_run(tmp_path).series["loss/U2"]
    assert series.update.tolist() == [2, 4]
    assert [str(time) for time in series.time] == ["nan", "nan"]


@both
def test_a_run_that_only_saves_arrays_has_no_empty_log(front_end: Any, tmp_path: Path) -> None:
    for attempt in (0, 1):
        with front_end.Run(tmp_path, [{**TRACKED, "log_output": False}]) as run:
            train(run, 4 - 2 * attempt, attempt)
    assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == ["1.time.jsonl", "2.time.jsonl"]
    read = read_run(tmp_path)
    assert read.problems == []
    assert [float(file.load()["loss"]) for file in read.arrays] == [101.5]
    assert [file.iteration.update for file in read.superseded_arrays] == [2, 4]


def test_each_start_says_how_the_framework_computes(tmp_path: Path) -> None:
    with jax.default_matmul_precision("highest"), noether_jax.Run(tmp_path / "jax", [TRACKED]) as run:
        train(run, 2)
        state = run.state_dict()
    with noether_jax.Run(tmp_path / "jax", [TRACKED]) as run:
        run.load_state_dict(state)
        train(run, 4)
    precisions = [
        start.record["arithmetic"]["jax_default_matmul_precision"] for start in read_run(tmp_path / "jax").starts
    ]
    assert precisions == ["highest", "default"]
    with noether_torch.Run(tmp_path / "torch", [TRACKED]) as run:
        train(run, 2)
    (start,) = read_run(tmp_path / "torch").starts
    assert start.record["arithmetic"]["torch.backends.cudnn.rnn.fp32_precision"] == "tf32"  # PyTorch's default
