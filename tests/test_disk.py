from __future__ import annotations

import itertools
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_disk import KINDS, FaultyDisk

from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.emit.disk import FILE_COST, MOST_BYTES
from noether_torch import Run

CALLBACKS = [
    {"every_n_updates": 1, "keys": ["loss"]},
    {"every_n_updates": 2, "keys": ["field"], "reduce": "last", "log_output": False, "save_output": True},
]


def train(path: Path, first: int = 1, last: int = 6, **arguments: Any) -> Run:
    """Train from one update to another one, as a start of its own."""
    start = {"update": first - 1} if first > 1 else None
    with Run(path, CALLBACKS, start=start, processes=1, **arguments) as run:
        for update in range(first, last + 1):
            run.step({"loss": update / 3, "field": np.full(3, update)})
    return run


def result(path: Path) -> tuple[list[dict[str, Any]], dict[str, list[float]], list[str]]:
    """Return the entries, the arrays by their file's name, and the problems."""
    run = read_run(path)
    arrays = {f"{file.interval}/{file.path.name}": file.load()["field"].tolist() for file in run.arrays}
    return run.entries, arrays, run.problems


def train_twice(path: Path) -> None:
    train(path)
    train(path, 4, 8)  # which supersedes entries and an array file


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("counted")
    with FaultyDisk(path).installed() as disk:
        train_twice(path)
    return disk.calls


# ---------------------------------------------------------------------- a call fails


def test_every_call_may_fail_once_and_costs_nothing(calls: list[str], tmp_path: Path, full: bool) -> None:
    assert {"open", "write", "fsync", "close", "replace", "mkdir", "scandir"} <= set(calls)
    train_twice(tmp_path / "whole")
    whole = result(tmp_path / "whole")
    assert (len(whole[0]), len(whole[1]), whole[2]) == (8, 4, [])
    cases = list(itertools.product(range(len(calls) + 5), KINDS))
    for failing, kind in cases if full else random.sample(cases, 40):
        path = tmp_path / f"{failing} {kind}"
        disk = FaultyDisk(path, kind, lambda *call, failing=failing: call[0] == failing)
        with disk.installed(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_twice(path)
        entries, arrays, problems = result(path)
        assert (entries, arrays) == whole[:2], (failing, kind, disk.calls[failing])
        assert len(problems) <= (kind == "torn"), problems
        assert all("the disk does not take what this run logs" in str(warning.message) for warning in caught)
        assert len(caught) <= 1
        assert not list(path.rglob("*.tmp"))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("seed", range(100))
def test_any_calls_may_fail_for_a_while_and_cost_nothing(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    train_twice(tmp_path / "whole")
    path = tmp_path / "run"
    share, until = rng.uniform(0.1, 0.6), rng.randrange(20, 200)
    disk = FaultyDisk(path, rng.choice(KINDS), lambda *call: call[0] < until and rng.random() < share)
    with disk.installed(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_twice(path)
    if any("missing in the run directory" in str(warning.message) for warning in caught):
        assert until > 100  # the second of the two closed before it ended
    else:
        assert result(path)[:2] == result(tmp_path / "whole")[:2]


def test_a_disk_that_fails_to_the_end_is_warned_about_and_stops_nothing(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path / "run", "ENOSPC", lambda number, name: name == "write" and number > 30)
    with disk.installed(), pytest.warns(RuntimeWarning) as caught:
        run = train(tmp_path / "run", last=40)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) in (1, 2)
    assert "missing in the run directory, for the disk did not take it ([Errno 28] injected" in messages[-1]
    entries, _, _ = result(tmp_path / "run")
    assert [entry["update"] for entry in run.log_writer.log_entries] == [*range(1, 41)]
    assert entries == run.log_writer.log_entries[: len(entries)]
    assert f"{40 - len(entries)} entries of the updates {len(entries) + 1} to 40" in messages[-1]


@pytest.mark.parametrize("where", ["run", "run/metrics", "run/update_outputs"])
def test_what_lies_in_the_way_is_refused_at_the_start_or_warned_about(tmp_path: Path, where: str) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("in the way")
    if where == "run":
        with pytest.raises(OSError, match="run"):
            train(tmp_path / "run")
        return
    with pytest.warns(RuntimeWarning, match=r"missing in the run directory.*Errno") as caught:
        run = train(tmp_path / "run")
    assert len(run.log_writer.log_entries) == 6
    assert len(caught) in (1, 2)
    if where == "run/update_outputs":
        entries, arrays, problems = result(tmp_path / "run")
        assert (len(entries), arrays) == (6, {})
        assert ["3 files (update_outputs/U2/E0_U2_S2.safetensors" in problem for problem in problems] == [True]


# ---------------------------------------------------------------------- the disk stalls


def test_training_goes_on_while_the_disk_stalls(tmp_path: Path) -> None:
    with FaultyDisk(tmp_path / "run").installed() as disk, Run(tmp_path / "run", CALLBACKS, processes=1) as run:
        disk.opened.clear()
        for update in range(1, 201):
            run.step({"loss": update / 3, "field": np.full(3, update)})
        assert len(run.log_writer.log_entries) == 200
        assert not run.log_writer.disk.wait(patience=0.1)
        disk.opened.set()
    entries, arrays, problems = result(tmp_path / "run")
    assert (len(entries), len(arrays), problems) == (200, 100, [])


def test_what_meets_a_full_queue_is_dropped_counted_and_marked(tmp_path: Path) -> None:
    updates = 2 * MOST_BYTES // FILE_COST + 400
    with FaultyDisk(tmp_path / "run").installed() as disk, Run(tmp_path / "run", CALLBACKS, processes=1) as run:
        disk.opened.clear()
        with pytest.warns(RuntimeWarning, match="the disk has stalled"):  # noqa: PT031 -- whichever step it is
            for update in range(1, updates + 1):
                run.step({"loss": update / 3, "field": np.full(3, update)})
        disk.opened.set()
        assert run.log_writer.disk.wait(patience=60, insists=True)
        for update in range(updates + 1, updates + 11):
            run.step({"loss": update / 3, "field": np.full(3, update)})
        with pytest.warns(RuntimeWarning, match="missing in the run directory, for the disk did not take it"):
            run.finish()
    entries, arrays, problems = result(tmp_path / "run")
    written = [entry["update"] for entry in entries]
    lost = sorted(set(range(1, updates + 11)) - set(written))
    assert lost
    assert lost == [*range(lost[0], lost[-1] + 1)]
    assert lost[-1] == updates
    files = (updates + 10) // 2 - len(arrays)
    assert MOST_BYTES // FILE_COST - 20 < len(arrays) < MOST_BYTES // FILE_COST + 10
    (problem,) = problems
    assert (
        f"{len(lost)} entries of the updates {lost[0]} to {lost[-1]} and {files} files (update_outputs/U2/E0_U"
        in problem
    )
    assert all(values == [float(Path(name).stem.split("_")[1][1:])] * 3 for name, values in arrays.items())


def test_more_than_the_queue_holds_is_written_where_the_disk_works(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, update_counter=UpdateCounter())
    for number in range(6):
        writer.save(tmp_path / "large" / str(number), bytes(MOST_BYTES // 2))
    writer.close()
    assert [(tmp_path / "large" / str(number)).stat().st_size for number in range(6)] == [MOST_BYTES // 2] * 6
