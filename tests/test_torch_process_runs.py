"""Test whole runs in real processes of torch.distributed: stopped inside of an exchange, in subgroups, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_workers import Server, Workers

from noether_core import read_run
from noether_core.parity.merge import merge_run
from noether_torch import Run

LIMIT = 3
CALLBACKS: list[dict[str, Any]] = [{"every_n_updates": 2, "patterns": ["loss"], "reduce": ["sum", "count"]}]
DEFINE = f"""
from noether_torch import Run
def start(path, **arguments):
    run = Run(path, {CALLBACKS}, time_limit={LIMIT}, **arguments)
    run.start()
    return run
def steps(run, *updates):
    for at in updates:
        run.step({{"loss": torch.tensor(float(10 * at + rank))}})
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def workers(server: Server, tmp_path: Path) -> Iterator[Workers]:
    with Workers(server, 3, tmp_path) as workers:
        workers.connect(20)
        workers.values(DEFINE)
        yield workers


def assert_logged(path: Path, ranks: list[int], updates: list[int]) -> None:
    """Check that the entries have the values of all these processes, and that there are no others."""
    found = read_run(path).series
    of_two = [len(ranks) * 10 * (2 * update - 3) + 2 * sum(ranks) for update in updates]
    assert found["loss/sum/U2"].update.tolist() == updates
    assert found["loss/sum/U2"].value.tolist() == of_two
    assert found["loss/count/U2"].value.tolist() == [2 * len(ranks)] * len(updates)


STOPS = """
import signal
waits, calls = run.exchange._wait, []
def stopped(start):
    def begin(group):
        calls.append(start(group))
        if len(calls) == NUMBER:
            run.exchange._wait = waits
            os.kill(os.getpid(), signal.SIGSTOP)
        return calls[-1]
    waits(begin)
run.exchange._wait = stopped
"""


@pytest.mark.parametrize("away", [0, 1])
def test_a_process_stopped_inside_of_a_collective_is_named_and_all_go_on(
    workers: Workers, tmp_path: Path, away: int
) -> None:
    path = tmp_path / "run"
    others = [rank for rank in range(3) if rank != away]
    workers.values(f"run = start({str(path)!r}); steps(run, 0, 1)")
    workers.values(STOPS.replace("NUMBER", "1"), [away])
    workers.send(range(3), "steps(run, 2, 3)")
    for answer in workers.answers(others):
        assert (answer.get("error"), answer["missing"]) == ("ProcessesMissingError", [away]), answer
        assert "pool the interval that ends at E0_U4_S4, of 'loss'" in answer["text"] or "store" in answer["text"]
        assert answer["seconds"] < LIMIT + 5, answer  # gloo's limit, and a roll call; a busy machine needs more
    workers.go_on(away)
    (late,) = workers.answers([away])
    assert (late.get("error"), late["missing"]) == ("ProcessesMissingError", [away]), late
    workers.values("steps(run, 4, 5); run.finish()")
    assert_logged(path, [0, 1, 2], [2, 6])
    assert len(merge_run(path).merged) == 1
    assert_logged(path, [0, 1, 2], [2, 4, 6])


def test_a_run_in_a_group_of_some_processes(workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / "run"
    workers.values("group = dist.new_group([0, 2])")
    workers.values(f"run = start({str(path)!r}, process_group=group); steps(run, 0, 1, 2, 3); run.finish()", [0, 2])
    assert_logged(path, [0, 2], [2, 4])


def test_runs_one_after_the_other_in_one_directory(workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / "run"
    state = tmp_path / "state"
    workers.values(f"run = start({str(path)!r}); steps(run, 0, 1, 2); run.save_state({str(state)!r}); steps(run, 3)")
    workers.values(
        f"run.finish(); run = start({str(path)!r}); run.load_state({str(state)!r}); steps(run, 3, 4, 5); run.finish()"
    )
    assert_logged(path, [0, 1, 2], [2, 4, 6])
    assert sorted(each.name for each in (path / "starts").iterdir()) == ["1.json", "2.json"]


@pytest.mark.parametrize(("alone", "missing"), [(0, [1, 2]), (1, [0])])
def test_a_run_that_one_process_alone_makes_names_who_is_missing(
    workers: Workers, tmp_path: Path, alone: int, missing: list[int]
) -> None:
    (answer,) = workers.each(f"start({str(tmp_path / 'run')!r})", [alone])
    assert (answer.get("error"), answer["missing"]) == ("ProcessesMissingError", missing), answer
    assert "start tracking" in answer["text"]
    assert answer["seconds"] < LIMIT + 4
    workers.values(f"run = start({str(tmp_path / 'run')!r}); steps(run, 0, 1); run.finish()")
    assert_logged(tmp_path / "run", [0, 1, 2], [2])


def test_the_users_group_may_end_before_the_run(workers: Workers, tmp_path: Path) -> None:
    workers.values(f"run = start({str(tmp_path / 'run')!r}); steps(run, 0, 1)")
    workers.values("dist.destroy_process_group(); del store, exchange")
    workers.values("steps(run, 2, 3); run.finish()")
    assert_logged(tmp_path / "run", [0, 1, 2], [2, 4])


def test_a_data_loader_forks_its_workers_beside_a_run(workers: Workers, tmp_path: Path) -> None:
    loads = """
from torch.utils.data import DataLoader
loader = DataLoader([10 * at + rank for at in range(8)], batch_size=None, num_workers=2, multiprocessing_context="fork")
for _ in range(2):
    for value in loader:
        run.step({"loss": torch.tensor(float(value))})
run.finish()
"""
    workers.values(f"run = start({str(tmp_path / 'run')!r})")
    workers.values(loads)
    assert (
        read_run(tmp_path / "run").series["loss/sum/U2"].value.tolist()
        == [3 * 10 * (4 * at + 1) + 6 for at in range(4)] * 2
    )


def test_a_group_of_another_backend_exchanges_over_gloo_all_the_same(workers: Workers, tmp_path: Path) -> None:
    """The backend that does nothing stands for NCCL, which needs GPUs."""
    workers.values("""
import torch.testing._internal.distributed.fake_pg
dist.destroy_process_group()
dist.init_process_group("fake", store=dist.PrefixStore("fake", store), rank=rank, world_size=count)
""")
    workers.values(f"run = start({str(tmp_path / 'run')!r}); steps(run, 0, 1); run.finish()")
    assert_logged(tmp_path / "run", [0, 1, 2], [2])


def test_a_torch_without_gloo_is_told_of_at_once(workers: Workers, tmp_path: Path) -> None:
    workers.values("dist.is_gloo_available = lambda: False")
    for answer in workers.each(f"start({str(tmp_path / 'run')!r})"):
        assert answer.get("error") == "MissingDependencyError", answer
        assert "processes=1" in answer["text"]
    workers.values(f"run = start({str(tmp_path)!r} + f'/{{rank}}', processes=1); steps(run, 0, 1); run.finish()")
    for rank in range(3):
        assert_logged(tmp_path / str(rank), [rank], [2])


def test_one_process_without_torch_distributed_exchanges_nothing(tmp_path: Path) -> None:
    threads = threading.active_count()
    with Run(tmp_path / "run", CALLBACKS) as run:
        assert run.exchange is None
        assert threading.active_count() == threads
        for at in range(2):
            run.step({"loss": torch.tensor(float(10 * at))})
    assert_logged(tmp_path / "run", [0], [2])
    assert not (tmp_path / "run/unmerged").exists()
