"""A disk that is full for longer than the queue lasts: training goes on, what is lost is marked, and logging recovers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from noether_core import read_run

PROGRAM = """
import resource, sys
import numpy as np
from noether_core.emit.disk import MOST_BYTES
from noether_{framework} import Run

CALLBACKS = [
    {{"every_n_updates": 1, "keys": ["loss"]}},
    {{"every_n_updates": 10, "keys": ["field"], "log_output": False, "save_output": True}},
]
LINE = 2**18
before, full, after = 20, MOST_BYTES // LINE + 200, 36
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with Run(sys.argv[1], CALLBACKS, processes=1) as run:
    for update in range(1, before + full + after + 1):
        if update == before + 1:
            run.log_writer.disk.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file takes any more, as on a full disk
        if update == before + full + 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            run.log_writer.disk.wait(patience=60, insists=True)
        run.step({{"loss": update / 3, "field": np.full(3, update, np.float32)}})
        if before < update <= before + full:
            run.log({{"text": "x" * LINE}})
print(before, full, after, len(run.log_writer.log_entries))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("framework", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_what_a_full_disk_did_not_take_is_marked_and_logging_recovers(
    framework: str, tmp_path: Path, sized: Callable[..., Iterator[Any]]
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROGRAM.format(framework=framework), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    before, full, after, in_memory = map(int, done.stdout.split())
    assert in_memory == 1000  # the newest
    warned = re.findall(r"Warning: (.*)", done.stderr)
    assert len(warned) == 2, done.stderr
    assert "the disk does not take what this run logs" in warned[0]
    assert "missing in the run directory" in warned[1]
    read = read_run(tmp_path / "run")
    last = before + full + after
    assert all(entry["loss/U1"] == entry["update"] / 3 for entry in read.entries)
    texts = {entry["update"] for entry in read.entries if "text" in entry}
    lost = [
        update
        for update in sized(range(before + 1, before + full + 1), "updates on a full disk")
        if update not in texts
    ]
    assert 0 < len(lost) < 400
    assert lost == [*range(lost[0], before + full + 1)]  # one gap, up to when there was space again
    updates = [entry["update"] for entry in read.entries]
    assert updates[-after:] == [*range(last - after + 1, last + 1)]
    gone = sorted(set(range(1, last + 1)) - set(updates))  # small lines found room for longer
    assert set(gone) <= set(lost)
    (problem,) = read.problems
    found = re.search(r"(\d+) entries of the updates (\d+) to (\d+)", problem)
    assert found is not None, problem
    assert [*map(int, found.groups())] == [len(lost) + len(gone), lost[0], lost[-1]], problem
    saved = [file.iteration.update for file in read.arrays]
    assert saved[-3:] == [last - 20, last - 10, last]
    lost_files = len(range(10, last + 1, 10)) - len(saved)
    assert f"{lost_files} files (update_outputs/U10/E0_U" in problem
    assert [float(file.load()["field"]) for file in read.arrays] == [(update or 0) - 4.5 for update in saved]
