"""Runs that nobody ends, in a notebook say: they leave nothing behind but what they wrote."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk

from noether_core import read_run
from noether_core.interrupts import Interrupts
from noether_core.signal_handlers import Link
from noether_torch import Run

CONFIG = {"every_n_updates": 1, "keys": ["loss"], "save_output": True}
DESCRIPTORS = Path("/proc/self/fd")


def drop(path: Path) -> weakref.ref[Run]:
    """Train for a while, and let go of the run."""
    run = Run(path, [CONFIG])
    run.start()
    for update in range(3):
        run.step({"loss": float(update)})
    return weakref.ref(run)


def disk_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "noether disk"]


def descriptors() -> int:
    return sum(1 for _ in DESCRIPTORS.iterdir())


def comes_true(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        gc.collect()
        time.sleep(0.01)
    return True


@pytest.fixture
def answer() -> Iterator[object]:
    """Answer Ctrl-C and SIGTERM as Python does, whatever earlier tests left."""
    gc.collect()
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="needs /proc")
def test_runs_that_are_dropped_leave_no_thread_descriptor_or_handler(answer: object, tmp_path: Path) -> None:
    before, threads = descriptors(), len(disk_threads())
    runs = [drop(tmp_path / str(number)) for number in range(20)]
    assert comes_true(lambda: all(run() is None for run in runs))
    assert comes_true(lambda: len(disk_threads()) == threads)
    assert comes_true(lambda: descriptors() <= before)
    for number in range(20):
        read = read_run(tmp_path / str(number))
        assert (len(read.entries), len(read.arrays), read.problems) == (3, 3, [])
    gc.collect()
    with Run(tmp_path / "last", [CONFIG]):
        pass
    assert signal.getsignal(signal.SIGINT) is answer  # not that of a run that is no more
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_dropped_run_whose_disk_failed_for_a_while_lets_go_of_all(answer: object, tmp_path: Path) -> None:
    failed = []

    def fails(number: int, name: str) -> bool:
        if name == "write" and disk.paths[number].endswith(".jsonl") and len(failed) < 2:
            failed.append(name)
        return bool(failed) and number < first_calls + 3 and name == "write"

    threads, first_calls = len(disk_threads()), 0
    disk = FaultyDisk(tmp_path, "ENOSPC", fails)
    with disk.installed():
        run = drop(tmp_path / "run")
        first_calls = len(disk.calls)
        assert comes_true(lambda: run() is None)
        assert comes_true(lambda: len(disk_threads()) == threads)
    with Run(tmp_path / "run", [CONFIG], start={"update": 3}):
        pass
    assert len(read_run(tmp_path / "run").entries) == 3


def test_ctrl_c_is_answered_through_thousands_of_handlers(answer: object) -> None:
    kept = [Interrupts() for _ in range(3000)]
    for each in kept:
        each.listen()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    del kept[:-1], each
    last = Interrupts()
    last.listen()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    links = 0
    link = signal.getsignal(signal.SIGINT)
    while isinstance(link, Link):
        links, link = links + 1, link.before
    assert links == 2  # of those that somebody still has
    kept.pop().release()
    last.release()
    assert signal.getsignal(signal.SIGINT) is answer


def test_a_handler_that_another_took_the_place_of_passes_on_when_its_run_is_over(
    answer: object, tmp_path: Path
) -> None:
    first, second = Run(tmp_path / "1", [CONFIG]), Run(tmp_path / "2", [CONFIG])
    first.start()
    second.start()
    first.finish()
    second.interrupts.depth = 1
    signal.raise_signal(signal.SIGINT)  # held back
    second.interrupts.depth = 0
    with pytest.raises(KeyboardInterrupt):
        second.interrupts.answer()
    second.finish()
    assert signal.getsignal(signal.SIGINT) is answer
