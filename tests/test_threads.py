"""A run's methods may be called from several threads: they come one after the other, whole."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hook_cases import Recorder, array, each_front_end

from noether_core import HookOrderError, LogWriter, UpdateCounter, read_run

THREADS, STEPS = 4, 60


def in_threads(work: Callable[[int], None], count: int = THREADS) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if errors:
        raise errors[0]


@each_front_end
def test_steps_of_several_threads_are_all_counted_and_logged_in_order(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, every=10, updates_per_epoch=7) as run:

        def work(number: int) -> None:
            for step in range(STEPS):
                run.step({"loss": array(front_end, 1.0)})
                if step % 20 == 0:
                    run.log({f"own/{number}/{step}": step})

        in_threads(work)
    read = read_run(tmp_path)
    assert read.problems == []
    assert run.counter.update == THREADS * STEPS
    updates = [entry["update"] for entry in read.entries]
    assert updates == sorted(set(updates))
    assert [(point.update, point.value) for point in read.series["loss/U10"]] == [
        (update, 1.0) for update in range(10, THREADS * STEPS + 1, 10)
    ]
    assert sum(key.startswith("own/") for key in read.series) == THREADS * STEPS // 20


def test_the_disk_has_one_thread_however_many_hand_over(tmp_path: Path) -> None:
    others = {*threading.enumerate()}  # of what earlier tests have left
    for trial in range(20):
        writer = LogWriter(tmp_path / str(trial), update_counter=UpdateCounter())
        ready = threading.Barrier(THREADS)

        def work(number: int, disk: Any = writer.disk, path: Path = tmp_path / str(trial), ready: Any = ready) -> None:
            ready.wait()
            for part in range(5):
                disk.put_file(path / f"{number}_{part}", b"bytes")

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            in_threads(work)
            assert sum(each.name == "noether disk" for each in {*threading.enumerate()} - others) <= 1
            writer.close()
        assert len(list((tmp_path / str(trial)).iterdir())) == 5 * THREADS


@each_front_end
def test_a_step_beside_another_threads_evaluation_is_refused(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, every=1) as run:
        run.step({"loss": array(front_end, 1.0)})
        with run.evaluate():
            for call in (lambda: run.step({"loss": array(front_end, 9.0)}), lambda: run.log({"own": 1.0})):
                with pytest.raises(HookOrderError, match=r"another thread is in run\.evaluate"):
                    in_threads(lambda _, call=call: call(), 1)  # type: ignore[misc]
            run.step({"loss": array(front_end, 2.0)})
        in_threads(lambda _: run.step({"loss": array(front_end, 3.0)}), 1)
    series = read_run(tmp_path).series
    assert [point.value for point in series["loss/U1"]] == [1.0, 3.0]
    assert [point.value for point in series["eval/loss"]] == [2.0]
    assert "own" not in series


@each_front_end
def test_a_run_that_ends_while_another_thread_steps_has_each_step_that_was_counted(
    front_end: Any, tmp_path: Path
) -> None:
    begun = threading.Event()
    with front_end.Run(tmp_path, every=1) as run:

        def work() -> None:
            while True:
                run.step({"loss": array(front_end, 1.0)})
                begun.set()

        def refused() -> None:
            with pytest.raises(HookOrderError, match=r"run\.step was called on a run that is finished"):
                work()

        worker = threading.Thread(target=refused)
        worker.start()
        begun.wait()
    worker.join()
    assert len(read_run(tmp_path).series["loss/U1"]) == run.counter.update


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signal to itself alone")
@each_front_end
def test_ctrl_c_that_waits_for_another_threads_step_loses_neither(front_end: Any, tmp_path: Path) -> None:
    inside, goes_on = threading.Event(), threading.Event()

    class Slow(Recorder):
        def track_after_accumulation_step(self, **_: Any) -> None:
            inside.set()
            goes_on.wait(20)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = front_end.Run(tmp_path, [Slow()])
    run.start()
    worker = threading.Thread(target=run.step, args=({"loss": 1.0},))
    worker.start()
    inside.wait()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    threading.Timer(0.5, goes_on.set).start()

    def log() -> None:
        run.log({"own": 1.0})
        run.log({"later": 1.0})

    with pytest.raises(KeyboardInterrupt):
        log()
    worker.join()
    assert run.counter.update == 1
    in_threads(lambda _: run.step({}), 1)  # the lock is nobody's
    run.finish()
    assert run.counter.update == 2
    signal.signal(signal.SIGINT, before)
