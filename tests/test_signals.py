"""Real Ctrl-C: signals that come at any moment of a training, in processes of their own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from noether_core import read_run
from noether_core.interrupts import Interrupts

TRAINING = """
import json, os, signal, sys, time
import numpy as np
{imports}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
path, interrupts = sys.argv[1], 0
run = Run(path, [{{"every_n_updates": 2, "keys": ["loss", "field"], "reduce": {{"loss": ["mean", "last"], "field": "stack"}},
                   "save_output": True}}, {{"every_n_updates": 1, "keys": ["loss"], "id": "each"}}], effective_batch_size=4)
print("ready", flush=True)
deadline = time.monotonic() + 60
with run:
    is_over = False
    while not is_over:
        try:
            while not is_over:  # this and the outer loop: the next signal may come before the first is counted
                try:
                    if os.path.exists(path + ".enough") and run.counter.update % 2 == 0:
                        is_over = True
                        break
                    number = run.counter.update + 1
                    run.step({{"loss": np.float32(number), "field": np.arange(3.0) * number}})
                    if number % 7 == 0:
                        run.save_state(path + ".state")
                except KeyboardInterrupt:
                    interrupts += 1
                assert time.monotonic() < deadline
        except KeyboardInterrupt:
            interrupts += 1
print(json.dumps([run.counter.update, interrupts, run.log_writer.log_entries[-1]["update"]]), flush=True)
"""
IMPORTS = {"torch": "from noether_torch import Run", "jax": "from noether_jax import Run"}


def train(path: Path, framework: str, signals: Iterable[int]) -> list[int]:
    """Train in a process that gets a signal for each of these; return what it says."""
    program = TRAINING.format(imports=IMPORTS[framework])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", program, str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.2)
            for _ in signals:
                process.send_signal(signal.SIGINT)
                time.sleep(random.uniform(0.001, 0.01))
            path.with_suffix(".enough").touch()
            return list(json.loads(process.stdout.read()))
        finally:
            process.kill()


def check(path: Path, updates: int) -> None:
    """Check that every update is there once, with its numbers."""
    read = read_run(path)
    assert not read.problems
    files = [file for file in (path / "metrics").glob("*.jsonl") if ".time" not in file.name]
    assert sum(len(file.read_bytes().splitlines()) for file in files) == updates
    series = read.series
    assert series["loss/U1"].value.tolist() == [float(number) for number in range(1, updates + 1)]
    assert series["loss/mean/U2"].value.tolist() == [number - 0.5 for number in range(2, updates + 1, 2)]
    assert series["loss/last/U2"].value.tolist() == [float(number) for number in range(2, updates + 1, 2)]
    assert [each.iteration.update for each in read.arrays] == list(range(2, updates + 1, 2))
    for each in read.arrays:
        assert each.iteration.update is not None
        expected = [
            [place * number for place in range(3)] for number in (each.iteration.update - 1, each.iteration.update)
        ]
        assert each.load()["field"].tolist() == expected


@pytest.mark.parametrize("framework", [pytest.param("torch"), pytest.param("jax", marks=pytest.mark.slow)])
def test_no_signal_loses_doubles_or_changes_anything(
    framework: str, full: bool, tmp_path: Path, sized: Callable[..., Iterator[Any]]
) -> None:
    signals = 1000 if full else 60
    updates, interrupts, last = train(tmp_path / "run", framework, sized(range(signals), "signals"))
    assert 0 < interrupts <= signals
    assert last == updates
    check(tmp_path / "run", updates)


# ---------------------------------------------------------------------- the handler


class Noted(Exception):
    pass


def raising(*_: Any) -> None:
    raise Noted


@pytest.fixture
def handler() -> Any:
    before = signal.getsignal(signal.SIGINT)
    yield signal.signal(signal.SIGINT, raising)
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("handler")
def test_a_signal_is_answered_after_what_is_under_way_by_the_users_handler() -> None:
    interrupts = Interrupts()
    interrupts.listen()
    done = []
    with pytest.raises(Noted), interrupts:  # noqa: PT012
        interrupt()
        with interrupts:
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    with pytest.raises(Noted):
        interrupt()
    interrupts.release()
    assert signal.getsignal(signal.SIGINT) is raising


@pytest.mark.usefixtures("handler")
def test_a_signal_is_answered_at_once_when_another_has_waited() -> None:
    interrupts = Interrupts(patience=0)
    interrupts.listen()
    done = []
    with pytest.raises(Noted), interrupts:  # noqa: PT012
        interrupt()
        done.append(1)
        interrupt()
        done.append(2)
    assert done == [1]
    assert not interrupts.is_waiting
    interrupts.release()


@pytest.mark.usefixtures("handler")
def test_many_signals_are_answered_as_one() -> None:
    interrupts = Interrupts(patience=60)
    interrupts.listen()
    done = []
    with pytest.raises(Noted), interrupts:  # noqa: PT012
        for _ in range(5):
            interrupt()
        done.append(1)
    assert done == [1]
    interrupts.release()


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_runs_that_are_open_together_give_the_handler_back_in_any_order(order: tuple[int, int]) -> None:
    runs = Interrupts(), Interrupts()
    for each in runs:
        each.listen()
    with pytest.raises(Noted), runs[0]:
        interrupt()
    runs[order[0]].release()
    with pytest.raises(Noted), runs[order[1]]:
        interrupt()
    runs[order[1]].release()
    with pytest.raises(Noted):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is raising


@pytest.mark.usefixtures("handler")
def test_a_handler_that_the_user_sets_later_stays() -> None:
    interrupts = Interrupts()
    interrupts.listen()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_where_there_is_no_python_handler_none_is_set(ignored: Any) -> None:
    signal.signal(signal.SIGINT, ignored)
    interrupts = Interrupts()
    interrupts.listen()
    assert signal.getsignal(signal.SIGINT) == ignored
    interrupts.release()


@pytest.mark.usefixtures("handler")
def test_a_thread_sets_none_and_the_main_thread_is_the_one_that_answers() -> None:
    interrupts = Interrupts()
    thread = threading.Thread(target=interrupts.listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is raising
    interrupts.listen()
    raised = []

    def hold() -> None:
        try:
            with interrupts:
                is_held.set()
                has_come.wait(60)
        except Noted:
            raised.append("in the thread")

    is_held, has_come = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(60)
    interrupt()
    with pytest.raises(Noted):  # noqa: PT012 -- whenever it comes
        has_come.set()
        thread.join()
        time.sleep(60)
    assert not raised
    interrupts.release()
