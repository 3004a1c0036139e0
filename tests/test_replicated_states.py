"""Test that what every process has alike counts once where the states of several are merged."""

from __future__ import annotations

from pathlib import Path

from noether_core import read_run
from noether_core.reduce.elastic import merged_states
from noether_torch import Run
from noether_torch.state import as_arrays

CONFIGS = [{"every_n_updates": 4, "keys": ["lr", "own"], "reduce": ["sum", "count"], "replicated": ["lr"]}]


def test_a_replicated_key_counts_once_after_a_restart_in_another_number_of_processes(tmp_path: Path) -> None:
    states = []
    for process in range(3):
        with Run(tmp_path / str(process), CONFIGS, processes=1) as run:
            for _ in range(2):
                run.step({"lr": 1.0, "own": 1.0})
            states.append(as_arrays(run.state_dict()))
    with Run(tmp_path / "merged", CONFIGS, processes=1) as run:
        run.load_state_dict(merged_states(states, 0, run.is_replicated))
        for _ in range(2):
            run.step({"lr": 1.0, "own": 1.0})
    entry = read_run(tmp_path / "merged").entries[-1]
    assert (entry["lr/sum/U4"], entry["lr/count/U4"]) == (4.0, 4)
    assert (entry["own/sum/U4"], entry["own/count/U4"]) == (8.0, 8)
