"""Check what a comparison says beside its answer: of dtypes, of a run under way, of what is not judged, of NaN; quietly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from port_training import train

import noether_torch
from noether_core.parity.between_runs import as_text, compare_pair, compare_trainings, paired, show_comparison
from noether_core.parity.divergence import Comparison, Divergence, MemoryTraining, compare
from noether_core.report.report import write_report
from noether_core.report.verdict import verdict

Change = Callable[[int, str, Any], Any]
SHAPES = {"weight": (5, 8), "bias": (5,)}


def unchanged(update: int, key: str, value: Any) -> Any:
    del update, key
    return value


def training(label: str, framework: str, change: Change = unchanged, rounding: float = 0.0) -> MemoryTraining:
    """Train a layer by momentum, as NumPy computes it, and change what is recorded."""
    drawn = np.random.default_rng(0)
    weight, momentum = drawn.standard_normal((5, 8)) + rounding, np.zeros((5, 8))
    updates: dict[int, dict[str, Any]] = {}
    for update in range(1, 5):
        x = drawn.standard_normal((8, 8))
        out = x @ weight.T
        grad = out.T @ x / 8
        momentum = 0.9 * momentum + grad
        values = {
            "data/x": x, "param/layer.weight": weight, "act/layer": out, "loss/total": np.mean(out**2),
            "grad/layer.weight": grad, "grad/layer.bias": out.mean(0), "clip/layer.weight": grad / 2,
            "clip/layer.bias": out.mean(0) / 2, "update/layer.weight": -0.01 * momentum,
            "opt/mu/layer.weight": momentum, "opt/layer.running_mean": x.mean(0),
        }  # fmt: skip
        whole = {"data/y": np.arange(8), **{key: np.asarray(value, np.float32) for key, value in values.items()}}
        updates[update] = {key: change(update, key, value) for key, value in whole.items()}
        weight = weight - 0.01 * momentum
    return MemoryTraining(label, framework, updates)


# ------------------------------------------------------------------ dtypes


def cast(dtype: Any, *stages: str) -> Change:
    return lambda _, key, value: value.astype(dtype) if key.startswith(stages) else value


DTYPES: list[tuple[Change, list[str]]] = [
    (unchanged, []),
    (cast(np.float64, "param"), ["other dtypes: float32 in a and float64 in b in 1 key, such as param/layer.weight"]),
    (cast(np.float64, "grad", "clip"), ["other dtypes: float32 in a and float64 in b in 4 keys, such as grad/layer.weight"]),
    (cast(np.float64, "data/y"), ["other dtypes: int64 in a and float64 in b in 1 key, such as data/y"]),
    (cast(np.int32, "data/y"), []),  # JAX has no others
]  # fmt: skip


@pytest.mark.parametrize(("change", "notes"), DTYPES)
def test_other_dtypes_are_said(change: Change, notes: list[str]) -> None:
    found = compare(training("a", "torch"), training("b", "jax", change))
    assert found.outcome == "same", found.sentence
    said = [note for note in found.warnings if note.startswith("other dtypes")]
    assert [note.partition(". They were")[0] for note in said] == notes


# ------------------------------------------------------------------ a run under way


def test_a_run_under_way_is_compared_as_far_as_it_is(tmp_path: Path) -> None:
    callbacks: list[Any] = [{"kind": "ProbeCallback", "every_n_updates": 1}]
    for name in ("a", "b"):
        with noether_torch.Run(tmp_path / name, callbacks) as run:
            if name == "b":
                empty = compare_trainings(tmp_path / "a", tmp_path / "b")
            for number in range(3):
                run.step(noether_torch.probe(run.probes_due, losses=1.0 + number, grads={"w": torch.ones(3)}))
                if name == "b" and number == 1:
                    run.save_state(tmp_path / "state")  # which waits for the disk
                    under_way = compare_trainings(tmp_path / "a", tmp_path / "b")
    note = "b is still being written: it was compared as far as it is saved"
    assert empty.outcome == "cannot say"
    assert "b has no probed updates yet, and is still being written" in empty.sentence
    assert "Track" not in empty.sentence
    assert under_way.sentence.startswith("Same through update 2")
    assert note in under_way.warnings
    ended = compare_trainings(tmp_path / "a", tmp_path / "b")
    assert ended.sentence.startswith("Same through update 3")
    assert note not in ended.warnings


def test_a_run_that_ended_before_it_probed_has_probes_already(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path / "b", [{"kind": "ProbeCallback", "every_n_updates": 1}]) as run:
        run.step({"loss": torch.ones(())})
    found = compare_trainings(train(tmp_path / "a"), tmp_path / "b")
    assert found.outcome == "cannot say"
    assert "b has no probed updates, though it has a ProbeCallback" in found.sentence
    assert "Track" not in found.sentence


# ------------------------------------------------------------------ the ladder


def rows_of(found: Comparison) -> dict[str, str]:
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as captured:
        console.print(show_comparison(found))
    return {line.split("│")[1].strip(): line for line in captured.get().splitlines() if line.startswith("│")}


def test_what_comes_after_the_first_difference_is_never_the_same() -> None:
    first = Divergence(3, "act", "act/layer", 1.0, 1e-6)
    later = Divergence(4, "grad", "grad/w", 1.0, 1e-6)
    stages = ("data", "param", "act", "loss", "grad", "update")
    found = Comparison(
        "differs", "They part.", ("a", "b"), first=first, differences=(first, later), compared=9, stages=stages
    )
    rows = rows_of(found)
    assert "✓ through update 3" in rows["data"]
    assert "✓ through update 3" in rows["param"]
    assert "not judged after the first difference" in rows["loss"]
    assert "update 4" in rows["grad"]
    assert "not judged after the first difference" in rows["update"]
    assert "not in both" in rows["opt"]
    rungs = {rung["stage"]: rung for rung in verdict(found, stages)["ladder"]}
    assert {stage: rung["state"] for stage, rung in rungs.items()} == {
        "data": "same", "param": "same", "act": "first", "loss": "after", "grad": "after", "clip": "missing",
        "update": "after", "opt": "missing",
    }  # fmt: skip
    assert (rungs["data"]["update"], rungs["grad"]["update"]) == (3, 4)
    whole = rows_of(Comparison("same", "The same.", ("a", "b"), compared=9, stages=stages))
    assert "✓ through" not in whole["data"]
    assert "✓" in whole["update"]


# ------------------------------------------------------------------ NaN and infinities

VALUES = {"NaN": np.nan, "infinity": np.inf, "the largest": 3.4e38}
POISONED = ["data/x", "param/layer.weight", "act/layer", "loss/total", "grad/layer.weight", "clip/layer.weight",
            "update/layer.weight", "opt/mu/layer.weight", "opt/layer.running_mean", ""]  # fmt: skip


def poison(key: str, value: float, share: float, since: int) -> Change:
    def change(update: int, of: str, array: Any) -> Any:
        if update < since or array.dtype.kind != "f" or not of.startswith(key):
            return array
        poisoned = array.copy()
        poisoned.reshape(-1)[: max(1, int(share * array.size))] = value
        return poisoned

    return change


@pytest.mark.parametrize("key", POISONED)
@pytest.mark.parametrize("value", VALUES)
def test_what_is_not_finite_is_compared_without_a_warning(key: str, value: str) -> None:
    """Warnings are errors in these tests, NumPy's too."""
    for share, since in ((1.0, 1), (0.0, 3)):
        change = poison(key, VALUES[value], share, since)
        one, other, twin = (
            training("one", "torch"),
            training("other", "jax", change),
            training("twin", "jax", change, 1e-7),
        )
        for twins in ((), (twin,)):
            found = compare_pair(paired(one, other, (), twins))
            assert as_text(found)
            assert found.outcome == "differs", found.sentence
            assert found.first is not None
            assert found.first.update <= since
            listed = {each.key for each in found.differences if each.distance == np.inf}
            if value != "the largest":  # what is NaN in one alone is a difference, whatever comes before it
                assert listed == {name for name in other.arrays[4] if name.startswith(key) and name != "data/y"}
            both = compare_pair(paired(training("one", "torch", change), other, (), twins))
            assert both.outcome == "same", both.sentence


def test_runs_with_nan_are_compared_and_drawn_without_a_warning(tmp_path: Path) -> None:
    for name, values in {"a": [1.0] * 4, "b": [1.0, np.nan, np.inf, 1.0], "c": [1.0, np.nan, np.inf, 1.0]}.items():
        with noether_torch.Run(tmp_path / name, [{"kind": "ProbeCallback", "every_n_updates": 1, "arrays": 2}]) as run:
            for value in values:
                grads = {"layer.weight": torch.full((4, 3), value), "layer.bias": torch.tensor([1.0, value, 2.0])}
                pieces: Any = {"losses": value, "grads": grads, "params": grads, "updates": grads}
                run.step(noether_torch.probe(run.probes_due, batch=torch.ones(3), **pieces))
    differs, same = (compare_trainings(tmp_path / first, tmp_path / "b") for first in ("a", "c"))
    assert (differs.outcome, same.outcome) == ("differs", "same")
    assert differs.sentence.startswith("Same through update 1. First differs at update 2")
    for found, first in ((differs, "a"), (same, "c")):
        assert rows_of(found)
        write_report([tmp_path / first, tmp_path / "b"], tmp_path / "page.html", found)
