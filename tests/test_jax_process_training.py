"""Test that a JAX training in two processes, of a model spread over both, is tracked alike in either way."""

from __future__ import annotations

from pathlib import Path

from bridge_processes import logged, run_together


def test_global_arrays_are_tracked_alike_in_the_step_and_outside(tmp_path: Path) -> None:
    run_together("jax_process.py", tmp_path, (2,), timeout=120)
    eager, fused = (logged(tmp_path / "2" / way) for way in ("eager", "fused"))
    assert eager == fused
    assert eager["correct/count/U4"][3] == [128, 128]
    assert set(eager) >= {"loss/mean/U4", "gradient/body/std/U4", "gradient/classify/max/U4"}
