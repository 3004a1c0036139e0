"""A run that fails leaves a capsule: the newest values of each key, and what happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capsule_cases import capsules, ended, rows, steps, the_capsule
from hook_cases import NAN, array, each_front_end, every, losses, train

import noether_torch
from noether_core import NoetherError, NonFiniteError, read_run
from noether_core.emit.capsule import read_capsule
from noether_core.flight_recorder import STEPS

# ------------------------------------------------------------------ when


@each_front_end
def test_a_value_that_is_not_finite_leaves_one_capsule(front_end: Any, tmp_path: Path) -> None:
    values = [1.0, 2.0, NAN, 4.0]
    with pytest.raises(NonFiniteError) as caught:
        train(front_end, tmp_path, [every(2, nonfinite="raise")], losses(front_end, *values))
    capsule = the_capsule(tmp_path)
    assert caught.value.capsule == capsule.path
    assert caught.value.__notes__ == [f"the newest values of all keys: noether-parity show {str(capsule.path)!r}"]
    assert str(rows(capsule)) == str({"loss": [((number + 1, 0), value) for number, value in enumerate(values)]})
    about = capsule.about
    assert about["reason"]["kind"] == "NonFiniteError"
    assert "first at update 3" in about["reason"]["message"]
    assert about["iteration"] == {"epoch": 0, "update": 4, "sample": 4}
    assert "every_n_updates: 2" in about["config"]
    assert about["versions"]["numpy"] == np.__version__
    assert (about["process"], about["pid"], about["notes"]) == ([0, 1], os.getpid(), [])
    assert about["start"]
    assert capsule.path.name.startswith("E0_U4_S4-")


@each_front_end
def test_outside_of_a_with_block_it_is_there_when_the_step_raises(front_end: Any, tmp_path: Path) -> None:
    run = front_end.Run(tmp_path, [every(1, nonfinite="raise")])
    run.start()
    for first, count in ((0, 20), (21, 9)):
        steps(front_end, count, first)(run)
        with pytest.raises(NonFiniteError) as caught:
            run.step({"loss": array(front_end, NAN)})
        assert caught.value.capsule is not None
        assert [step for step, _ in rows(read_capsule(caught.value.capsule))["loss"]] == [
            (update, 0) for update in range(1, first + count + 2)
        ]
    run.finish()
    assert len(capsules(tmp_path)) == 2


@each_front_end
def test_an_interval_that_training_s_end_cuts_short_leaves_one_too(front_end: Any, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(front_end, tmp_path, [every(2, nonfinite="raise")], losses(front_end, 1.0, 2.0, NAN))
    assert caught.value.capsule == the_capsule(tmp_path).path


@each_front_end
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, MemoryError, SystemExit])
def test_an_exception_leaves_one(front_end: Any, kind: type[BaseException], tmp_path: Path) -> None:
    run = front_end.Run(tmp_path, [every(3)], accumulation_steps=2)
    error = ended(run, kind(3), steps(front_end, 99))
    capsule = the_capsule(tmp_path)
    assert rows(capsule)["loss"] == [((number // 2 + 1, number % 2), float(number)) for number in range(99)][-STEPS:]
    assert error.__notes__ == [f"the newest values of all keys: noether-parity show {str(capsule.path)!r}"]
    assert capsule.about["reason"]["kind"] == kind.__name__
    assert "capsule_cases.py" in capsule.about["reason"]["traceback"]
    assert capsule.about["accumulation_step"] == 1


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(None), GeneratorExit()])
def test_what_is_no_failure_leaves_none(error: BaseException, tmp_path: Path) -> None:
    assert ended(noether_torch.Run(tmp_path / "a", [every(3)]), error, steps(noether_torch, 2)) is error
    train(noether_torch, tmp_path / "b", [every(3)], losses(noether_torch, 1, 2))
    assert list(tmp_path.glob("*/capsules")) == []


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(noether_torch, tmp_path, [every(1, nonfinite="raise")], losses(noether_torch, NAN), flight_recorder=0)
    assert caught.value.capsule is None
    assert not (tmp_path / "capsules").exists()


@pytest.mark.parametrize("steps", [-1, True, 1.5, "32", 5000])
def test_other_numbers_of_steps_are_refused(steps: Any, tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match="flight_recorder="):
        noether_torch.Run(tmp_path, [], flight_recorder=steps)


UNHANDLED = """
import sys
from noether_torch import Run
run = Run(sys.argv[1], [{"every_n_updates": 10, "keys": ["loss"]}])
run.start()
for number in range(25):
    run.step({"loss": float(number)})
raise OSError("the data is gone")
"""


def test_an_exception_that_ends_the_process_leaves_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", UNHANDLED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: the data is gone\n")
    capsule = the_capsule(tmp_path)
    assert capsule.about["reason"]["message"] == "the data is gone"
    assert rows(capsule)["loss"] == [((number + 1, 0), float(number)) for number in range(25)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_a_fork_s_child_leaves_none(tmp_path: Path) -> None:
    run = noether_torch.Run(tmp_path, [every(3)])
    run.start()
    run.step({"loss": 1.0})
    child = os.fork()
    if not child:
        os._exit(0 if run.flight_recorder.write(RuntimeError("x")) is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    run.finish()
    assert not (tmp_path / "capsules").exists()


def test_a_run_writes_a_bounded_number(tmp_path: Path) -> None:
    run = noether_torch.Run(tmp_path, [every(1, nonfinite="raise")])
    assert run.flight_recorder.write("SIGTERM") is None  # it has not begun
    run.start()
    for _ in range(30):
        with pytest.raises(NonFiniteError):
            run.step({"loss": NAN})
    run.finish()
    assert run.flight_recorder.write("SIGTERM") is None
    assert len(capsules(tmp_path)) == 16


def test_a_signal_s_name_is_a_reason(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [every(3)]) as run:
        run.step({"loss": 1.0})
        path = run.flight_recorder.write("SIGTERM")
    assert path is not None
    assert read_capsule(path).about["reason"] == {"kind": "SIGTERM", "message": "", "traceback": ""}


# ------------------------------------------------------------------ it hides nothing


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Closed(Exception):
    def add_note(self, note: str) -> None:
        raise ValueError("no notes")


@pytest.mark.parametrize("error", [Unspeakable(), Closed(), RuntimeError("\x1b[31m" + "x" * 10**7)])
def test_whatever_is_raised_is_what_comes_out(error: Exception, tmp_path: Path) -> None:
    assert ended(noether_torch.Run(tmp_path, [every(3)]), error, steps(noether_torch, 2)) is error
    capsule = the_capsule(tmp_path)
    assert "\x1b" not in capsule.about["reason"]["message"]
    assert capsule.path.stat().st_size < 500_000


def test_a_capsule_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    path, gone = tmp_path / "run", RuntimeError("gone")
    path.mkdir()
    (path / "capsules").touch()
    assert ended(noether_torch.Run(path, [every(3)]), gone, steps(noether_torch, 2)) is gone
    assert gone.__notes__[0].startswith("no capsule of the newest values could be written: ")
    (path / "capsules").unlink()
    assert len(read_run(path).series["loss/U3"]) == 1


def test_values_that_cannot_be_read_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def newest() -> Any:
        raise RuntimeError("device-side assert")

    run, gone = noether_torch.Run(tmp_path, [every(3)]), RuntimeError("gone")
    monkeypatch.setattr(run.callbacks[0].sources[0], "newest", newest)
    assert ended(run, gone, steps(noether_torch, 2)) is gone
    capsule = the_capsule(tmp_path)
    assert "device-side assert" in capsule.about["notes"][0]
    assert capsule.values == []
