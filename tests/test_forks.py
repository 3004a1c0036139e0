"""A forked child leaves its parent's run, log and trackers alone, and has its own."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch.utils.data
from forking import CONFIG, bytes_of, in_child, step

from noether_core import LogWriter, RunLockedError, UpdateCounter, read_run
from noether_torch import Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_child_may_have_a_run_of_its_own(tmp_path: Path) -> None:
    with Run(tmp_path / "run", [CONFIG]) as run:

        def own() -> None:
            with pytest.raises(RunLockedError, match=f"process {os.getppid()} "):
                Run(tmp_path / "run", [CONFIG]).start()
            with Run(tmp_path / "child", [CONFIG]) as another:
                step(another, 2)

        assert in_child(own) == 0
        step(run, 2)
    for name in ("run", "child"):
        assert len(read_run(tmp_path / name).series["x/U2"]) == 1


class Noting:
    """Note the updates that it is given in a file, as whichever process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(f"{entry['update']}\n")

    def close(self) -> None:
        self.log({"update": "closed"})


def test_a_run_that_was_made_before_the_fork_may_begin_after_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [CONFIG], trackers=[Noting(tmp_path / "noted")])

    def train() -> None:
        with contextlib.suppress(ZeroDivisionError), run:
            step(run, 2)
            raise ZeroDivisionError

    assert in_child(train) == 0
    assert len(read_run(tmp_path / "run").series["x/U2"]) == 1
    assert (tmp_path / "noted").read_text() == "2\nclosed\n"
    assert len(list((tmp_path / "run" / "capsules").iterdir())) == 1


class ChildError(Exception):
    """Leave the step of a child."""


@pytest.mark.parametrize("within", ["a step", "an evaluation's step"])
def test_a_fork_within_a_step_leaves_ctrl_c_to_the_child(within: str, tmp_path: Path) -> None:
    statuses = []

    def fork() -> None:
        if (child := os.fork()) == 0:
            raise ChildError
        statuses.append(os.waitpid(child, 0)[1])

    with Run(tmp_path, [CONFIG]) as run:
        parent = os.getpid()
        try:
            with run.interrupts, run.interrupts if within != "a step" else contextlib.nullcontext():
                fork()
        except ChildError:
            code = 1
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                code = 0
            os._exit(code if run.interrupts.depth == 0 else 2)
        assert os.getpid() == parent
    assert statuses == [0]


def test_a_child_closes_no_tracker_of_a_log_that_its_parent_has_not_written_to(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path / "run", update_counter=counter, trackers=[Noting(tmp_path / "noted")])
    assert in_child(writer.close) == 0
    counter.next_update()
    writer.add_scalar("x", 1.0)
    writer.close()
    assert (tmp_path / "noted").read_text() == "1\nclosed\n"


def test_a_child_that_outlives_its_parent_does_not_hold_the_directory(tmp_path: Path) -> None:
    told, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        run = Run(tmp_path, [CONFIG])
        run.start()
        step(run, 2)
        child = os.fork()
        if child == 0:
            signal.pause()
        os.write(tell, str(child).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int(os.read(told, 20))
    try:
        os.kill(child, 0)  # it is there
        with Run(tmp_path, [CONFIG]) as run:
            step(run, 2)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_log_in_a_forked_child_is_left_out_with_one_warning(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, update_counter=(counter := UpdateCounter()))
    writer.add_scalar("x", 1.0)
    writer.flush()
    writer.disk.wait()
    before = bytes_of(tmp_path)

    def log() -> None:
        counter.next_update()
        writer.add_scalar("x", 2.0)
        with pytest.warns(RuntimeWarning, match="was forked from the one that writes to"):
            writer.flush()
        counter.next_update()
        writer.add_scalar("x", 3.0)
        writer.close()

    assert in_child(log) == 0
    assert bytes_of(tmp_path) == before
    writer.close()


class Numbers(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, run: Any) -> None:
        self.run = run  # which the workers inherit

    def __len__(self) -> int:
        return 16

    def __getitem__(self, at: int) -> torch.Tensor:
        return torch.tensor(float(at))


def test_the_workers_of_a_data_loader_leave_the_run_alone(tmp_path: Path) -> None:
    with Run(tmp_path, [CONFIG]) as run:
        for _ in range(2):
            loader = torch.utils.data.DataLoader(
                Numbers(run), batch_size=4, num_workers=2, multiprocessing_context="fork"
            )
            for batch in loader:
                run.step({"x": batch})
    series = read_run(tmp_path).series["x/U2"]
    assert series.update.tolist() == [2, 4, 6, 8]
    assert series.value.tolist() == [3.5, 11.5, 3.5, 11.5]
