"""What docs/probes.md shows runs, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from noether_core.probes import read_training

PAGE = (Path(__file__).parents[1] / "docs" / "probes.md").read_text(encoding="utf-8")


def test_the_pages_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    updates = [1, 2, 3, 5, 10, 15, 20]
    assert f"# {updates}" in PAGE
    assert names["training"].updates() == updates
    assert names["updates"].tolist() == updates
    assert len(names["columns"].norm) == len(updates)
    for framework in ("torch", "jax"):
        training = read_training(f"runs/{framework}")
        assert training.updates() == updates
        assert {key.partition("/")[0] for key in training.keys(1)} >= {
            "data",
            "param",
            "act",
            "loss",
            "grad",
            "update",
            "opt",
        }
        assert all(f"`{stage}/…`" in PAGE for stage in {key.partition("/")[0] for key in training.keys(1)})
