"""Trainings that were ended in any way, resumed, rolled back and begun anew hold what the uninterrupted training holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests.histories import check


@pytest.mark.sweep(8)
@pytest.mark.parametrize("way", ["torch", "jax"])
@pytest.mark.parametrize("seed", range(100))
def test_any_history_is_the_uninterrupted_training(seed: int, way: str, tmp_path: Path) -> None:
    check(seed, way, tmp_path, actions=12)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(100))
def test_any_history_is_the_uninterrupted_training_in_a_compiled_step(seed: int, tmp_path: Path) -> None:
    check(seed, "fused", tmp_path, actions=8)
