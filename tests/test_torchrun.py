"""Test that a training which torchrun starts again goes on in its run directory.

torch 2.13's torchrun gives all attempts one store (`TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` gives each its own): a process of the
second attempt may find there the address that another one had in the first, and `init_process_group` then fails or waits
forever, with and without what is tested here. So these trainings keep their attempts apart, in both ways there are.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from noether_core import read_run

SCRIPT = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path

signal.alarm(150)  # whatever becomes of torchrun
import torch
import torch.distributed as dist
from noether_torch import Run

folder, ways = Path(sys.argv[1]), sys.argv[2:]
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
options = {}
if "agent" in ways:
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    options = {"store": dist.PrefixStore(f"attempt {attempt}", store), "rank": rank, "world_size": 2}
dist.init_process_group("gloo", timeout=timedelta(seconds=60), **options)
callbacks = [{"every_n_updates": 2, "patterns": ["loss"], "reduce": ["sum", "count"]}]
with Run(folder / "run", callbacks, end={"update": 10}) as run:
    if "resumes" in ways and attempt:
        run.load_state(folder / "state")
    while not run.is_finished:
        at = run.counter.update
        run.step({"loss": torch.tensor(float(10 * at + rank))})
        if at + 1 == 4 and not attempt:
            run.save_state(folder / "state")
        if at + 1 == 6 and not attempt and rank == 1:
            raise ValueError("this process fails")
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    "ways",
    [("agent", "resumes"), (), *(pytest.param(each, marks=pytest.mark.slow) for each in [("agent",), ("resumes",)])],
    ids="-".join,
)
def test_a_training_that_torchrun_starts_again_goes_on_in_its_run_directory(
    ways: tuple[str, ...], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--standalone"]
    own_store = {} if "agent" in ways else {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    process = subprocess.Popen(
        [sys.executable, *torchrun, str(script), str(tmp_path), *ways], stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1", **own_store}, start_new_session=True,
    )  # fmt: skip
    try:
        _, told = process.communicate(timeout=120)
    finally:
        process.terminate()  # it ends its processes then
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told
    assert "this process fails" in told
    run = read_run(tmp_path / "run")
    updates = range(2, 11, 2)
    assert run.series["loss/sum/U2"].update.tolist() == [*updates]
    assert run.series["loss/sum/U2"].value.tolist() == [40 * update - 58 for update in updates]
    assert run.series["loss/count/U2"].value.tolist() == [4] * 5
    first, second = (json.loads((tmp_path / f"run/starts/{number}.json").read_bytes()) for number in (1, 2))
    assert not (tmp_path / "run/starts/3.json").exists()
    assert first["processes"] == second["processes"] == 2
    if "resumes" in ways:
        assert (second["parent"], second["iteration"]["update"]) == (first["id"], 4)
    else:
        assert second["iteration"] is None
