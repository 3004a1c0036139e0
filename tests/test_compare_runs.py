"""Check what comparing two runs says: of the same, of what differs, and of what cannot be compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from port_training import train

from noether_core.cli import main
from noether_core.errors import ConfigFileError, RunFormatError
from noether_core.parity.between_runs import assert_same_training, compare_trainings
from noether_core.parity.between_runs.aligned import Aligned, matching_of
from noether_core.parity.between_runs.asserting import NotTheSameTrainingError
from noether_core.parity.between_runs.json_form import ComparisonForm, json_schema
from noether_core.parity.between_runs.views import Renamed
from noether_core.parity.divergence import Comparison, MemoryTraining
from noether_core.probes import read_training
from noether_core.twin import TwinError

ROOT = Path(__file__).parents[1]
AXES = {"first.weight": {"path": "mixing", "axes": [1, 0]}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that trains with some arguments, once, and returns the run directory."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def run(label: str, **arguments: Any) -> Path:
        key = (label, repr(arguments))
        if key not in made:
            made[key] = train(root / str(len(made)) / label, **arguments)
        return made[key]

    return run


# ------------------------------------------------------------------ same, differs, cannot say


def test_the_same_training_is_the_same(runs: Callable[..., Path]) -> None:
    found = compare_trainings(runs("a"), runs("b", name="second"))
    assert (found.outcome, found.exit_code, found.same_through) == ("same", 0, 4)
    assert found.sentence.startswith("Same through update 4")
    assert found.stages == ("data", "param", "act", "loss", "grad", "update", "opt")


def test_a_rate_that_differs_is_found_and_named(runs: Callable[..., Path]) -> None:
    found = compare_trainings(runs("a"), runs("b", lr=0.1001))
    assert (found.outcome, found.exit_code) == ("differs", 1)
    assert found.first is not None
    assert (found.first.update, found.first.stage) == (1, "update")
    assert [cause.id for cause in found.causes][:1] == ["learning-rate"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"seed": 1}, "differs", "start from other weights"),
    ({"batches": 1}, "differs", "batches are not the same"),
    ({"seed": 1, "batches": 1}, "differs", "weights they start from are others, too"),
    ({"probes": False}, "cannot say", "b has no probed updates. Track `probe("),
    ({"start": 100}, "cannot say", "no update is in both. a has updates 1 to 4, b has updates 101 to 104"),
    ({"own": True}, "cannot say", "1 parameters of a ('first.weight') and 1 of b ('mixing') have no partner. Map them"),
]


@pytest.mark.parametrize(("arguments", "outcome", "says"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_use_ends_in_a_sentence_that_says_so(
    runs: Callable[..., Path], arguments: dict[str, Any], outcome: str, says: str
) -> None:
    found = compare_trainings(runs("a"), runs("b", **arguments))
    assert found.outcome == outcome
    assert says in found.sentence


WARNED: list[tuple[dict[str, Any], str]] = [
    ({"updates": 2}, "b ends at update 2, a at 4: what both have was compared, through update 2"),
    ({"accumulation": 2}, "other settings: accumulation_steps is 1 in a and 2 in b"),
    ({}, "no twins: the noise is taken from measured floors"),
]


@pytest.mark.parametrize(("arguments", "says"), WARNED, ids=lambda value: str(value)[:30])
def test_what_a_person_should_know_is_said(runs: Callable[..., Path], arguments: dict[str, Any], says: str) -> None:
    found = compare_trainings(runs("a"), runs("b", **arguments))
    assert any(says in warning for warning in found.warnings), found.warnings


def test_a_run_that_ends_early_is_not_called_the_same(
    runs: Callable[..., Path], parity: Callable[..., tuple[int, str, str]]
) -> None:
    a, b = runs("a"), runs("b", updates=2)
    says = "Same through update 2, where b ends, while a goes on to 4, so the rest cannot be said: "
    for pair in ((a, b), (b, a)):
        found = compare_trainings(*pair)
        assert (found.outcome, found.exit_code, found.same_through) == ("cannot say", 2, 2)
        assert found.sentence.startswith(says)
        assert "--through 2" in found.sentence
        with pytest.raises(NotTheSameTrainingError, match="where b ends"):
            assert_same_training(*pair)
        with pytest.raises(NotTheSameTrainingError, match="where b ends, while a goes on to 3"):
            assert_same_training(*pair, through=3)
        assert assert_same_training(*pair, through=2).sentence.startswith("Same through update 2: ")
        assert assert_same_training(*pair, through=1).compared < assert_same_training(*pair, through=2).compared
        assert parity("compare", *pair)[0] == 2
        code, out, _ = parity("compare", *pair, "--through", "2")
        assert (code, out[:22]) == (0, "Same through update 2:")
    assert compare_trainings(a, runs("b", updates=2, lr=0.2)).outcome == "differs"


def probing(updates: range, **config: Any) -> MemoryTraining:
    arrays = {update: {"loss/total": np.float32(update)} for update in updates}
    callbacks = [{"kind": "ProbeCallback", **config}] if config else []
    return MemoryTraining("few" if config else "many", "", arrays, {"callbacks": callbacks})


EVERY = [
    (range(10, 1001, 10), {"every_n_updates": 10, "arrays": 0}, "same"),  # of 1,005, as the other one
    (range(10, 991, 10), {"every_n_updates": 10, "arrays": 0}, "cannot say"),
    (range(1, 13), {"every_n_updates": 2000}, "same"),
    (range(1, 12), {"every_n_updates": 2000}, "cannot say"),
    (range(1, 13), {"every_n_updates": 2000, "arrays_at": [500]}, "cannot say"),
    (range(1, 13), {"every_n_updates": "some"}, "cannot say"),
]


@pytest.mark.parametrize(("updates", "config", "outcome"), EVERY)
def test_a_run_that_probes_fewer_updates_is_no_shorter(updates: range, config: dict[str, Any], outcome: str) -> None:
    few, many = probing(updates, **config), probing(range(1, 1006))
    assert {compare_trainings(few, many).outcome, compare_trainings(many, few).outcome} == {outcome}


def test_a_path_that_is_no_run_is_an_error(runs: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RunFormatError):
        compare_trainings(runs("a"), tmp_path)


# ------------------------------------------------------------------ names


def test_other_names_are_paired_by_themselves(runs: Callable[..., Path]) -> None:
    found = compare_trainings(runs("a"), runs("b", name="head"))
    assert found.outcome == "same", found.sentence
    assert not any("head" in warning for warning in found.warnings), found.warnings
    differs = compare_trainings(runs("a"), runs("b", name="head", lr=0.2))
    assert differs.first is not None
    assert differs.first.key == "update/first.weight"


def test_a_mapping_pairs_what_is_left(runs: Callable[..., Path], tmp_path: Path) -> None:
    a, b = runs("a"), runs("b", own=True)
    left = compare_trainings(a, b)
    (proposal,) = [warning for warning in left.warnings if warning.startswith("a mapping file")]
    assert "first.weight: ''  # (8, 4); of that size: mixing" in proposal
    assert compare_trainings(a, b, mapping=AXES).outcome == "same"
    path = tmp_path / "names.yaml"
    path.write_text(json.dumps(AXES), encoding="utf-8")
    assert compare_trainings(a, b, mapping=path).outcome == "same"
    wrong = compare_trainings(a, runs("b", own=True, lr=0.2), mapping=AXES)
    assert wrong.first is not None
    assert wrong.first.key == "update/first.weight"
    with pytest.raises(ConfigFileError, match=r"nothing\.there"):
        compare_trainings(a, b, mapping={"nothing.there": "mixing"})


def test_what_is_renamed_is_still_read_by_columns(runs: Callable[..., Path]) -> None:
    a, b = read_training(runs("a")), read_training(runs("b", name="head"))
    matching = matching_of(a, b)
    assert matching is not None
    aligned = Aligned(b, matching)
    updates, columns = aligned.statistics_columns("grad/second.weight")
    assert updates.tolist() == [1, 2, 3, 4]
    assert columns.norm.tolist() == b.statistics_columns("grad/head.weight")[1].norm.tolist()
    assert aligned.array_updates() == b.array_updates()
    view = Renamed(b, lambda key: key.replace("head", "second"))
    assert "grad/second.weight" in view.keys(1)
    assert view.statistics_columns("grad/second.weight")[0].tolist() == [1, 2, 3, 4]
    assert view.statistics(2, "loss/total") == b.statistics(2, "loss/total")
    in_memory_alone = Renamed(in_memory(runs("a")), str)
    assert not hasattr(in_memory_alone, "statistics_columns")
    assert not hasattr(in_memory_alone, "array_updates")


# ------------------------------------------------------------------ twins that are given


def nudged(training: MemoryTraining, size: float, label: str = "twin") -> MemoryTraining:
    def moved(key: str, array: np.ndarray) -> np.ndarray:
        return array if key.startswith("data/") else array * np.float32(1 + size)

    arrays = {
        update: {key: moved(key, array) for key, array in keys.items()} for update, keys in training.arrays.items()
    }
    return MemoryTraining(label, training.framework, arrays)


def in_memory(path: Path) -> MemoryTraining:
    read = read_training(path)
    arrays = {update: {key: read.array(update, key) for key in read.keys(update)} for update in read.updates()}
    return MemoryTraining(read.label, read.framework, arrays, read.settings)


def test_twins_that_are_given_are_the_noise(runs: Callable[..., Path]) -> None:
    a = in_memory(runs("a"))
    b = nudged(a, 1e-5, "b")
    assert compare_trainings(a, b).outcome == "differs"
    found = compare_trainings(a, b, twins=[nudged(a, 1e-5)])
    assert (found.outcome, found.has_twins) == ("same", True)


@pytest.mark.parametrize("arguments", [{"seed": 1}, {"batches": 1}])
def test_a_twin_of_another_training_is_refused(runs: Callable[..., Path], arguments: dict[str, Any]) -> None:
    with pytest.raises(TwinError, match="is a twin of neither training"):
        compare_trainings(runs("a"), runs("b", lr=0.2), twins=[runs("c", **arguments)])


# ------------------------------------------------------------------ assert_same_training


def test_the_message_of_an_assertion_is_one_to_act_on(runs: Callable[..., Path]) -> None:
    assert assert_same_training(runs("a"), runs("b")).outcome == "same"
    a, b = runs("a"), runs("b", lr=0.2)
    with pytest.raises(AssertionError) as caught:
        assert_same_training(a, b)
    assert isinstance(caught.value, NotTheSameTrainingError)
    text = str(caught.value)
    assert text.splitlines()[0] == caught.value.comparison.sentence
    assert "update 1  update/first.weight" in text
    assert "[learning-rate]" in text
    assert f"noether-parity compare {a} {b} --report comparison.html" in text
    assert "noether-parity calibrate" in text


def test_what_cannot_be_said_is_no_success(runs: Callable[..., Path]) -> None:
    with pytest.raises(NotTheSameTrainingError, match="Cannot say"):
        assert_same_training(runs("a"), runs("b", probes=False))


# ------------------------------------------------------------------ the command


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.delenv("COLUMNS", raising=False)  # which libraries set

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["noether-parity", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(("arguments", "code"), [({}, 0), ({"lr": 0.2}, 1), ({"start": 100}, 2)])
def test_the_exit_code_says_it(
    runs: Callable[..., Path], parity: Callable[..., tuple[int, str, str]], arguments: dict[str, Any], code: int
) -> None:
    a, b = runs("a"), runs("b", **arguments)
    found = compare_trainings(a, b)
    exit_code, out, _ = parity("compare", a, b)
    assert exit_code == code
    assert out.startswith(found.sentence[:80])
    exit_code, out, _ = parity("compare", a, b, "--json")
    assert exit_code == code
    document = json.loads(out)
    assert document == found.as_json()
    assert ComparisonForm.model_validate(document).exit_code == code


def test_the_screen_shows_the_ladder_and_the_causes(
    runs: Callable[..., Path], parity: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    _, out, _ = parity("compare", runs("a"), runs("b", lr=0.2), "--report", tmp_path / "out.html")
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "✓" in rows["data"]
    assert "not in both" in rows["clip"]
    assert "update 1" in rows["update"]
    assert "update/first.weight" in rows["update"]
    assert "Likely causes" in out
    assert (tmp_path / "out.html").read_text(encoding="utf-8").startswith("<!")


def test_names_of_strangers_steer_no_terminal(
    runs: Callable[..., Path], parity: Callable[..., tuple[int, str, str]]
) -> None:
    name = "head\x1b[31m[red]"
    code, out, _ = parity("compare", runs("a[red]", name=name), runs("b", name=name, lr=0.2))
    assert code == 1
    assert "\x1b" not in out
    assert "update/head\\x1b[31m[red].weight" in out
    assert "a[red] beside b" in out


def test_wrong_arguments_are_one_sentence(
    runs: Callable[..., Path], parity: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, err = parity("compare", runs("a"), tmp_path / "nothing")
    assert (code, err.count("Traceback")) == (2, 0)
    assert "nothing" in err


# ------------------------------------------------------------------ the schema


def test_the_schema_in_the_docs_is_that_of_the_code() -> None:
    path = ROOT / "docs" / "compare.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == json_schema()


def test_numbers_that_json_has_not_are_words() -> None:
    found = Comparison("same", "Same.", ("a", "b"), settings=({"x": float("nan"), "y": float("-inf")}, {}))
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert document["settings"][0] == {"x": "NaN", "y": "-Infinity"}
    assert ComparisonForm.model_validate(document).settings[0]["x"] == "NaN"
