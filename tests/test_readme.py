"""Run the README's examples as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from noether_core import load_callbacks, read_run

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_fifteen_lines_run(framework: str, tmp_path: Path) -> None:
    (source,) = (block for block in BLOCKS if f"from noether_{framework} import" in block and "run.init" not in block)
    assert len([line for line in source.splitlines() if line.strip()]) <= 15
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    series = read_run(tmp_path / "runs" / framework).series
    assert set(series) == {"loss/U10", "grad/norm/U10"}
    losses = [point.value for point in series["loss/U10"]]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def test_the_fused_lines_run(tmp_path: Path) -> None:
    (source,) = (block for block in BLOCKS if "run.init" in block)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {key: len(points) for key, points in read_run(tmp_path / "runs" / "fused").series.items()} == {
        "loss/U10": 10,
        "peak/U10": 10,
    }


def test_the_config_loads(tmp_path: Path) -> None:
    (source,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert yaml.safe_load(source)
    (tmp_path / "callbacks.yaml").write_text(source, encoding="utf-8")
    assert [str(config.interval) for config in load_callbacks(tmp_path / "callbacks.yaml")] == ["U10", "E1"]
