"""Run the commands that docs/processes.md tells users to type."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from noether_core import read_run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "processes.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
TRAININGS = [command for command in COMMANDS if "examples." in command]
SMALL = "examples.lightning_processes"  # tests/test_distributed_trainings.py has those of torch


@pytest.mark.parametrize(
    "command",
    [pytest.param(each, marks=() if SMALL in each else pytest.mark.slow, id=each.split(".")[-1]) for each in TRAININGS],
)
def test_a_command_of_the_page_trains_in_two_processes(command: str, tmp_path: Path) -> None:
    program, *arguments = command.split()
    started = [str(Path(sys.executable).with_name(program)), *arguments, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    with (tmp_path / "out.txt").open("w+") as out:
        process = subprocess.Popen(started, stdout=out, stderr=out, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = process.wait(240)
        finally:
            with suppress(ProcessLookupError):  # with the processes that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        assert code == 0, out.read()
    run = read_run(tmp_path / "run")
    assert '"processes":2' in (tmp_path / "run" / "starts" / "1.json").read_text(encoding="utf-8").replace(" ", "")
    assert run.series
    for key, points in run.series.items():
        if re.match(r"loss/(mean/)?E1$", key):
            assert points.value[-1] < points.value[0]
        if key == "correct/count/E1":
            assert points.value.tolist() == [1408] * 4
    assert not list((tmp_path / "run").glob("unmerged/*"))


def test_the_page_has_a_command_for_each_framework() -> None:
    for framework in ("torch_ddp", "torch_fsdp2", "lightning", "transformers", "accelerate", "jax"):
        assert any(framework in command for command in TRAININGS)
    assert "noether-parity merge runs/mine" in COMMANDS  # which tests/test_merge.py runs
