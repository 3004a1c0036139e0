from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_workers import Server, Workers

from noether_core.errors import NoetherError
from noether_torch.processes import group_exchange

LIMIT = 2.5  # seconds; a busy machine needs some for what takes none
SUMS = "value = exchange.all_reduce_sum(np.array([1 << rank, rank])).tolist()"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def workers(server: Server, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workers]:
    with Workers(server, getattr(request, "param", 3), tmp_path) as workers:
        workers.connect(LIMIT)
        yield workers


def meet(workers: Workers) -> None:
    """Check that everyone arrives and that all collectives are right."""
    assert workers.values("exchange.arrive('meet')") == [None] * workers.count
    count = workers.count
    total = [(1 << count) - 1, count * (count - 1) // 2]
    assert workers.values(SUMS) == [total] * count
    assert (
        workers.values("value = exchange.all_gather(bytes([rank]) * rank) == [bytes([r]) * r for r in range(count)]")
        == [True] * count
    )


def assert_missing(answers: list[dict[str, Any]], missing: list[int], *words: str) -> None:
    """Check what each told; those that were there took a limit, or two if connections were made meanwhile."""
    assert sum(answer["seconds"] > 2 * LIMIT + 4 for answer in answers) == 0 or len(answers) == 1, answers
    for answer in answers:
        assert answer.get("error") == "ProcessesMissingError", answer
        assert answer["missing"] == missing, answers
        for word in words:
            assert word in answer["text"], answer


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("workers", [2, 3, 4], indirect=True)
def test_everyone_gets_the_sum_the_greatest_and_the_bytes_of_all(workers: Workers) -> None:
    count = workers.count
    assert workers.values("value = [exchange.index, exchange.count]") == [[rank, count] for rank in range(count)]
    for size in (0, 1, 7, 5000):
        draw = "values = np.random.default_rng([rank, SIZE]).integers(-2**63, 2**63 - 1, SIZE)".replace(
            "SIZE", str(size)
        )
        own = [np.random.default_rng([rank, size]).integers(-(2**63), 2**63 - 1, size) for rank in range(count)]
        workers.values(draw)
        sums = workers.values(
            "kept = values.copy(); value = exchange.all_reduce_sum(values).tolist(); assert (values == kept).all()"
        )
        assert sums == [np.sum(own, axis=0).tolist()] * count
        assert (
            workers.values("value = exchange.all_reduce_max(values).tolist()") == [np.max(own, axis=0).tolist()] * count
        )


GATHER = """
data = [np.random.default_rng(r).bytes(size) for r, size in enumerate(SIZES)]
everywhere = exchange.all_gather(data[rank])
main = exchange.gather_to_main(data[rank])
assert all(type(part) is bytes for part in everywhere)
value = [everywhere == data, main == data if rank == 0 else main is None]
"""


@pytest.mark.parametrize(
    "sizes", [(0, 0), (0, 1, 0), (1, 0), (3, (40 << 20) + 5, 16 << 20, 0), (17 << 20, (16 << 20) + 1)]
)
def test_bytes_of_any_lengths_are_gathered(server: Server, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    with Workers(server, len(sizes), tmp_path) as workers:
        workers.connect(10)
        assert workers.values(GATHER.replace("SIZES", str(sizes))) == [[True, True]] * len(sizes)


def test_only_the_main_process_holds_what_is_gathered_to_it(workers: Workers) -> None:
    grown = """
import resource
data = bytes([rank]) * (60 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
exchange.gather_to_main(data)
value = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
"""
    main, *others = workers.values(grown)
    assert main >= 100  # MiB, else this does not measure
    assert max(others) < 50


# ---------------------------------------------------------------------- groups


def test_a_group_of_some_ranks_exchanges_beside_the_others(server: Server, tmp_path: Path) -> None:
    with Workers(server, 4, tmp_path) as workers:
        workers.connect(LIMIT)
        workers.values("groups = [dist.new_group(ranks) for ranks in ([3, 1], [0, 2])]")
        workers.values("own = group_exchange(groups[rank % 2 == 0], time_limit=5)")
        assert workers.values("value = [own.index, own.count]") == [[0, 2], [0, 2], [1, 2], [1, 2]]
        assert workers.values("own.arrive('x'); value = own.all_gather(bytes([rank]))[1][0]") == [2, 3, 2, 3]
        meet(workers)


def test_a_process_outside_of_the_group_is_told_so(workers: Workers) -> None:
    answers = workers.each(
        "group = dist.new_group([0, 2])\nown = group_exchange(group, time_limit=5)\nvalue = own.count"
    )
    assert [answer.get("value") for answer in answers] == [2, None, 2]
    assert answers[1]["error"] == "NoetherError"
    assert "process 1 is not in the process group" in answers[1]["text"]


def test_without_torch_distributed_there_is_nobody_to_exchange_with() -> None:
    with pytest.raises(NoetherError, match=r"not initialized.*init_process_group"):
        group_exchange()


def test_the_users_group_is_used_meanwhile_on_another_thread(workers: Workers) -> None:
    busy = """
import threading
ends, wrong = threading.Event(), []
def work():
    for n in range(300):
        tensor = torch.full((100,), rank + n, dtype=torch.int64)
        dist.all_reduce(tensor)
        if tensor[0] != count * n + count * (count - 1) // 2:
            wrong.append(n)
thread = threading.Thread(target=work)
thread.start()
sums = []
for n in range(100):
    exchange.arrive(f"n {n}")
    sums.append(int(exchange.all_reduce_sum(np.array([rank + n]))[0]) == count * n + count * (count - 1) // 2)
thread.join()
value = [all(sums), wrong]
"""
    assert workers.values(busy) == [[True, []]] * 3


def test_two_exchanges_of_a_group_and_the_end_of_the_users_group(workers: Workers) -> None:
    workers.values("second = group_exchange(time_limit=5)")
    assert workers.values("second.arrive('x'); value = int(second.all_reduce_sum(np.array([1]))[0])") == [3] * 3
    meet(workers)
    workers.values("second.close(); dist.barrier(); dist.destroy_process_group()")
    meet(workers)


@pytest.mark.parametrize("kind", ["tcp", "file", "prefix"])
def test_every_store_of_torch_will_do(server: Server, tmp_path: Path, kind: str) -> None:
    with Workers(server, 3, tmp_path) as workers:
        make = "dist.TCPStore('127.0.0.1', PORT, is_master=rank == 0, wait_for_workers=False, use_libuv=False)"
        (port,) = workers.values(f"tcp = {make.replace('PORT', '0')}; value = tcp.port", [0])
        workers.values(f"tcp = {make.replace('PORT', str(port))}", [1, 2])
        stores = {
            "tcp": "tcp",
            "file": f"dist.FileStore({str(tmp_path / 'store')!r}, 3)",
            "prefix": "dist.PrefixStore('a', tcp)",
        }
        workers.connect(LIMIT, stores[kind])
        meet(workers)
        workers.stop(2)
        assert_missing(workers.each("exchange.arrive('x')", [0, 1]), [2], "process 2 of 3 did not come")
        workers.go_on(2)
        assert_missing(workers.each("exchange.arrive('x')", [2]), [2], "too late")
        meet(workers)


def test_a_store_that_cannot_be_used_is_refused(workers: Workers) -> None:
    fake = """
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.destroy_process_group()
dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
group_exchange(time_limit=5)
"""
    for answer in workers.each(fake):
        assert answer["error"] == "NoetherError"
        assert "store that torch.distributed was initialized with" in answer["text"]
        assert "initialize it with a TCPStore" in answer["text"]


@pytest.mark.parametrize("group", ["destroyed", "'gloo'", "0", "mesh"])
def test_what_is_no_process_group_is_refused(workers: Workers, group: str) -> None:
    workers.values("destroyed = dist.new_group(); dist.destroy_process_group(destroyed)")
    workers.values("mesh = dist.init_device_mesh('cpu', (count,))")
    for answer in workers.each(f"group_exchange({group}, time_limit=5)"):
        assert answer["error"] == "NoetherError", answer
        assert "or leave out `process_group`" in answer["text"]


# ---------------------------------------------------------------------- missing processes


@pytest.mark.sweep(2)
@pytest.mark.parametrize("away", [0, 1, 2])
def test_a_process_stopped_before_it_arrives_is_named_by_all(workers: Workers, away: int) -> None:
    meet(workers)
    others = [rank for rank in range(3) if rank != away]
    workers.stop(away)
    assert_missing(workers.each("exchange.arrive('save update 7')", others), [away], "save update 7")
    workers.go_on(away)
    assert_missing(workers.each("exchange.arrive('save update 7')", [away]), [away], "save update 7", "too late")
    meet(workers)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("away", [0, 1])
def test_a_process_that_missed_several_rounds_catches_up(workers: Workers, away: int) -> None:
    others = [rank for rank in range(3) if rank != away]
    workers.stop(away)
    for update in range(3):
        assert_missing(workers.each(f"exchange.arrive('update {update}')", others), [away], f"update {update}")
    workers.go_on(away)
    for update in range(3):
        assert_missing(workers.each(f"exchange.arrive('update {update}')", [away]), [away], f"update {update}")
    meet(workers)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "collective", [SUMS, "exchange.all_gather(bytes(30))", "exchange.gather_to_main(bytes(20 << 20))"]
)
@pytest.mark.parametrize("away", [0, 1])
def test_a_process_stopped_between_collectives_is_named_by_all(workers: Workers, away: int, collective: str) -> None:
    others = [rank for rank in range(3) if rank != away]
    workers.values("exchange.arrive('save update 7')")
    workers.stop(away)
    assert_missing(workers.each(collective, others), [away], "save update 7")
    workers.go_on(away)
    assert_missing(workers.each(collective, [away]), [away], "save update 7")
    refused = workers.each(SUMS)
    assert all("arrive first" in answer["text"] for answer in refused), refused
    meet(workers)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("killed", [0, 2])
@pytest.mark.parametrize("when", ["before", "within"])
def test_a_killed_process_is_named_by_the_others(workers: Workers, killed: int, when: str) -> None:
    others = [rank for rank in range(3) if rank != killed]
    if when == "before":
        workers.kill(killed)
        assert_missing(workers.each("exchange.arrive('save update 7')"), [killed], "save update 7")
    else:
        workers.values("exchange.arrive('save update 7')")
        workers.send(others, SUMS)
        time.sleep(0.2)
        workers.kill(killed)
        answers = workers.answers(others)
        assert_missing(answers, [killed], "save update 7")
        assert max(answer["seconds"] for answer in answers) < LIMIT  # gloo sees it
    assert_missing(workers.each("exchange.arrive('save update 8')"), [killed], "save update 8")
    assert [workers.exit(rank) for rank in others] == ["0", "0"]


@pytest.mark.sweep(1)
@pytest.mark.parametrize("away", [0, 1])
def test_a_process_stopped_while_they_connect_anew_is_named(workers: Workers, away: int) -> None:
    others = [rank for rank in range(3) if rank != away]
    workers.values("exchange.arrive('x')")
    workers.stop(away)
    workers.each(SUMS, others)
    workers.go_on(away)
    workers.each(SUMS, [away])
    stops = """
import os, signal
make = exchange._connected
def stopped(store):
    exchange._connected = make
    os.kill(os.getpid(), signal.SIGSTOP)
    return make(store)
exchange._connected = stopped
"""
    workers.values(stops, [away])
    workers.send(range(3), "exchange.arrive('save update 7')")
    assert_missing(workers.answers(others), [away], "save update 7")
    workers.go_on(away)
    (late,) = workers.answers([away])
    assert_missing([late], [away], "save update 7")
    meet(workers)


def test_a_process_that_does_not_start_is_named(server: Server, tmp_path: Path) -> None:
    with Workers(server, 3, tmp_path) as workers:
        workers.connect(LIMIT)
        make = f"exchange = group_exchange(time_limit={LIMIT})"
        assert_missing(workers.each(make, [0, 2]), [1], "start tracking")
        assert_missing(workers.each(make, [1]), [0], "start tracking")
        workers.values(make)
        meet(workers)


def test_processes_end_while_others_are_stopped_and_waited_for(workers: Workers) -> None:
    workers.stop(0)
    answers = workers.each("exchange.arrive('x')", [1, 2])
    assert_missing(answers, [0], "store")
    assert [workers.exit(1), workers.exit(2)] == ["0", "0"]


def test_all_end_without_closing(workers: Workers) -> None:
    meet(workers)
    assert [workers.exit(rank) for rank in (2, 1, 0)] == ["0"] * 3


def test_an_exchange_that_is_closed_leaves_no_thread(workers: Workers) -> None:
    count = "time.sleep(0.5); value = len(os.listdir('/proc/self/task'))"
    before = workers.values(count)
    workers.values("another = group_exchange(time_limit=5)")
    assert all(b > a for a, b in zip(before, workers.values(count), strict=True))
    workers.values("another.close()")
    assert workers.values(count) == before


def test_a_stores_keys_do_not_grow(workers: Workers) -> None:
    count = "time.sleep(0.3); value = store.num_keys()"
    rounds = "for n in range(200): exchange.arrive(f'n {n}')"
    workers.values(rounds)
    (before,) = workers.values(count, [0])
    workers.values(rounds)
    (after,) = workers.values(count, [0])
    assert after <= before
    for _ in range(2):
        workers.values("exchange.arrive('x')")
        workers.stop(1)
        workers.each(SUMS, [0, 2])
        workers.go_on(1)
        workers.each(SUMS, [1])
        meet(workers)
    (after,) = workers.values(count, [0])
    assert after <= before


def test_an_exchange_that_nobody_holds_leaves_no_thread(workers: Workers) -> None:
    count = "time.sleep(0.5); value = len(os.listdir('/proc/self/task'))"
    before = workers.values(count)
    workers.values("another = group_exchange(time_limit=5)")
    assert all(b > a for a, b in zip(before, workers.values(count), strict=True))
    workers.values("del another")
    assert workers.values(count) == before


# ---------------------------------------------------------------------- at random

STEPS = """
arrived, results = [], []
for n, pause in enumerate(PAUSES[rank]):
    time.sleep(pause)
    try:
        exchange.arrive(f"round {n}")
        arrived.append("here")
        total = exchange.all_reduce_sum(np.arange(SIZE) + rank)
        most = exchange.all_reduce_max(np.full(SIZE, rank * n))
        main = exchange.gather_to_main(bytes([rank]) * SIZE)
        assert (total == count * np.arange(SIZE) + count * (count - 1) // 2).all()
        assert (most == (count - 1) * n).all()
        assert main == ([bytes([r]) * SIZE for r in range(count)] if rank == 0 else None)
        results.append("done")
    except Exception as error:
        if not hasattr(error, "missing"):
            raise
        if len(arrived) == n:
            arrived.append(list(error.missing))
        results.append(list(error.missing))
value = [arrived, results]
"""


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(30))
def test_stopped_at_any_moment_all_decide_alike_and_go_on(server: Server, tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    count, rounds = choose.randint(2, 4), 8
    limit = 2.0
    with Workers(server, count, tmp_path) as workers:
        workers.connect(limit)
        pauses = [[choose.choice([0, 0, 0.05, 0.3]) for _ in range(rounds)] for _ in range(count)]
        size = choose.choice([1, 5000, 300_000])
        workers.send(range(count), STEPS.replace("PAUSES", str(pauses)).replace("SIZE", str(size)))
        time.sleep(choose.uniform(0, 1))
        away = choose.randrange(count)
        workers.stop(away)
        time.sleep(choose.choice([0.3, limit + 1, 2 * limit + 2]))
        workers.go_on(away)
        answers = workers.answers(range(count))
        assert all("error" not in answer for answer in answers), answers
        outcomes = [answer["value"] for answer in answers]
        shown = "\n".join(map(str, outcomes))
        for others in zip(*(results for _, results in outcomes), strict=True):
            for at in {*range(count)} - {away}:
                assert others[at] in ("done", [away], []), shown
        # whatever was missed, they are level again
        workers.values("exchange.arrive('the end')") if outcomes[0][1][-1] == "done" else workers.each(
            "exchange.arrive('x')"
        )
        meet(workers)
