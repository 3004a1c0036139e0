"""Without a `time_limit` a process waits 30 s for one that is stopped or killed, names it and its keys, and keeps its own."""

from __future__ import annotations

import contextlib
import inspect
import signal
from pathlib import Path

import pytest
from fault_training import COUNT, UPDATES

from noether_core.emit.unmerged import read_unmerged
from noether_core.run import Run
from parity_tests.processes import Group

BY_DEFAULT = 30.0  # seconds
BESIDE = 15.0  # what the rest of the call may take on a busy machine
MISSED = 4  # the update at whose end a process is away


def test_the_limit_is_30_seconds() -> None:
    assert inspect.signature(Run).parameters["time_limit"].default == BY_DEFAULT


@pytest.mark.slow
@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL], ids=lambda fault: fault.name)
@pytest.mark.parametrize("front_end", ["torch", "jax"])
def test_who_does_not_come_is_waited_for_as_long_as_that(front_end: str, fault: signal.Signals, tmp_path: Path) -> None:
    others, away = [0, 1], 2
    with Group(front_end, COUNT) as group:
        group.values("from tests.fault_training import Part, UPDATES")
        warm = f"Part(Run, {str(tmp_path / 'warm')!r}, index, 60.0)"
        group.values(f"part = {warm}; part.go(1, {UPDATES}); part.run.finish()")
        group.values(f"part = Part(Run, {str(tmp_path / 'run')!r}, index, None); part.go(1, {MISSED - 1})")
        group.send_signal(away, fault)
        try:
            answers = group.each(f"part.go({MISSED}, {MISSED})", others)
        finally:
            with contextlib.suppress(ProcessLookupError):
                group.send_signal(away, signal.SIGCONT)
    for answer in answers:
        assert answer.get("missing") == [away], answers
        assert answer["seconds"] < BY_DEFAULT + BESIDE, answers
        assert "'x', 'y', 'fixed/array'" in answer["text"], answers
        assert f"process {away}" in answer["text"] or f"processes {away}" in answer["text"], answers
        assert "noether-parity merge" in answer["error"], answers
    for index in others:
        files = [*(tmp_path / "run" / "unmerged").rglob(f"{index}-of-{COUNT}.safetensors")]
        assert [read_unmerged(file).iteration.update for file in files] == [MISSED], files
