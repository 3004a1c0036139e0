"""Real processes that are stopped or killed at an interval's end: the others name them, and what was missed is merged."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_training import COUNT, LIMIT, UPDATES, training_of
from typer.testing import CliRunner

import noether_torch
from noether_core.cli import app
from noether_core.emit.unmerged import read_unmerged
from noether_core.errors import RunFormatError
from parity_tests.drawn_trainings import Result, expected, read_result
from parity_tests.processes import Group

MISSED = 4  # the update at whose end a process is away; both callbacks' intervals end there


@pytest.fixture(scope="module", params=["torch", "jax"])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """Return processes that go on after each test: it leaves them alive and not stopped."""
    with Group(request.param, COUNT) as group:
        yield group


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return expected(training_of(), noether_torch.Run, tmp_path_factory.mktemp("one"))


def start(group: Group, path: Path) -> None:
    """Start the run in each process, once all have done everything before, without haste."""
    if not hasattr(group, "is_warm"):
        group.values("from tests.fault_training import Part, UPDATES")
        group.values(f"part = Part(Run, {str(path / 'warm')!r}, index, 60.0); part.go(1, UPDATES); part.run.finish()")
        group.is_warm = True  # type: ignore[attr-defined]
    group.values(f"part = Part(Run, {str(path / 'run')!r}, index)")


def assert_missed(answers: list[dict[str, Any]], away: int) -> None:
    for answer in answers:
        assert answer.get("missing") == [away], answers
        assert answer["seconds"] < LIMIT + 4, answers
        assert "noether-parity merge" in answer["error"], answer


def merge(path: Path) -> str:
    merged = CliRunner().invoke(app, ["merge", str(path)])
    assert merged.exit_code == 0, merged.output
    return merged.output


@pytest.mark.sweep(3)
@pytest.mark.parametrize("away", [0, 2])
@pytest.mark.parametrize("when", ["before", "within"])
def test_a_stopped_process_is_named_and_what_it_missed_is_merged(
    group: Group, away: int, when: str, wanted: Result, tmp_path: Path
) -> None:
    others = [index for index in range(COUNT) if index != away]
    start(group, tmp_path)
    path = tmp_path / "run"
    group.values(f"part.go(1, {MISSED - 1})")
    if when == "within":
        group.tell(away, source=f"part.go({MISSED}, {MISSED})")
        time.sleep(0.5)
    group.send_signal(away, signal.SIGSTOP)
    try:
        answers = group.each(f"part.go({MISSED}, {MISSED})", others)
    finally:
        group.send_signal(away, signal.SIGCONT)
    assert_missed(answers, away)
    assert all("'x', 'y', 'fixed/array'" in answer["text"] for answer in answers), answers
    if when == "before":
        group.tell(away, source=f"part.go({MISSED}, {MISSED})")
    late = group.answer(away)
    assert "ProcessesMissingError" in late["error"], late
    saved = sorted(file.name for file in (path / "unmerged").rglob("*.safetensors"))
    saved = [name for name in saved if "before" not in name]  # of the interval before, which is in the log
    assert saved == [f"{index}-of-{COUNT}.safetensors" for index in range(COUNT)]
    group.values(f"part.go({MISSED + 1}, UPDATES)")
    group.values("part.run.finish()")
    assert read_result(path) != wanted
    assert "merged" in merge(path)
    assert read_result(path) == wanted


@pytest.mark.sweep(1)
@pytest.mark.parametrize("seed", range(20))
def test_stopped_at_any_moment_nothing_is_lost(group: Group, seed: int, wanted: Result, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    start(group, tmp_path)
    pauses = rng.choice([0, 0, 0.05, 0.2], (COUNT, UPDATES)).tolist()
    group.tell_all(source=f"value = part.stumble({pauses}[index])")
    away = int(rng.integers(COUNT))
    time.sleep(rng.uniform(0, 0.7))
    group.send_signal(away, signal.SIGSTOP)
    try:
        time.sleep(rng.choice([0.3, LIMIT + 1, 2 * LIMIT + 1]))
    finally:
        group.send_signal(away, signal.SIGCONT)
    answers = group.answers()
    assert not any("error" in answer for answer in answers), answers
    assert {len(answer["value"]) for answer in answers} <= {0, 1, 2, 3, 4, 5}
    path = tmp_path / "run"
    CliRunner().invoke(app, ["merge", str(path)])
    assert read_result(path) == wanted, answers


def wait_until_saved(newest: Path, update: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(RunFormatError):  # between two files there is none of this name
            if read_unmerged(newest).iteration.update == update:
                return
        time.sleep(0.01)
    raise AssertionError(f"nothing of update {update} in {newest}")


@pytest.mark.sweep(2)
@pytest.mark.parametrize("front_end", ["torch", "jax"])
@pytest.mark.parametrize("away", [0, 2])
def test_what_a_killed_process_had_is_merged(front_end: str, away: int, wanted: Result, tmp_path: Path) -> None:
    others = [index for index in range(COUNT) if index != away]
    with Group(front_end, COUNT) as group:
        start(group, tmp_path)
        path = tmp_path / "run"
        group.values(f"part.go(1, {MISSED - 1})")
        group.tell(away, source=f"part.go({MISSED}, {MISSED})")
        wait_until_saved(path / "unmerged" / f"{away}-of-{COUNT}.safetensors", MISSED)
        if (front_end, away) == ("jax", 0):  # JAX ends all processes when the first one is gone
            group.send_signal(away, signal.SIGSTOP)
            group.tell_all(others, source=f"part.go({MISSED}, {MISSED})")
            time.sleep(1.0)
            group.send_signal(away, signal.SIGKILL)
            for index in others:
                group.processes[index].wait(60)
        else:
            group.send_signal(away, signal.SIGKILL)
            assert_missed(group.each(f"part.go({MISSED}, {MISSED})", others), away)
            ends = group.each("part.run.finish()", others)
            assert all("ProcessesMissingError" in answer["error"] for answer in ends), ends
    merge(path)
    entries, files = read_result(path)
    assert entries == [entry for entry in wanted[0] if f"update: {MISSED}" in entry or "update: 2" in entry]
    assert files == {name: arrays for name, arrays in wanted[1].items() if f"_U{MISSED}_" in name}
