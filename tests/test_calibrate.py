"""Check that one command makes a run's twins, and says what is wrong where a script makes none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from port_training import train

from noether_core.parity.between_runs import TwinError, calibrate, compare_trainings, find_twins
from noether_core.parity.between_runs.twin_check import problem_of_twin, usable_part
from noether_core.probes import read_training
from noether_core.twin import VARIABLE, Twin

SCRIPT = Path(__file__).with_name("port_training.py")


def script(path: Path, *options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), str(path), *options]


@pytest.fixture(autouse=True)
def _the_script_finds_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{SCRIPT.parents[1]}:{SCRIPT.parent}")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a run with two twins, and what the command said."""
    path, said = train(tmp_path_factory.mktemp("calibrated") / "run"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{SCRIPT.parents[1]}:{SCRIPT.parent}")
        calibrate(path, script(path), tell=said.append)
    return path, said


def test_twins_are_the_training_one_rounding_error_apart(calibrated: tuple[Path, list[str]]) -> None:
    path, said = calibrated
    run, (one, two) = read_training(path), find_twins(path)
    assert [(twin.seed, twin.rows) for twin in (one, two)] == [(1, False), (2, True)]
    assert "rows permuted" not in said[0]
    assert "rows permuted" in said[1]
    first = read_training(one.path)
    assert first.updates() == run.updates()
    assert first.statistics(1, "data/x") == run.statistics(1, "data/x")
    a, b = run.array(1, "param/first.weight"), first.array(1, "param/first.weight")
    assert a is not None
    assert b is not None
    assert 0 < abs(a - b).max() < 1e-7
    assert not any(key.startswith(("data/", "act/")) for key in usable_part(read_training(two.path), rows=True).keys(1))


def test_a_comparison_takes_the_twins_beside_a_run(calibrated: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, _ = calibrated
    assert compare_trainings(path, train(tmp_path / "b")).has_twins
    found = compare_trainings(train(tmp_path / "c", lr=0.1001), path)
    assert found.has_twins
    assert found.first is not None
    assert found.first.stage == "update"


def test_the_run_itself_is_left_as_it_was(calibrated: tuple[Path, list[str]]) -> None:
    path, _ = calibrated
    assert [each.name for each in (path / "starts").iterdir()] == ["1.json"]
    assert compare_trainings(path, path).outcome == "same"


def test_twins_that_are_there_are_not_made_again(calibrated: tuple[Path, list[str]]) -> None:
    path, _ = calibrated
    said: list[str] = []
    before = [(twin.path / "twin.json").stat().st_mtime_ns for twin in find_twins(path)]
    assert len(calibrate(path, ["no such program"], tell=said.append)) == 2
    assert [each.split(":")[0] for each in said] == ["twin 1 is there", "twin 2 is there"]
    assert [(twin.path / "twin.json").stat().st_mtime_ns for twin in find_twins(path)] == before
    with pytest.raises(TwinError, match="'no such program' cannot be run"):
        calibrate(path, ["no such program"], number=3, tell=said.append)


def test_twins_of_a_run_that_was_made_anew_are_refused(calibrated: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, _ = calibrated
    other = train(tmp_path / "run", seed=3)
    (path / "twins").rename(other / "twins")
    try:
        with pytest.raises(TwinError, match=r"is no twin of .*its weights at update 1 are others.*--again"):
            compare_trainings(other, path)
    finally:
        (other / "twins").rename(path / "twins")


WRONG = [
    (["--no-nudge"], "it is the run itself, bit for bit: no weights were nudged"),
    (["--no-redirect"], "ended with exit code 1 .* is being written, let the script open its run by `Run\\(twin_path"),
    (["--batches", "5"], "it had other batches"),
    (["--fail"], "ended with exit code 1 as it made twin 1"),
]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("options", "says"), WRONG)
def test_a_script_that_makes_no_twin_is_told_what_to_change(tmp_path: Path, options: list[str], says: str) -> None:
    path = train(tmp_path / "run")
    with pytest.raises(TwinError, match=says):
        calibrate(path, script(path, *options), tell=lambda _: None)
    assert find_twins(path) == ()
    assert [each.name for each in (path / "starts").iterdir()] == ["1.json"]


def test_rows_that_draw_random_numbers_of_their_own_make_no_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = train(tmp_path / "run", dropout=0.5)
    for seed, problem in ((1, ""), (2, "do the rows draw random numbers of their own (dropout)")):
        twin = Twin(path, path / "twins" / str(seed), seed, rows=seed == 2)
        twin.write()
        monkeypatch.setenv(VARIABLE, str(twin.path))
        train(path, dropout=0.5)
        found = problem_of_twin(read_training(path), read_training(twin.path), rows=twin.rows)
        assert problem in found
        assert bool(found) is bool(problem)


@pytest.mark.slow
def test_rows_that_draw_random_numbers_of_their_own_are_left_out(tmp_path: Path) -> None:
    path, said = train(tmp_path / "run", dropout=0.5), list[str]()
    assert len(calibrate(path, script(path, "--dropout", "0.5"), tell=said.append)) == 1
    assert "twin 2 is left out" in said[-1]
    assert "dropout" in said[-1]


def test_a_run_without_probes_needs_them_first(tmp_path: Path) -> None:
    path = train(tmp_path / "run", probes=False)
    with pytest.raises(TwinError, match="no probed updates"):
        calibrate(path, script(path))
    with pytest.raises(TwinError, match="got no command"):
        calibrate(train(tmp_path / "other"), [])
