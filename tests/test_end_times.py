"""However a program ends, all that it logged is in the files within two seconds, and the last words are its own error's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from noether_core import read_run

UPDATES = 3000
PROGRAM = """
import os, signal, sys, time
from noether_{framework} import Run

class Slow:
    def log(self, entry): pass
    def close(self): time.sleep({slow})

CALLBACKS = [
    {{"every_n_updates": 1, "patterns": ["key/"]}},
    {{"every_n_updates": 10, "keys": ["key/0"], "id": "saved", "save_output": True, "log_output": False}},
    {{"every_n_updates": 10**6, "keys": ["key/0"], "id": "open"}},
]
run = Run(sys.argv[1], CALLBACKS, trackers=[Slow()])
with run:
    while run.counter.update < {updates}:
        run.step({{f"key/{{n}}": float(run.counter.update + n) for n in range(20)}})
    print(time.monotonic(), flush=True)
    {ending}
"""
# how the program ends, which signals it gets then, seconds between two, its exit status, and its last words
ENDINGS: dict[str, tuple[str, tuple[signal.Signals, ...], int, str]] = {
    "its end": ("pass", (), 0, ""),
    "sys.exit": ("sys.exit(3)", (), 3, ""),
    "an exception": ("raise ValueError('the loop failed')", (), 1, "ValueError: the loop failed"),
    "Ctrl-C": ("time.sleep(60)", (signal.SIGINT,), -2, "KeyboardInterrupt"),
    "Ctrl-C twice": ("time.sleep(60)", (signal.SIGINT, signal.SIGINT), -2, "KeyboardInterrupt"),
    "Ctrl-C three times": ("time.sleep(60)", (signal.SIGINT,) * 3, -2, "KeyboardInterrupt"),
    "SIGTERM": ("time.sleep(60)", (signal.SIGTERM,), -15, ""),
    "SIGTERM twice": ("time.sleep(60)", (signal.SIGTERM, signal.SIGTERM), -15, ""),
}
SLOW = {"nothing slow": 0.0, "a tracker that needs 20 s to close": 20.0}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("slow", [pytest.param(each, marks=pytest.mark.slow if SLOW[each] else ()) for each in SLOW])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_what_was_logged_is_in_the_files_soon(
    framework: str, ending: str, slow: str, full: bool, tmp_path: Path
) -> None:
    how, signals, status, words = ENDINGS[ending]
    program = PROGRAM.format(framework=framework, slow=SLOW[slow], updates=UPDATES, ending=how)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            caused = float(process.stdout.readline())
            for number in signals:
                time.sleep(0.05)
                caused = time.monotonic()
                process.send_signal(number)
            flushed = until_flushed(tmp_path / "run" / "metrics") - caused
            assert process.wait(60) == status
            stderr = process.stderr.read().splitlines()
            assert not words or words in stderr, stderr
            assert "NoetherError" not in str(stderr), stderr
        finally:
            process.kill()
    assert flushed < (2 if full else 30)
    read = read_run(tmp_path / "run")
    assert [entry["update"] for entry in read.entries] == [*range(1, UPDATES + 1)]
    assert "key/0/U1000000" in read.entries[-1]  # the interval under way
    assert [file.iteration.update for file in read.arrays] == [*range(10, UPDATES + 1, 10)]
    assert read.problems == []


def until_flushed(directory: Path) -> float:
    """Wait until the last line is of the last update's open interval; return when it was so."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        logs = [file.read_bytes() for file in directory.glob("*.jsonl") if ".time" not in file.name]
        if any(b"key/0/U1000000" in data and data.endswith(b"\n") for data in logs):
            return time.monotonic()
        time.sleep(0.01)
    raise AssertionError("what was logged is not in the files after a minute")
