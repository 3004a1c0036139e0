"""However a program ends, what it flushed is in the run directory, and its own error is the one to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from noether_core import read_run

PROGRAM = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and `nohup`'s the next one
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from noether_core.errors import HookOrderError
from noether_torch import Run

CALLBACKS = [{"every_n_updates": 1, "keys": ["loss"]}, {"every_n_updates": 1000, "keys": ["loss"], "save_output": True}]
run = Run(sys.argv[1], CALLBACKS, processes=1)

def train(last=50):
    while run.counter.update < last:
        run.step({"loss": run.counter.update / 3})

class SlowToClose:
    def log(self, entry): pass
    def close(self): time.sleep(5)
"""
SLOW = """
run = Run(sys.argv[1], CALLBACKS, processes=1, trackers=[SlowToClose()])
with run:
    train()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
"""
OTHER = """
other = Run(sys.argv[1] + "/other", CALLBACKS, processes=1)
other.start()
other.step({"loss": 0.0})
"""
# a program's end, its exit status, and what its last words are
ENDINGS = {
    "sys.exit": ("with run:\n    train()\n    sys.exit(3)", 3, ""),
    "an exception": (
        "with run:\n    train()\n    raise ValueError('the loop failed')",
        1,
        "ValueError: the loop failed",
    ),
    "Ctrl-C": ("with run:\n    train()\n    os.kill(os.getpid(), signal.SIGINT)", -2, "KeyboardInterrupt"),
    "Ctrl-C twice": (
        f"{SLOW}    os.kill(os.getpid(), signal.SIGINT)",
        -2,
        "KeyboardInterrupt",
    ),
    "Ctrl-C after an exception": (
        f"{SLOW}    raise ValueError('the loop failed')",
        1,
        "ValueError: the loop failed",
    ),
    "SIGTERM": ("with run:\n    train()\n    os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
    "SIGHUP": ("with run:\n    train()\n    os.kill(os.getpid(), signal.SIGHUP)", -1, ""),
    "SIGTERM without a block": ("run.start()\ntrain()\nos.kill(os.getpid(), signal.SIGTERM)", -15, ""),
    "SIGTERM within a wait": (
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\nwith run:\n    train()\n    time.sleep(30)",
        -15,
        "",
    ),
    "SIGTERM with two runs": (
        f"{OTHER}run.start()\ntrain()\nos.kill(os.getpid(), signal.SIGTERM)",
        -15,
        "",
    ),
    "SIGTERM after the first of two runs": (
        f"{OTHER}run.start()\nother.finish()\ntrain()\nos.kill(os.getpid(), signal.SIGTERM)",
        -15,
        "",
    ),
}


def end(script: str, path: Path, *options: str) -> tuple[int, list[str]]:
    command = [sys.executable, *options, "-c", PROGRAM + script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.sweep(5)
@pytest.mark.parametrize("ending", ENDINGS)
def test_however_a_program_ends_its_run_is_whole(tmp_path: Path, ending: str) -> None:
    script, code, words = ENDINGS[ending]
    returned, stderr = end(script, tmp_path / "run")
    assert returned == code, stderr
    assert not words or words in stderr
    run = read_run(tmp_path / "run")
    assert [entry["update"] for entry in run.entries] == [*range(1, 51)]
    assert "loss/U1000" in run.entries[-1]  # the interval under way
    assert [file.iteration.update for file in run.arrays] == [50]
    assert run.problems == []
    if "two runs" in ending:
        assert read_run(tmp_path / "run" / "other").entries[0]["loss/U1000"] == 0.0


@pytest.mark.parametrize("script", ["run.start(); train()", "run.start(); train(); sys.exit(0)"])
def test_a_run_that_nobody_ends_has_what_it_flushed(tmp_path: Path, script: str) -> None:
    assert end(script, tmp_path, "-W", "error") == (0, [])
    assert [entry["update"] for entry in read_run(tmp_path).entries] == [*range(1, 51)]


OTHER_HANDLERS = {
    "of the program's own": "signal.signal(signal.SIGTERM, lambda *_: (print('mine'), sys.exit(7)))",
    "that ignores it": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
}


@pytest.mark.parametrize("handler", OTHER_HANDLERS)
def test_another_handler_of_sigterm_stays(tmp_path: Path, handler: str) -> None:
    script = (
        f"{OTHER_HANDLERS[handler]}\nbefore = signal.getsignal(signal.SIGTERM)\nwith run:\n    train()\n"
        "    assert signal.getsignal(signal.SIGTERM) is before\n    os.kill(os.getpid(), signal.SIGTERM)"
    )
    returned, stderr = end(script, tmp_path)
    assert returned == (7 if "own" in handler else 0), stderr
    assert len(read_run(tmp_path).entries) == 50


def test_a_handler_that_python_does_not_know_stays_too(tmp_path: Path) -> None:
    script = """
import faulthandler
faulthandler.register(signal.SIGTERM, file=open(sys.argv[1] + ".trace", "w"))
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
with run:
    train()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
"""
    assert end(script, tmp_path / "run") == (0, [])
    assert "most recent call first" in (tmp_path / "run.trace").read_text()


def test_the_handler_of_sigterm_is_gone_after_the_run_and_in_forked_children(tmp_path: Path) -> None:
    script = """
with run:
    train()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    child = os.fork()
    if child == 0:
        os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
thread = threading.Thread(target=lambda: Run(sys.argv[1] + "/other", CALLBACKS, processes=1).start())
thread.start(); thread.join()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    assert end(script, tmp_path) == (0, [])


def test_a_forked_child_neither_writes_nor_hangs(tmp_path: Path) -> None:
    script = """
with run:
    train(25)
    for ending in (lambda: os._exit(0), lambda: sys.exit(0)):
        child = os.fork()
        if child == 0:
            for use in (lambda: train(40), lambda: run.log({"of the child": 1.0})):
                try:
                    use()
                except HookOrderError:
                    pass
                else:
                    os._exit(1)
            run.finish()
            ending()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    train(50)
"""
    assert end(script, tmp_path) == (0, [])
    run = read_run(tmp_path)
    assert [entry["update"] for entry in run.entries] == [*range(1, 51)]
    assert run.problems == []
    assert len(run.series) == 2
