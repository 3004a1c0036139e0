"""`noether-parity check` says what is damaged, missing or superseded in a run directory, and exits by it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from damaged_runs import TRACKED, make_run, train, write_log

import noether_torch
from noether_core import RunFormatError
from noether_core.cli import main
from noether_core.emit.arrays import write_arrays
from noether_core.emit.holders import about_this_process
from noether_core.parity import check_run


class Done(NamedTuple):
    code: object
    out: str


def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Done:
    monkeypatch.setattr(sys, "argv", ["noether-parity", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return Done(caught.value.code, capsys.readouterr().out)


def test_a_whole_run_exits_0_and_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    done = check(monkeypatch, capsys, tmp_path / "run")
    assert done.code == 0
    for phrase in (
        "7 entries and 7 array files stand",
        "began anew",
        "went on after update 8 of",
        "superseded by later starts",
        "superseded/2/update_outputs/U2/E0_U10_S10.safetensors",
        "1 files have what processes had",
        "nothing is damaged or missing",
    ):
        assert phrase in done.out, done.out
    report = json.loads(check(monkeypatch, capsys, tmp_path / "run", "--json").out)
    assert (report["is_clean"], report["problems"], len(report["starts"]), report["entries"]) == (True, [], 3, 7)


def test_damage_and_what_is_missing_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    make_run(path)
    (path / "update_outputs" / "U2" / "E0_U2_S2.safetensors").unlink()
    (path / "metrics" / "2.jsonl").unlink()
    (path / "metrics" / "2.time.jsonl").unlink()
    (path / "starts" / "1.json").unlink()
    (path / "starts" / "7.json").write_text("{}")
    done = check(monkeypatch, capsys, path)
    assert done.code == 1
    for phrase in (
        "E0_U2_S2.safetensors is missing: start 1 says that it saved it",
        "is missing, as is all else that start 2 logged",
        "is missing, as is all else that start 7 logged",
        "all files of start 4 are missing",
        "start 1 left no record that can be read",
    ):
        assert phrase in done.out, done.out
    assert not json.loads(check(monkeypatch, capsys, path, "--json").out)["is_clean"]


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFormatError, match="does not exist"):
        check_run(tmp_path / "absent")


def test_a_log_alone_and_arrays_without_checksums_are_clean(tmp_path: Path) -> None:
    write_log(tmp_path, {"loss": 1.0})
    file = tmp_path / "update_outputs" / "U1" / "E0_U1_S1.safetensors"
    write_arrays(file, {"a": np.zeros(3)})
    file.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    report = check_run(tmp_path)
    assert report.is_clean, report.problems
    assert any("1 array files have no checksums" in note for note in report.notes)


LIVE = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from damaged_runs import TRACKED, train
import noether_torch
with noether_torch.Run(Path(sys.argv[1]), [TRACKED]) as run:
    train(run, 2, 0)
    print("begun", flush=True)
    train(run, 100, 0)
"""


def test_a_run_that_is_being_written_is_checked_without_an_exception(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    command = [sys.executable, "-c", LIVE, str(tmp_path), str(tests), str(tests.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        entries = [0]
        while process.poll() is None:
            entries.append(check_run(tmp_path).entries)
            time.sleep(0.02)
    assert process.returncode == 0
    assert entries == sorted(entries)
    report = check_run(tmp_path)
    assert (report.is_clean, report.entries) == (True, 50)


def test_arrays_that_a_run_under_way_is_about_to_write_are_not_missing(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [TRACKED]) as run:
        train(run, 5, 0)
        run.log_writer.disk.wait()
        older, newest = sorted((tmp_path / "update_outputs").glob("**/*.safetensors"))
        newest.rename(tmp_path / "kept")
        report = check_run(tmp_path)
        assert report.is_clean
        assert f"{newest} is being written" in report.notes
        older.rename(tmp_path / "kept too")
        assert [problem.partition(" is ")[0] for problem in check_run(tmp_path).problems] == [str(older)]
        (tmp_path / "kept too").rename(older)
    assert "is missing" in check_run(tmp_path).problems[0]
    holder = {**about_this_process(), "host": "another"}  # the run was copied while it was written, or its machine died
    (tmp_path / "writer.lock").write_text(json.dumps(holder))
    assert "is missing" in check_run(tmp_path).problems[0]


def test_a_resumed_run_is_clean(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [TRACKED]) as run:
        train(run, 5, 0)
        run.save_state(tmp_path / "state")
        train(run, 8, 0)
    with noether_torch.Run(tmp_path, [TRACKED]) as run:
        run.load_state(tmp_path / "state")
        train(run, 9, 1)
    assert check_run(tmp_path).problems == []
