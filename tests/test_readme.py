"""Run the README's programs as they stand, and hold its figures to where they come from."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from noether_core import read_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_fifteen_lines_run(framework: str, tmp_path: Path) -> None:
    (source,) = (block for block in BLOCKS if f"from noether_{framework} import" in block)
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


def test_every_program_of_it_is_one_of_these() -> None:
    assert len(BLOCKS) == 2


def test_it_is_short_and_shows_a_program_on_the_first_screen() -> None:
    lines = README.splitlines()
    assert len(lines) < 150
    assert "```python" in lines[:16]


def cell(table: str, row: str, column: str) -> float:
    """Return the number in a cell of the benchmarks' page."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    header, _, *rows = page.split(f"## {table}\n")[1].split("\n## ")[0].split("\n|", 1)[1].strip().splitlines()
    (found,) = (line for line in rows if line.startswith(f"| {row} |"))
    return float(re.sub(r"[^\d.]", "", found.split("|")[1:][header.split("|").index(f" {column} ")].split("(")[0]))


@pytest.mark.parametrize("framework", ["PyTorch", "JAX"])
def test_what_a_list_costs_is_what_was_measured(framework: str) -> None:
    """What is quoted is rounded, and the benchmarks may be measured again: the order of each two must stay, and the size."""
    ours = f"noether_{'torch' if framework == 'PyTorch' else 'jax'}, hooks"
    theirs = "lists, stacked at the end"
    said = re.sub(r"\s+", " ", README)
    steps = re.search(
        r"in PyTorch (\d+) µs a step instead of (\d+) µs for one number, in JAX next to nothing instead of (\d+) µs",
        said,
    )
    ends = re.search(r"the list takes (\d+) ms in PyTorch and (\d+) ms in JAX, this ([\d.]+) ms and ([\d.]+) ms", said)
    assert steps, "the README says what a list costs in a step"
    assert ends, "and what it costs at an interval's end"
    at = 0 if framework == "PyTorch" else 1
    step, end = f"{framework}: a step with scalars", f"{framework}: an interval's end"
    quoted = {
        (step, ours, "1 key"): float(steps[2 + at]),
        (end, theirs, "100 keys"): float(ends[1 + at]),
        (end, ours, "100 keys"): float(ends[3 + at]),
    }
    for where, number in quoted.items():
        assert cell(*where) == pytest.approx(number, rel=0.1), where
    assert cell(step, theirs, "1 key") <= (float(steps[1]) if framework == "PyTorch" else 1)
