"""Test that trainings with DDP, FSDP2 and tensor parallelism have each value of a step once over their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from test_dtensors import run_processes

from noether_core import read_run
from noether_core.reduce.partial import merge_partials
from noether_core.reduce.state import unpack
from noether_torch.state import as_arrays

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("world", "ways"),
    [
        (4, ("ddp", "fsdp", "hsdp", "fsdp_tp")),
        pytest.param(2, ("ddp", "fsdp"), marks=pytest.mark.slow),
    ],
)
def test_a_training_has_each_value_once(world: int, ways: tuple[str, ...], tmp_path: Path) -> None:
    run_processes(world, "fsdp_training.py", str(tmp_path), *ways)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for way in ways:
        check(way, [each[way] for each in found])
    if world == 4:
        assert any("_S(0" in places or "Strided" in places for places in found[0]["fsdp_tp"]["placements"])
        assert any("Replicate" in places and "Shard" in places for places in found[0]["hsdp"]["placements"])


def check(way: str, processes: list[dict[str, Any]]) -> None:
    pooled = reduce(merge_partials, [unpack(as_arrays(each["state"])) for each in processes])
    is_own = (
        {"loss"} if way != "ddp" else set(processes[0]["steps"][0])
    )  # with DDP every process has all, and counts it
    for at, key in enumerate(pooled.keys):
        owners = processes if key in is_own else processes[:1]
        full = torch.cat([step[key].reshape(-1) for each in owners for step in each["steps"]])
        assert pooled.elements[at] == full.numel(), (way, key)
        statistics = pooled.statistics
        assert (statistics.minimum[0][at], statistics.maximum[0][at]) == (full.min(), full.max())
        assert float(sum(part[at] for part in statistics.total)) == pytest.approx(
            float(full.sum()), rel=1e-12, abs=1e-12
        )
    assert set(pooled.keys) == set(processes[0]["steps"][0])


EXAMPLES = {
    "torch_ddp": ["-m", "examples.torch_ddp"],
    "torch_fsdp2": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "examples.torch_fsdp2"],
}


def test_the_examples_have_one_number_over_all_processes(tmp_path: Path) -> None:
    found = {}
    for name, arguments in EXAMPLES.items():
        command = [sys.executable, *arguments, str(tmp_path / name)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, start_new_session=True)
        try:
            _, told = process.communicate(timeout=240)
        finally:
            with suppress(ProcessLookupError):  # with the processes that it started
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, told
        assert "different keys" not in told  # also of those that one process alone counts
        found[name] = {key: points.value.tolist() for key, points in read_run(tmp_path / name).series.items()}
        assert found[name]["correct/count/E1"] == [1408] * 4
    sharded, copied = found["torch_fsdp2"], found["torch_ddp"]
    for key, other in (("loss/mean/E1",) * 2, ("correct/mean/E1",) * 2, ("norm/max/U16", "grad/norm/max/U16")):
        assert sharded[key] == pytest.approx(copied[other], rel=1e-3)
    assert max(sharded["norms/0.weight/max/U16"]) <= max(sharded["norm/max/U16"])
    assert len(sharded["gradient/0.weight/std/U44"]) == 4
