"""An interval that processes could not pool is merged from what each saved, as if it had been logged at its time."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_merged_positions import accumulator
from typer.testing import CliRunner

import noether_torch
from noether_core import read_run
from noether_core.cli import app
from noether_core.config import OnlineLossCallbackConfig
from noether_core.emit.disk import Disk
from noether_core.emit.unmerged import Unmerged, UnmergedFiles, find_unmerged, read_unmerged, set_merged
from noether_core.errors import NoetherError, ProcessesMissingError, RunFormatError
from noether_core.parity import merge_run
from noether_core.reduce.agreement import DUE
from noether_core.reduce.state import pack
from noether_core.reduce.threads import ThreadExchange, run_threads
from noether_core.schedule import TrainingIteration

# one of the processes has a key that the others have not, which is warned about
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CONFIGS: list[Any] = [
    {"every_n_updates": 2, "keys": ["x"], "patterns": ["w/"], "reduce": ["mean", "std", "last", "count", "max"]},
    {
        "every_n_updates": 4,
        "keys": ["x", "field"],
        "reduce": {"x": ["stack", "mean"], "field": ["last", "stack", "sum"]},
        "log_output": False,
        "save_output": True,
        "id": "arrays",
        "nonfinite": "skip",
    },
    {"every_n_updates": 4, "keys": ["x"], "reduce": ["last", "mean"], "save_output": True, "id": "both"},
    OnlineLossCallbackConfig(every_n_updates=2, nonfinite="propagate"),
]
UPDATES, PROCESSES = 12, 3


def outputs_of(update: int, process: int) -> dict[str, Any]:
    rng = np.random.default_rng([update, process])
    outputs: dict[str, Any] = {"x": np.float32(rng.normal()), "field": rng.normal(size=(2,)).astype(np.float32)}
    if update % 5 == 0:
        outputs["x"] = np.float32("nan")
    if process == 1:
        outputs["w/one"] = float(rng.normal()) * 1e30
    return outputs


def train(path: Path, absent: dict[int, int], updates: range = range(UPDATES), start: int | None = None) -> None:
    """Train in threads; at the end of each of these updates one of them comes too late."""

    notes: list[tuple[int, str]] = []
    barriers = {update: threading.Barrier(PROCESSES, timeout=20) for update in absent}

    def body(exchange: ThreadExchange) -> None:
        run = noether_torch.Run(path, CONFIGS, processes=exchange, start=start and {"update": start})
        run.start()
        for update in updates:
            if absent.get(update + 1) == exchange.index:
                barriers[update + 1].wait()  # until the others gave up
            outputs = outputs_of(update, exchange.index)
            try:
                run.step(outputs, losses=float(update + exchange.index / 3))
                assert update + 1 not in absent
            except ProcessesMissingError as error:
                notes.append((update + 1, "".join(error.__notes__)))
                if absent.get(update + 1) != exchange.index:
                    barriers[update + 1].wait()
            run.log({"mine": update})
        run.finish()

    run_threads(PROCESSES, body, time_limit=0.7)
    assert sorted(notes)[::PROCESSES] == [(update, notes[0][1]) for update in sorted(absent)]
    assert all(f"noether-parity merge {path}" in note for _, note in notes)


def shown(path: Path) -> Any:
    read = read_run(path)
    entries = [sorted((name, repr(value)) for name, value in entry.items()) for entry in read.entries]
    series = {key: (each.update.tolist(), repr(each.value.tolist())) for key, each in sorted(read.series.items())}
    files = [
        (file.path.name, sorted((n, a.dtype, a.shape, a.tobytes()) for n, a in file.load().items()))
        for file in read.arrays
    ]
    return entries, series, files, read.problems, read.superseded


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path, {})
    assert files_of(path / "unmerged") == {}
    return shown(path)


@pytest.mark.parametrize("absent", [{2: 1}, {4: 0}, {4: 2, 8: 1, 10: 1}, {12: 2}, {2: 0, 4: 0, 12: 1}])
def test_what_could_not_be_pooled_is_merged_to_the_bit(absent: dict[int, int], whole: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", absent)
    assert shown(tmp_path / "run") != whole
    report = merge_run(tmp_path / "run")
    assert (len(report.merged), report.problems) == (len(absent), [])
    assert shown(tmp_path / "run") == whole
    assert len(list((tmp_path / "run" / "unmerged").glob("*/merged/*-of-3.safetensors"))) == PROCESSES * len(absent)
    before = files_of(tmp_path / "run")
    report = merge_run(tmp_path / "run")
    assert (report.merged, report.problems) == ([], [])
    assert files_of(tmp_path / "run") == before


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_merge_that_was_killed_is_gone_on_with(whole: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", {4: 1})
    (directory,) = (tmp_path / "run" / "unmerged").glob("E*")
    shutil.copytree(directory, tmp_path / "copy")
    merge_run(tmp_path / "run")
    shutil.copytree(tmp_path / "copy", directory, dirs_exist_ok=True)
    report = merge_run(tmp_path / "run")
    assert report.problems == []
    assert shown(tmp_path / "run") == whole


def test_files_that_are_missing_are_named_and_may_come_later(whole: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", {4: 1})
    (directory,) = (tmp_path / "run" / "unmerged").glob("E*")
    (directory / "1-of-3.safetensors").rename(tmp_path / "kept")
    before = files_of(tmp_path / "run")
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "lacks what other processes had: 1-of-3.safetensors" in result.output.replace("\n", " ")
    assert files_of(tmp_path / "run") == before
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "run"), "--partial"])
    assert (result.exit_code, "without 1-of-3.safetensors" in result.output) == (0, True)
    assert read_run(tmp_path / "run").entries[3]["x/count/U2"] == 4
    (tmp_path / "kept").rename(directory / "1-of-3.safetensors")
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "run")])
    assert result.exit_code == 0
    assert shown(tmp_path / "run") == whole
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "run")])
    assert (result.exit_code, result.output) == (0, "nothing to merge\n")


def test_a_run_that_logged_nothing_else_is_merged_and_a_later_start_supersedes_it(whole: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", {2: 1, 4: 0}, range(4))
    shutil.rmtree(tmp_path / "run" / "metrics")
    shutil.rmtree(tmp_path / "run" / "starts")
    assert len(merge_run(tmp_path / "run").merged) == 2
    merged = read_run(tmp_path / "run")
    assert [entry["update"] for entry in merged.entries] == [2, 4]
    assert [sorted((name, repr(value)) for name, value in entry.items()) for entry in merged.entries] == [
        [pair for pair in whole[0][update - 1] if pair[0] != "mine"] for update in (2, 4)
    ]
    train(tmp_path / "run", {}, range(4, UPDATES), start=4)
    assert read_run(tmp_path / "run").series["x/count/U2"].update.tolist() == [2, 4, 6, 8, 10, 12]
    train(tmp_path / "run", {})
    assert shown(tmp_path / "run")[:4] == whole[:4]


def test_what_a_superseded_start_left_is_not_mixed_with_what_is_logged(tmp_path: Path) -> None:
    train(tmp_path / "run", {4: 1})
    (directory,) = (tmp_path / "run" / "unmerged").glob("E*")
    shutil.copytree(directory, tmp_path / "copy")
    train(tmp_path / "run", {})
    before = shown(tmp_path / "run")
    report = merge_run(tmp_path / "run")
    assert ("in the log already" in report.merged[0], report.problems) == (True, [])
    assert shown(tmp_path / "run") == before
    for name in ("loss", "arrays"):
        shutil.copytree(tmp_path / "copy", directory, dirs_exist_ok=True)
        saved = read_unmerged(directory / "0-of-3.safetensors")
        number, key = {"loss": (3, "loss/online/total"), "arrays": (1, "x")}[name]
        other = dict(saved.callbacks[number])
        other["sums"] = {field: sums * 2 for field, sums in other["sums"].items()}
        save(tmp_path / "run", replace(saved, callbacks={**saved.callbacks, number: other}))
        report = merge_run(tmp_path / "run")
        assert report.merged == []
        assert "of another start of the run; take their files away" in " ".join(report.problems[0].split())
        assert (key in report.problems[0]) or name == "arrays"
        assert shown(tmp_path / "run") == before


# ---------------------------------------------------------------------- the files


def part() -> dict[str, Any]:
    one = accumulator()
    one.add(("x",), (np.float32(1),), 4, 0)
    return pack(one.partials())


def of(index: int, count: int, number: int, *callbacks: int, update: int = 4) -> Unmerged:
    parts, due = {callback: part() for callback in callbacks}, dict.fromkeys(callbacks, DUE)
    return Unmerged(TrainingIteration(0, update, 2 * update), index, count, parts, due, "s", number)


def save(path: Path, unmerged: Unmerged) -> None:
    """Save it as its process does at its first meeting."""
    disk = Disk()
    UnmergedFiles(path, unmerged.index, unmerged.count, disk).save(unmerged)
    disk.close()


def test_what_is_saved_and_not_discarded_is_kept(tmp_path: Path) -> None:
    disk = Disk()

    def found() -> dict[str, list[int]]:
        assert disk.wait()
        files = [read_unmerged(file) for file in find_unmerged(tmp_path)]
        return {file.path.relative_to(tmp_path / "unmerged").as_posix(): sorted(file.callbacks) for file in files}

    files = UnmergedFiles(tmp_path, 1, 2, disk)
    files.save(of(1, 2, 0, 0, 2))
    files.save(of(1, 2, 1, 1))
    assert found() == {"E0_U4_S8.s.0/1-of-2.safetensors": [0, 2], "1-of-2.safetensors": [1]}
    files.set_pooled()
    files.save(of(1, 2, 2, 5))
    before = {"1-of-2.before.safetensors": [1]}
    assert found() == {"E0_U4_S8.s.0/1-of-2.safetensors": [0, 2], **before, "1-of-2.safetensors": [5]}
    files.save(of(1, 2, 3, 0, update=6))
    save(tmp_path, of(0, 2, 3, 3, update=6))
    kept = {"E0_U4_S8.s.0/1-of-2.safetensors": [0, 2], "E0_U4_S8.s.2/1-of-2.safetensors": [5]}
    newest = {"0-of-2.safetensors": [3], "1-of-2.safetensors": [0]}
    assert found() == {**kept, **before, **newest}
    files.discard_before()
    assert found() == {**kept, **newest}
    files.discard()
    assert found() == {**kept, **newest}
    save(tmp_path, of(1, 2, 0, 7))  # of another start
    kept |= {"E0_U6_S12.s.3/1-of-2.safetensors": [0]}
    assert found() == {**kept, "0-of-2.safetensors": [3], "1-of-2.safetensors": [7]}
    for file in find_unmerged(tmp_path):
        set_merged(tmp_path, read_unmerged(file))
    assert sorted(found()) == [
        "E0_U4_S8.s.0/merged/1-of-2.safetensors",
        "E0_U4_S8.s.2/merged/1-of-2.safetensors",
        "E0_U6_S12.s.3/merged/0-of-2.safetensors",
        "E0_U6_S12.s.3/merged/1-of-2.safetensors",
    ]
    disk.close()


def test_processes_that_save_and_discard_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    def body(exchange: ThreadExchange) -> None:
        disk = Disk()
        files = UnmergedFiles(tmp_path, exchange.index, exchange.count, disk)
        for number in range(60):
            files.save(of(exchange.index, exchange.count, number, 0, update=4 + number // 3))
            if number % 3:
                files.set_pooled()
                files.discard()
        disk.close()

    run_threads(4, body)
    assert len(find_unmerged(tmp_path)) == 4 * 20


def test_damaged_and_misplaced_files_are_named(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, CONFIGS, processes=1):
        pass
    save(tmp_path, of(0, 1, 0, 0))
    file = tmp_path / "unmerged" / "0-of-1.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    assert "no intact state" in merge_run(tmp_path).problems[0]
    file.write_bytes(data)
    file.rename(file.with_name("1-of-2.safetensors"))
    assert "it is of process 0 of 1" in merge_run(tmp_path).problems[0]
    file.with_name("1-of-2.safetensors").unlink()
    save(tmp_path, of(0, 1, 0, 7))
    assert "has values of tracking callback 7, which config.yaml has not" in merge_run(tmp_path).problems[0]
    file.unlink()
    save(tmp_path, of(0, 1, 0, 2))
    assert "or with another `reduce`" in merge_run(tmp_path).problems[0]
    with pytest.raises(NoetherError, match="does not exist"):
        merge_run(tmp_path / "absent")
    with pytest.raises(RunFormatError, match="cannot be read"):
        read_unmerged(tmp_path)
