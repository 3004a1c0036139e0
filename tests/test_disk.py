from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import virtual_processes
from faulty_disk import KINDS, FaultyDisk

from noether_core import LogWriter, NoetherError, UpdateCounter, read_run
from noether_core.emit.disk import FILE_COST, MOST_BYTES, MOST_OF_FILES
from noether_core.emit.disk_thread import is_passing
from noether_core.emit.files import write_whole
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


def test_every_call_may_fail_once_and_costs_nothing(
    calls: list[str], tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    assert {"open", "write", "fsync", "close", "replace", "mkdir", "scandir"} <= set(calls)
    train_twice(tmp_path / "whole")
    whole = result(tmp_path / "whole")
    assert (len(whole[0]), len(whole[1]), whole[2]) == (8, 4, [])
    cases = list(itertools.product(range(len(calls) + 5), KINDS))
    for failing, kind in sized(cases if full else random.sample(cases, 40), "failing calls"):
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


def test_in_several_processes_too_any_call_may_fail(
    tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    def run(path: Path, disk: FaultyDisk) -> Any:
        steps = [
            [{"loss": update + process, "field": np.full(2, process)} for update in range(6)] for process in range(3)
        ]
        with disk.installed():
            outcomes, caught = virtual_processes.train(path, 3, CALLBACKS, virtual_processes.steps_of(steps))
        assert [outcome.error for outcome in outcomes] == [None] * 3
        assert all("the disk does not take what this run logs" in warning for warning in caught)
        return result(path)[:2], sorted(path.rglob("*-of-3*"))

    disk = FaultyDisk(tmp_path / "whole")
    whole = run(tmp_path / "whole", disk)
    assert whole[1] == []
    assert len(whole[0][0]) == 6
    numbers = range(len(disk.calls)) if full else random.sample(range(len(disk.calls)), 8)
    for number in sized(numbers, "failing calls of three processes"):
        kind = random.choice(KINDS)
        faulty = FaultyDisk(tmp_path / str(number), kind, lambda *call, number=number: call[0] == number)
        assert run(tmp_path / str(number), faulty) == whole, (number, kind, faulty.calls[number], faulty.paths[number])


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


def test_whatever_a_server_that_is_gone_says_no_array_is_given_up(tmp_path: Path) -> None:
    names = {errno.errorcode[code] for code in errno.errorcode if is_passing(OSError(code, ""))}
    assert {"ENOTCONN", "ESHUTDOWN", "EREMOTEIO", "EHOSTDOWN", "EKEYEXPIRED", "ESTALE", "EIO"} <= names
    assert not names & {"EACCES", "ENOENT", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EILSEQ", "EINVAL"}
    gone = threading.Event()
    runs: list[Run] = []
    disks: dict[str, FaultyDisk] = {}

    def tries(name: str) -> int:
        seen = zip(disks[name].calls, disks[name].paths, strict=False)
        return sum(call == "open" and "update_outputs" in path for call, path in seen)

    def failing(name: str) -> Callable[[int, str], bool]:
        return lambda at, call: gone.is_set() and call == "open" and "update_outputs" in disks[name].paths[at]

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore", category=RuntimeWarning))
        for name in random.sample(sorted(names), 8):
            runs.append(stack.enter_context(Run(tmp_path / name, CALLBACKS, processes=1)))
            disks[name] = FaultyDisk(tmp_path / name, name, failing(name))
            stack.enter_context(disks[name].installed())
        gone.set()
        for run in runs:
            run.step([{"field": np.full(3, update), "loss": update} for update in (1.0, 2.0)])
        until = time.monotonic() + 60
        while min(map(tries, disks)) < 7:  # what is wrong with a file alone is given up at its sixth try
            time.sleep(0.1)
            assert time.monotonic() < until
        gone.clear()
        for run in runs:
            run.finish()
    for run in runs:
        assert result(run.path)[1:] == ({"U2/E0_U2_S2.safetensors": [2.0] * 3}, []), run.path.name


@pytest.mark.parametrize("where", ["run", "run/metrics", "run/update_outputs"])
def test_what_lies_in_the_way_is_refused_at_the_start_or_warned_about(tmp_path: Path, where: str) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("in the way")
    if where == "run":
        with pytest.raises(OSError, match="run"):
            train(tmp_path / "run")
        return
    with pytest.warns(RuntimeWarning) as caught:
        run = train(tmp_path / "run")
    assert len(run.log_writer.log_entries) == 6
    assert len(caught) in (1, 2)  # the first one where training was slower than the disk's thread
    assert re.search(r"missing in the run directory.*Errno", str(caught[-1].message))
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


def test_files_that_meet_a_full_queue_are_dropped_counted_and_marked(tmp_path: Path) -> None:
    most = MOST_OF_FILES // (FILE_COST + 2**20)
    updates = 2 * most + 40
    with FaultyDisk(tmp_path / "run").installed() as disk, Run(tmp_path / "run", CALLBACKS, processes=1) as run:
        disk.opened.clear()
        with pytest.warns(RuntimeWarning, match="the disk has stalled"):  # noqa: PT031 -- whichever step it is
            for update in range(1, updates + 1):
                run.step({"loss": update / 3, "field": np.full(2**17, update, np.float64)})
        disk.opened.set()
        assert run.log_writer.disk.wait(patience=60, insists=True)
        for update in range(updates + 1, updates + 11):
            run.step({"loss": update / 3, "field": np.full(3, update, np.float64)})
        with pytest.warns(RuntimeWarning, match="missing in the run directory, for the disk did not take it"):
            run.finish()
    entries, arrays, problems = result(tmp_path / "run")
    assert [entry["update"] for entry in entries] == [*range(1, updates + 11)]
    kept = [int(Path(name).stem.split("_")[1][1:]) for name in arrays]
    assert most - 2 <= len(kept) - 5 <= most
    assert kept == [*range(2, 2 * len(kept) - 9, 2), *range(updates + 2, updates + 11, 2)]
    assert all(set(values) == {update} for update, values in zip(kept, arrays.values(), strict=True))
    (problem,) = problems
    lost = updates // 2 + 5 - len(kept)
    assert f"take {lost} files (update_outputs/U2/E0_U{2 * len(kept) - 8}_S" in problem


def test_lines_that_meet_a_full_queue_are_dropped_counted_and_marked(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path / "run", update_counter=counter)

    def log(updates: int) -> None:
        for _ in range(updates):
            counter.next_update()
            writer.add_nonscalar("text", "x" * 2**17)
            writer.flush()

    with FaultyDisk(tmp_path / "run").installed() as disk:
        log(1)
        assert writer.disk.wait()
        disk.opened.clear()
        with pytest.warns(RuntimeWarning, match="the disk has stalled"):
            log(MOST_BYTES // 2**17 + 50)
        disk.opened.set()
        assert writer.disk.wait(patience=60, insists=True)
        log(5)
        with pytest.warns(RuntimeWarning, match=r"missing in the run directory.*entries of the updates"):
            writer.close()
    run = read_run(tmp_path / "run")
    lost = sorted(set(range(1, counter.update + 1)) - {entry["update"] for entry in run.entries})
    assert lost == [*range(lost[0], counter.update - 4)]
    assert 50 <= len(lost) < 80
    (problem,) = run.problems
    assert f"did not take {len(lost)} entries of the updates {lost[0]} to {lost[-1]}; they are lost" in problem


FULL = """
import resource, sys, time
import numpy as np
from test_disk import CALLBACKS
from noether_core.emit.files import write_whole
from noether_torch import Run

hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with Run(sys.argv[1], CALLBACKS, processes=1) as run:
    for update in range(1, 401):
        if update in (20, 300):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if update == 20 else hard, hard))
        run.step({"loss": update / 3, "field": np.full(3 if update % 20 else 500, update)})
        while update == 299 and run.log_writer.disk.trouble is None:
            time.sleep(0.01)
"""


def test_a_disk_that_is_full_for_a_while_costs_one_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert done.stderr.count("Warning") == 1, done.stderr
    assert "the disk does not take what this run logs: [Errno 27] File too large" in done.stderr
    entries, arrays, problems = result(tmp_path / "run")
    assert [(entry["update"], entry["loss/U1"]) for entry in entries] == [(n, n / 3) for n in range(1, 401)]
    assert [len(values) for values in arrays.values()] == [3 if n % 20 else 500 for n in range(2, 401, 2)]
    assert problems == []


def test_a_tail_torn_at_any_byte_costs_its_line_alone_and_the_run_goes_on(
    tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    train(tmp_path / "whole")
    log = Path("metrics/1.jsonl")
    data = (tmp_path / "whole" / log).read_bytes()
    lines = data.splitlines(keepends=True)
    cuts = range(len(data) - sum(map(len, lines[-3:])), len(data) + 1)
    for cut in sized(cuts if full else random.sample(cuts, 15), "cuts"):
        path = tmp_path / str(cut)
        shutil.copytree(tmp_path / "whole", path)
        (path / log).write_bytes(data[:cut])
        before = data[:cut].count(b"\n")
        is_torn = not data[:cut].endswith(b"\n")
        train(path, before + 1, 8)
        entries, _, problems = result(path)
        assert [(entry["update"], entry["loss/U1"]) for entry in entries] == [(n, n / 3) for n in range(1, 9)]
        assert [f"byte {cut - len(data[:cut].splitlines()[-1])}:" in problem for problem in problems] == [
            True
        ] * is_torn


# ---------------------------------------------------------------------- what is durable, and when


def test_flush_returns_when_the_disk_has_it(tmp_path: Path) -> None:
    def last(name: str) -> int:
        return max(number for number, each in enumerate(disk.calls) if each == name)

    with FaultyDisk(tmp_path / "run").installed() as disk:
        run = Run(tmp_path / "run", CALLBACKS, processes=1, durability="flush")
        run.start()
        for update in range(1, 6):
            run.step({"loss": update / 3, "field": np.full(3, update)})
            assert last("fsync") > last("write")
            entries, arrays, _ = result(tmp_path / "run")
            assert (len(entries), len(arrays)) == (update, update // 2)
        run.finish()


def test_by_default_it_is_written_and_made_durable_with_nobody_waiting_for_it(tmp_path: Path) -> None:
    with FaultyDisk(tmp_path / "run").installed() as disk, Run(tmp_path / "run", CALLBACKS, processes=1) as run:
        run.step({"loss": 0.0, "field": np.zeros(3)})
        assert run.log_writer.disk.wait()
        calls = len(disk.calls)
        end = time.monotonic() + 60
        while (count := disk.calls[calls:].count("fsync")) < 2 and time.monotonic() < end:  # of the log's two files
            time.sleep(0.05)
        assert count >= 2
        assert len(result(tmp_path / "run")[0]) == 1


def test_where_no_thread_can_be_started_it_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    disk = FaultyDisk(tmp_path / "run", "ENOSPC", lambda *call: 30 <= call[0] < 35)
    with disk.installed(), pytest.warns(RuntimeWarning, match="the disk does not take"):
        train_twice(tmp_path / "run")
    assert len(disk.calls) > 60
    entries, arrays, problems = result(tmp_path / "run")
    assert (len(entries), len(arrays), problems) == (8, 4, [])


def test_another_durability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match="Run got durability='now'; expected 'interval' or 'flush'"):
        Run(tmp_path, CALLBACKS, processes=1, durability="now")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- what killed processes left


def test_temporary_files_of_dead_processes_are_removed_when_a_run_is_opened(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    write_whole(tmp_path / "name", b"")
    host = next(iter(re.findall(r"\.([0-9a-f]{8})-[0-9]+\.tmp", _temporary_name(tmp_path))))
    stale = [
        *(
            f"{place}.name.{host}-{dead.pid}.tmp"
            for place in ("", "metrics/", "update_outputs/U1/", "unmerged/a/", "starts/")
        ),
        f".name.{host}-{os.getpid()}.tmp",
    ]
    kept = [f".name.{host}-{os.getppid()}.tmp", f".name.00000000-{dead.pid}.tmp", ".mine.tmp", "update_outputs/a.tmp"]
    for name in (*stale, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half a")
    train(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.tmp")) == sorted(kept)
    old = tmp_path / f".name.00000000-{dead.pid}.tmp"
    os.utime(old, (time.time() - 1e5,) * 2)
    train(tmp_path)
    assert not old.exists()


def _temporary_name(path: Path) -> str:
    """Return the name of the temporary file of a write that fails."""
    disk = FaultyDisk(path, fails=lambda _, name: name == "replace")
    with disk.installed(), pytest.raises(OSError, match="injected"):
        write_whole(path / "name", b"")
    return disk.paths[-1]


def test_more_than_the_queue_holds_is_written_where_the_disk_works(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, update_counter=UpdateCounter())
    for number in range(6):
        writer.save(tmp_path / "large" / str(number), bytes(MOST_BYTES // 2))
    writer.close()
    assert [(tmp_path / "large" / str(number)).stat().st_size for number in range(6)] == [MOST_BYTES // 2] * 6


def test_what_one_large_file_keeps_waiting_is_written_at_the_end_and_the_log_says_what_is_missing(
    tmp_path: Path,
) -> None:
    script = f"""
import resource, warnings
import numpy as np
from noether_torch import Run
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
with Run({str(tmp_path / "run")!r}, {CALLBACKS!r}, processes=1) as run:
    for update in range(60):
        run.step({{"loss": update / 3, "field": np.zeros(10_000 if update < 2 else 10)}})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    entries, arrays, problems = result(tmp_path / "run")
    assert [entry["update"] for entry in entries] == [*range(1, 61)]
    assert len(arrays) == 29
    assert ["the disk did not take 1 file (update_outputs/U2/E0_U2_S2" in problem for problem in problems] == [True]


def test_a_flush_is_durable_where_only_arrays_are_saved(tmp_path: Path) -> None:
    with Run(tmp_path, CALLBACKS[1:], processes=1, durability="flush") as run:
        for update in range(1, 7):
            run.step({"field": np.full(3, update)})
            assert len(result(tmp_path)[1]) == update // 2


def test_a_run_stays_where_it_began_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Run("run", CALLBACKS, processes=1) as run:
        for update in range(1, 7):
            run.step({"loss": update / 3, "field": np.full(3, update)})
            os.chdir(tmp_path / ("elsewhere" if update % 2 else ""))
    entries, arrays, problems = result(tmp_path / "run")
    assert (len(entries), len(arrays), problems) == (6, 3, [])
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("what", ["run", "metrics", "file"])
@pytest.mark.parametrize("how", ["removed", "moved away and back"])
@pytest.mark.filterwarnings(
    "ignore:the disk did not make durable:RuntimeWarning", "ignore:missing in the:RuntimeWarning"
)
def test_a_run_whose_files_are_taken_away_is_told_and_goes_on_when_they_are_back(
    what: str, how: str, tmp_path: Path
) -> None:
    path, away = tmp_path / "run", tmp_path / "away"
    taken = {"run": path, "metrics": path / "metrics", "file": path / "metrics" / "1.jsonl"}[what]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Run(path, CALLBACKS[:1]) as run:
            for update in range(3):
                run.step({"loss": float(update)})
            assert run.log_writer.disk.wait(is_durable=True)
            taken.rename(away)
            for update in range(3, 6):
                run.step({"loss": float(update)})
            deadline = time.monotonic() + 30
            while run.log_writer.disk.trouble is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if how != "removed":
                away.rename(taken)
            run.step({"loss": 6.0})
            assert [entry["loss/U1"] for entry in run.log_writer.log_entries] == [0, 1, 2, 3, 4, 5, 6]
    told = " ".join(str(each.message) for each in caught)
    assert "removed or replaced while it was written" in told
    if how != "removed":
        read = read_run(path)
        assert (read.series["loss/U1"].value.tolist(), read.problems) == ([0, 1, 2, 3, 4, 5, 6], [])


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_makes_no_directories_durable_will_do(
    code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    train(tmp_path / "run")
    assert len(result(tmp_path / "run")[0]) == 6


def test_a_load_does_not_wait_for_a_disk_that_stalls(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    with disk.installed(), Run(tmp_path / "run", CALLBACKS, processes=1) as run:
        for update in range(1, 4):
            run.step({"loss": update / 3, "field": np.full(3, update)})
        state = run.state_dict()
        run.step({"loss": 1.0, "field": np.full(3, 4)})
        run.log_writer.disk.wait()
        disk.opened.clear()
        run.step({"loss": 2.0, "field": np.full(3, 5)})
        waits: list[dict[str, Any]] = []
        real = run.log_writer.disk.wait
        run.log_writer.disk.wait = lambda **how: waits.append(how) or real(**how)  # type: ignore[method-assign, func-returns-value]
        run.load_state_dict(state)
        assert not any(how.get("insists") or how.get("patience", 0) > 2 for how in waits)
        assert [entry["update"] for entry in run.log_writer.log_entries] == [1, 2, 3]
        disk.opened.set()
