"""What says which start saved an array is lost, or is never written: no array of an attempt that was given up is the run's."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_disk import FaultyDisk

from noether_core import read_run
from noether_core.parity import check_run
from noether_torch import Run

TRACKED = {"every_n_updates": 1, "keys": ["x"], "reduce": "last", "log_output": False, "save_output": True}


def train(run: Run, until: int, attempt: int) -> None:
    while run.counter.update < until:
        run.step({"x": np.float32([attempt, run.counter.update + 1])})


def given_up(path: Path) -> None:
    """Train to update 8, go back to 3 and train to 6, go back to 3 and train to 9, and go back to 6."""
    with Run(path, [TRACKED]) as run:
        train(run, 3, 1)
        three = run.state_dict()
        train(run, 8, 1)
    with Run(path, [TRACKED]) as run:
        run.load_state_dict(three)
        train(run, 6, 2)
        six = run.state_dict()
        run.load_state_dict(three)
        train(run, 9, 3)
    with Run(path, [TRACKED]) as run:
        run.load_state_dict(six)
        run.log({"own": 1.0})


def arrays(path: Path) -> dict[int, list[float]]:
    return {file.iteration.update or 0: file.load()["x"].tolist() for file in read_run(path).arrays}


TRUTH = {update: [1.0 if update <= 3 else 2.0, float(update)] for update in range(1, 7)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given_up") / "run"
    given_up(path)
    assert arrays(path) == TRUTH
    assert read_run(path).problems == []
    return path


def test_no_note_that_is_lost_makes_an_array_of_another_attempt_the_runs(original: Path, tmp_path: Path) -> None:
    notes = sorted((original / "metrics").glob("*.time.jsonl"))
    damages: list[tuple[str, Any]] = []
    for file in notes:
        lines = file.read_bytes().splitlines(keepends=True)
        damages += [(file.name, b"".join(lines[:at] + lines[at + 1 :])) for at in range(len(lines))]
        damages += [(file.name, b"".join(lines[:at])) for at in range(len(lines))]
        damages += [(file.name, None)]
    for number, (name, data) in enumerate(damages):
        path = tmp_path / str(number)
        shutil.copytree(original, path)
        if data is None:
            (path / "metrics" / name).unlink()
        else:
            (path / "metrics" / name).write_bytes(data)
        found = arrays(path)
        wrong = {update: value for update, value in found.items() if TRUTH.get(update) != value}
        lacking = TRUTH.keys() - found.keys()
        assert not wrong, (name, data)
        assert not lacking or read_run(path).problems, (name, data)
        shutil.rmtree(path)


def test_an_array_that_no_start_says_it_saved_is_a_problem(tmp_path: Path) -> None:
    with Run(tmp_path / "run", [TRACKED]) as run:
        train(run, 2, 1)
    (tmp_path / "run" / "metrics" / "1.time.jsonl").unlink()
    assert arrays(tmp_path / "run") == {1: [1.0, 1.0], 2: [1.0, 2.0]}  # of the only start there is
    problems = read_run(tmp_path / "run").problems
    assert sum("no start says that it saved this file" in problem for problem in problems) == 2
    assert any("as is all else that start 1 logged" in problem for problem in problems)
    assert not check_run(tmp_path / "run").is_clean


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES], ids=["EIO", "EACCES"])
@pytest.mark.parametrize("lasts", [20, 10**9], ids=["a while", "to the end"])
@pytest.mark.filterwarnings("ignore:the disk does not take:RuntimeWarning", "ignore:missing in the run:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:the disk did not make durable:RuntimeWarning")
def test_where_notes_cannot_be_written_no_array_is_either(code: int, lasts: int, tmp_path: Path) -> None:
    path, begun, failed = tmp_path / "run", [False], [0]

    def fails(number: int, name: str) -> bool:
        if begun[0] and disk.paths[number].endswith(".time.jsonl") and name in ("write", "fsync"):
            failed[0] += 1
            if failed[0] <= lasts:
                raise OSError(code, os.strerror(code))
        return False

    disk = FaultyDisk(path, fails=fails)
    with disk.installed():
        with Run(path, [TRACKED]) as run:
            train(run, 3, 1)
            three = run.state_dict()
            run.log_writer.disk.wait(is_durable=True)
            begun[0] = True
            train(run, 6, 1)
        begun[0] = False
    read = read_run(path)
    found, told = arrays(path), "; ".join(read.problems)
    assert found.items() <= {update: [1.0, float(update)] for update in range(1, 7)}.items()
    assert all(f"E0_U{update}_" in told for update in {4, 5, 6} - found.keys()) or lasts > 20
    with Run(path, [TRACKED]) as run:
        run.load_state_dict(three)
        run.log({"own": 1.0})
    assert arrays(path) == {update: [1.0, float(update)] for update in (1, 2, 3)}


@pytest.mark.filterwarnings("ignore:the disk does not take:RuntimeWarning", "ignore:missing in the run:RuntimeWarning")
def test_an_array_that_cannot_be_set_aside_is_not_written_over(tmp_path: Path) -> None:
    with Run(tmp_path, [TRACKED]) as run:
        train(run, 2, 1)
        one = run.state_dict()
        train(run, 3, 1)
    (tmp_path / "superseded").touch()
    with Run(tmp_path, [TRACKED]) as run:
        run.load_state_dict(one)
        run.log({"own": 1.0})
        train(run, 3, 2)
    told = "; ".join(read_run(tmp_path).problems)
    assert "E0_U3_S3.safetensors" in told
    assert np.array_equal([file.load()["x"] for file in read_run(tmp_path).superseded_arrays], [np.float32([1, 3])])
