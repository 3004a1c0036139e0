from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noether_core import LogWriter, RunFormatError, TrainingIteration, UpdateCounter, read_run
from noether_core.emit.arrays import write_arrays
from noether_core.emit.columns import Point
from noether_core.emit.jsonl import encode_line
from noether_torch import Run


def log(path: Path, first: int, last: int, **values: Any) -> LogWriter:
    """Log the updates from `first` to `last` as one process start would."""
    counter = UpdateCounter(TrainingIteration(update=first - 1), updates_per_epoch=4, effective_batch_size=2)
    writer = LogWriter(path, update_counter=counter)
    for _ in range(first, last + 1):
        counter.add_samples(2)
        counter.next_update()
        if counter.is_full_epoch:
            counter.next_epoch()
        for key, value in values.items():
            writer.add_scalar(key, value)
        writer.flush()
    writer.close()
    return writer


def test_series_have_the_epoch_update_and_sample_of_each_value(tmp_path: Path) -> None:
    log(tmp_path, 3, 5, loss=0.5)
    series = read_run(str(tmp_path)).series
    assert list(series) == ["loss"]
    assert list(series["loss"]) == [Point(0, 3, 6, 0.5), Point(1, 4, 8, 0.5), Point(1, 5, 10, 0.5)]


def test_a_second_start_supersedes_from_its_first_entry_on(tmp_path: Path) -> None:
    log(tmp_path, 1, 8, loss=1.0, only_first=0)
    log(tmp_path, 5, 6, loss=2.0)
    run = read_run(tmp_path)
    assert [(point.update, point.value) for point in run.series["loss"]] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 2),
        (6, 2),
    ]
    assert [point.update for point in run.series["only_first"]] == [1, 2, 3, 4]
    assert run.superseded == 4
    assert run.problems == []


def test_starts_count_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for start in range(1, 12):  # 10 comes after 9, not after 1
        log(tmp_path, start, start + 3, start=start)
    run = read_run(tmp_path)
    assert [(point.update, point.value) for point in run.series["start"]] == [
        *((n, n) for n in range(1, 12)),
        *((n, 11) for n in (12, 13, 14)),
    ]
    assert run.superseded == 30


def test_a_start_that_logged_nothing_supersedes_nothing(tmp_path: Path) -> None:
    writer = log(tmp_path, 1, 3, loss=1.0)
    (tmp_path / "metrics" / "2.jsonl").touch()
    run = read_run(tmp_path)
    assert (run.entries, run.superseded, run.problems) == (writer.log_entries, 0, [])


def test_a_start_whose_first_line_is_torn_supersedes_nothing(tmp_path: Path) -> None:
    writer = log(tmp_path, 1, 3, loss=1.0)
    (tmp_path / "metrics" / "2.jsonl").write_bytes(encode_line({"epoch": 0, "update": 1, "sample": 2})[:-3])
    run = read_run(tmp_path)
    assert (run.entries, run.superseded, len(run.problems)) == (writer.log_entries, 0, 1)


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    writer = log(tmp_path, 1, 3, loss=1.0)
    (tmp_path / "metrics" / "notes.jsonl").write_text("hello")
    (tmp_path / "metrics" / "2.jsonl.bak").write_text("hello")
    (tmp_path / "update_outputs" / "U1").mkdir(parents=True)
    (tmp_path / "update_outputs" / "U1" / "mine.safetensors").write_text("hello")
    (tmp_path / "update_outputs" / "U1" / ".E0_U1_S2.safetensors.7.tmp").write_text("half")
    run = read_run(tmp_path)
    assert (run.entries, run.problems, run.arrays) == (writer.log_entries, [], [])


def test_array_files_are_listed_by_interval_and_update_and_loaded_on_demand(tmp_path: Path) -> None:
    places = ["U1/E0_U10_S20", "U1/E0_U9_S18", "mine/E1/E1_U4_S8"]
    for number, place in enumerate(places):
        write_arrays(tmp_path / "update_outputs" / f"{place}.safetensors", {"field": np.full(3, number, np.float32)})
    found = read_run(tmp_path).arrays
    assert [(file.interval, str(file.iteration)) for file in found] == [
        ("U1", "E0_U9_S18"),
        ("U1", "E0_U10_S20"),
        ("mine/E1", "E1_U4_S8"),
    ]
    assert [file.load()["field"].tolist() for file in found] == [[1.0] * 3, [0.0] * 3, [2.0] * 3]
    found[0].path.write_bytes(b"damaged")
    with pytest.raises(RunFormatError, match="E0_U9_S18"):
        found[0].load()


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFormatError, match="does not exist; give the directory that a Run wrote"):
        read_run(tmp_path / "absent")
    with pytest.raises(RunFormatError, match=r"has no config\.yaml, metrics/ or update_outputs/"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert read_run(tmp_path).entries == []


def test_reading_changes_nothing(tmp_path: Path) -> None:
    log(tmp_path, 1, 3, loss=1.0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    read_run(tmp_path).series  # noqa: B018
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


UPDATES = 20_000


def _write(path: Path) -> None:
    log(path, 1, UPDATES, **{f"key{number}": number / 3 for number in range(20)})


def test_a_run_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=_write, args=(tmp_path,))
    writer.start()
    seen, deadline = 0, time.monotonic() + 60
    lengths = set()
    while seen < UPDATES and time.monotonic() < deadline:
        if (tmp_path / "metrics").is_dir():
            entries = read_run(tmp_path).entries
            assert [entry["update"] for entry in entries] == list(range(1, len(entries) + 1))
            assert all(len(entry) == 23 and entry["key7"] == 7 / 3 for entry in entries[seen:])
            assert len(entries) >= seen
            seen = len(entries)
            lengths.add(seen)
    writer.join()
    assert writer.exitcode == 0
    assert seen == UPDATES
    assert len(lengths) > 2  # it was read in the middle
    assert read_run(tmp_path).problems == []


def test_entries_that_are_gone_are_told_of(tmp_path: Path) -> None:
    with Run(tmp_path / "run", [{"every_n_updates": 1, "keys": ["loss"]}], processes=1) as run:
        for _ in range(9):
            run.step({"loss": 1.0})
    file = tmp_path / "run" / "metrics" / "1.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for left, said in (
        (lines[:-1], "lacks 1 entries that it had, of updates from 9 to 9"),
        (lines[:3] + lines[5:], "lacks 2 entries that it had, of updates from 4 to 5"),
        ([], "lacks 9 entries that it had, of updates from 1 to 9"),
        (None, "lacks 9 entries that it had, of updates from 1 to 9"),
    ):
        file.unlink() if left is None else file.write_bytes(b"".join(left))
        (problem,) = read_run(tmp_path / "run").problems
        assert said in problem
