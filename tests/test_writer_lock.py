"""One process at a time writes to a run directory: others are refused, and a forked child writes nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faulty_disk import FaultyDisk
from forking import CONFIG, bytes_of, in_child, step

from noether_core import LogWriter, RunLockedError, UpdateCounter, read_run
from noether_core.emit import writer_lock
from noether_core.emit.holders import about_this_process, is_gone
from noether_core.errors import HookOrderError, NoetherError, RunDirectoryError, RunFormatError
from noether_core.parity import merge_run
from noether_core.reduce.threads import ThreadExchange, run_threads
from noether_torch import Run

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
pytestmark = posix


@pytest.fixture(params=["flock", "no flock", "no fcntl"])
def locking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the system's locks, or a filesystem without any, or a system without them."""
    if request.param == "no flock":

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(writer_lock.fcntl, "flock", refuse)
    elif request.param == "no fcntl":
        monkeypatch.setattr(writer_lock, "fcntl", None)
    return str(request.param)


def test_a_second_run_is_refused_until_the_first_has_ended(locking: str, tmp_path: Path) -> None:
    with Run(tmp_path, [CONFIG]) as first:
        second = Run(tmp_path, [CONFIG])
        with pytest.raises(RunLockedError, match=r"is being written by a run of this process since 20.*finish\(\)"):
            second.start()
        step(first, 4)
    with second:  # now it may
        step(second, 2)
    assert read_run(tmp_path).series["x/U2"].update.tolist() == [2]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.yaml",
        "metrics",
        "starts",
        "superseded",
        "update_outputs",
    ]


def test_a_process_that_holds_it_is_named_and_its_death_lets_go(locking: str, tmp_path: Path) -> None:
    ready, told = os.pipe()
    process = os.fork()
    if process == 0:
        run = Run(tmp_path, [CONFIG])
        run.start()
        step(run, 4)
        run.log_writer.disk.wait()
        os.write(told, b"x")
        signal.pause()
    assert os.read(ready, 1) == b"x"
    try:
        with pytest.raises(
            RunLockedError, match=rf"by process {process} on '.*' since 20.*give this run another directory"
        ) as caught:
            Run(tmp_path, [CONFIG]).start()
        assert caught.value.holder["pid"] == process
        with pytest.raises(RunLockedError):
            merge_run(tmp_path)
        assert read_run(tmp_path).series["x/U2"].update.tolist() == [2, 4]  # a reader needs no lock
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with Run(tmp_path, [CONFIG], start={"update": 4}) as run:
        step(run, 2)
    assert read_run(tmp_path).series["x/U2"].update.tolist() == [2, 4, 6]
    assert merge_run(tmp_path).problems == []


def test_a_run_that_was_dropped_lets_go(locking: str, tmp_path: Path) -> None:
    run = Run(tmp_path, [CONFIG])
    run.start()
    run.itself = run  # type: ignore[attr-defined]  # only a collection of cycles finds that nobody has it
    del run
    with Run(tmp_path, [CONFIG]) as run:
        step(run, 2)


def test_a_run_that_could_not_begin_lets_go(locking: str, tmp_path: Path) -> None:
    run = Run(tmp_path, [CONFIG])
    run.callbacks[0].before_training = lambda **_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        run.start()
    with Run(tmp_path, [CONFIG]):
        pass


class DrivenRun(Run):
    _is_driven = True


def test_a_run_that_a_trainer_drives_gives_way_to_the_next_one_here(locking: str, tmp_path: Path) -> None:
    first, other = DrivenRun(tmp_path / "run", [CONFIG]), DrivenRun(tmp_path / "other", [CONFIG])
    for run in (first, other):
        run.start()
        step(run, 4)
    with DrivenRun(tmp_path / "run", [CONFIG]) as second:
        with pytest.raises(HookOrderError, match="ended by another one in its directory"):
            step(first, 1)
        first.finish()
        step(second, 2)
    step(other, 2)
    other.finish()
    assert read_run(tmp_path / "run").series["x/U2"].update.tolist() == [2]
    assert read_run(tmp_path / "other").series["x/U2"].update.tolist() == [2, 4, 6]


def test_a_log_without_a_run_is_locked_at_its_first_entry(locking: str, tmp_path: Path) -> None:
    counter = UpdateCounter()
    first, second = (LogWriter(tmp_path, update_counter=counter) for _ in range(2))
    first.add_scalar("x", 1.0)
    first.flush()
    second.add_scalar("x", 2.0)
    with pytest.raises(RunLockedError):
        second.flush()
    first.close()
    second.close()
    assert read_run(tmp_path).series["x"].value.tolist() == [2.0]


@pytest.mark.parametrize("lock_file", ["writer.lock", "writer.pid"])
def test_a_lock_file_that_is_none_is_refused(lock_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if lock_file == "writer.pid":
        monkeypatch.setattr(writer_lock, "fcntl", None)
    target = tmp_path / "target"
    target.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / lock_file).symlink_to(target)
    with pytest.raises((NoetherError, OSError)):
        Run(run, [CONFIG]).start()
    assert target.read_text() == "precious"
    (run / lock_file).unlink()
    os.mkfifo(run / lock_file)
    with pytest.raises((RunFormatError, RunLockedError)):
        Run(run, [CONFIG]).start()


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 4000, b"[]", b'{"pid": "\x1b]0;x", "since": 1e999}', b'{"pid": 1e300, "token": "../../x"}', b"\xff"],
)
def test_what_a_lock_file_says_is_only_read(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(writer_lock, "_WAIT", 0.0)
    (tmp_path / "writer.lock").write_bytes(content)  # nobody holds it: it was left behind
    with Run(tmp_path, [CONFIG]):
        pass
    (tmp_path / "writer.pid").write_bytes(content)
    monkeypatch.setattr(writer_lock, "fcntl", None)
    with pytest.raises(RunLockedError, match="delete") as caught:  # it is not known whether its holder is gone
        Run(tmp_path, [CONFIG]).start()
    assert "\x1b" not in str(caught.value)


def test_a_lock_that_a_full_disk_has_no_room_for_keeps_nobody_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(writer_lock, "fcntl", None)
    real = writer_lock.write_all

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(writer_lock, "write_all", refuse)
    with pytest.raises(OSError, match="no space left"):
        writer_lock.WriterLock(tmp_path).hold()
    monkeypatch.setattr(writer_lock, "write_all", real)
    with Run(tmp_path, [CONFIG]) as run:
        step(run, 2)
    assert len(read_run(tmp_path).entries) == 1


@pytest.mark.parametrize("kind", ["a file", "below a file", "too long", "of another user"])
def test_a_directory_that_cannot_be_written_is_refused_by_name(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    path = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "run", "too long": tmp_path / ("x" * 300)}
    if kind == "of another user":

        def refuse(lock: Path, _: int) -> int:
            raise PermissionError(errno.EACCES, "Permission denied", str(lock))

        monkeypatch.setattr(writer_lock, "open_to_write", refuse)
    with pytest.raises(RunDirectoryError, match=r"cannot be written: .*; give the run a directory") as caught:
        Run(path.get(kind, tmp_path), [CONFIG]).start()
    assert isinstance(caught.value, OSError)


def test_who_is_gone() -> None:
    own = about_this_process()
    assert not is_gone(own)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert is_gone({**own, "pid": process.pid})
    assert is_gone({**own, "started": "0"})  # another process has its number now
    assert is_gone({**own, "boot": "before"})
    for elsewhere in ({"host": "another"}, {"namespace": "pid:[1]"}):
        assert not is_gone({**own, "pid": process.pid, **elsewhere})
    for strange in ({}, {"pid": None}, {"pid": -1}, {"pid": 10**30}, {"pid": True, "host": 3}):
        assert not is_gone({**own, **strange} if strange else strange)


def write_at_once(path: Path, count: int) -> list[str]:
    """Let so many processes write 20 updates at once; return what each says: `wrote`, or `refused`."""
    (go, start), (finish, end) = os.pipe(), os.pipe()
    told = []
    children = []
    for index in range(count):
        said, say = os.pipe()
        if (process := os.fork()) == 0:
            os.close(start)
            os.close(end)
            os.read(go, 1)  # until the parent closes it
            try:
                with Run(path, [{**CONFIG, "every_n_updates": 1}], processes=1) as run:
                    for update in range(20):
                        run.step({"x": 1000.0 * index + update})
                    os.write(say, b"wrote\n")
                    os.read(finish, 1)
            except RunLockedError:
                os.write(say, b"refused\n")
            finally:
                os._exit(0)
        os.close(say)
        told.append(said)
        children.append(process)
    os.close(start)
    try:
        return [os.read(said, 100).decode().strip() for said in told]
    finally:
        os.close(end)
        for process in children:
            os.waitpid(process, 0)


@pytest.mark.parametrize("trial", range(5))
def test_of_eight_processes_that_write_at_once_one_does(locking: str, trial: int, tmp_path: Path) -> None:
    gone = json.dumps({**about_this_process(), "started": "0"})  # which all would take over from
    if trial:
        (tmp_path / "writer.pid").write_text(gone)
    said = write_at_once(tmp_path, 8)
    assert sorted(said) == ["refused"] * 7 + ["wrote"]
    winner = said.index("wrote")
    read = read_run(tmp_path)
    assert read.problems == []
    assert read.superseded == 0
    assert read.series["x/U1"].value.tolist() == [1000.0 * winner + update for update in range(20)]
    assert [file.load()["x"].item() for file in read.arrays] == [1000.0 * winner + update for update in range(20)]


def test_a_training_of_several_processes_has_one_writer(tmp_path: Path) -> None:
    def body(exchange: ThreadExchange) -> None:
        with Run(tmp_path, [CONFIG], processes=exchange) as run:
            step(run, 4)

    run_threads(3, body, time_limit=20.0)
    assert len(read_run(tmp_path).series["x/U2"]) == 2
    with Run(tmp_path, [CONFIG]):

        def refused(exchange: ThreadExchange) -> str:
            with pytest.raises(NoetherError) as caught:
                Run(tmp_path, [CONFIG], processes=exchange).start()
            return str(caught.value)

        said = run_threads(2, refused, time_limit=20.0)
    assert "is being written by a run of this process" in said[0]
    assert said[1].startswith("process 0 cannot begin the training, so this one does not: RunLockedError(")


# ---------------------------------------------------------------------- forks


def test_a_forked_child_writes_nothing_however_it_ends(locking: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [CONFIG])
    with run:
        step(run, 3)
        run.log_writer.disk.wait()
        before = bytes_of(tmp_path / "run")

        def use_it() -> None:
            for call in (
                lambda: step(run, 1),
                lambda: run.log({"a": 1}),
                run.end_epoch,
                lambda: run.evaluate().__enter__(),
            ):
                with pytest.raises(HookOrderError, match="which was forked from the one that has the run open"):
                    call()
            assert run.state_dict()["iteration"]["update"] == 3
            run.finish()
            run.__exit__(None, None, None)
            run.__exit__(ValueError, ValueError(), None)
            run.log_writer.close()

        def leave_the_block() -> None:
            with contextlib.suppress(SystemExit), contextlib.ExitStack() as stack:
                stack.push(run)
                sys.exit()

        def drop_it() -> None:
            nonlocal run
            run = None  # type: ignore[assignment]
            gc.collect()

        for body in (use_it, leave_the_block, drop_it):
            assert in_child(body) == 0
            assert bytes_of(tmp_path / "run") == before
            with pytest.raises(RunLockedError):  # the child's end has not let go for the parent
                Run(tmp_path / "run", [CONFIG]).start()
        step(run, 1)
    assert read_run(tmp_path / "run").series["x/U2"].update.tolist() == [2, 4]


def held_until_back(disk: FaultyDisk, path: Path) -> None:
    """Require that nobody may write there as long as the disk hangs, and that all is well then."""
    try:
        with pytest.raises(RunLockedError, match="a run of this process"):
            Run(path, [CONFIG], processes=1).start()
    finally:
        disk.opened.set()
    gc.collect()  # what was dropped is gone, however much else there is
    for _ in range(500):
        with contextlib.suppress(RunLockedError):
            with Run(path, [CONFIG], processes=1) as later:
                step(later, 4)
            break
        time.sleep(0.02)
    assert read_run(path).series["x/U2"].value.tolist() == [0.5, 2.5]


def test_a_run_that_was_dropped_is_a_writer_until_the_disk_has_it(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path / "run")
    with disk.installed():
        run = Run(tmp_path / "run", [CONFIG], processes=1)
        run.start()
        disk.opened.clear()
        step(run, 2)
        del run
        held_until_back(disk, tmp_path / "run")


def test_a_run_whose_disk_hangs_at_its_end_is_a_writer_until_that_has_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noether_core.emit.disk.CLOSING_PATIENCE", 0.2)
    monkeypatch.setattr("noether_core.emit.disk.PATIENCE", 0.2)
    disk = FaultyDisk(tmp_path / "run")
    with disk.installed():
        run = Run(tmp_path / "run", [CONFIG], processes=1)
        run.start()
        disk.opened.clear()
        step(run, 2)
        with pytest.warns(RuntimeWarning):
            run.log_writer.disk.close(0.2)
        run.finish()
        held_until_back(disk, tmp_path / "run")


def test_a_lock_that_another_one_has_made_meanwhile_stays(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [CONFIG], processes=1)
    run.start()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "writer.lock").write_text("another one's")
    run.finish()
    assert (tmp_path / "run" / "writer.lock").read_text() == "another one's"
