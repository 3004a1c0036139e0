"""Check `same_training` and `assert_same_training` in a user's own test file, run by a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from port_training import train

ROOT = Path(__file__).parents[1]
PLUGIN = "noether_core.parity.between_runs.pytest_plugin"
TESTS = """
from noether_core.parity.between_runs import assert_same_training

def test_the_same(same_training):
    assert same_training("a", "b").same_through == 4

def test_another_rate(same_training):
    same_training("a", "c")

def test_no_probes(same_training):
    same_training("a", "d")

def test_by_the_function():
    assert_same_training("a", "c")
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what pytest prints of a file with one test that passes and three that fail."""
    directory = tmp_path_factory.mktemp("user")
    for name, arguments in (("a", {}), ("b", {}), ("c", {"lr": 0.2}), ("d", {"probes": False})):
        train(directory / name, **arguments)
    (directory / "test_port.py").write_text(TESTS, encoding="utf-8")
    is_installed = any(each.value == PLUGIN for each in entry_points(group="pytest11"))
    plugin = [] if is_installed else ["-p", PLUGIN]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *plugin, "test_port.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_one_passes_and_three_fail(output: str) -> None:
    assert "3 failed, 1 passed" in output


def test_a_failure_shows_the_sentence_the_cause_and_what_to_do(output: str) -> None:
    assert "Differs from update 1 on, first in update/first.weight" in output
    assert "[learning-rate]" in output
    assert "noether-parity compare a c --report comparison.html" in output
    assert "Cannot say: d has no probed updates" in output


def test_a_failure_of_the_fixture_shows_the_users_line_alone(output: str) -> None:
    failure = output.partition("_ test_another_rate _")[2].partition("_ test_no_probes _")[0]
    assert '>       same_training("a", "c")' in failure
    assert "pytest_plugin.py" not in failure


def test_the_entry_point_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.entry-points.pytest11]\nnoether = "{PLUGIN}"' in text
