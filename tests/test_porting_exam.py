"""Ask the examiner's questions in small: one correct pair, and a bug on either side, through run directories and back."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("jax")
pytest.importorskip("torch")

from benchmarks.porting_exam.bug import PAIRS, bugs
from benchmarks.porting_exam.examine import compare_correct, examine
from benchmarks.porting_exam.page import page
from noether_core.parity.divergence import STAGES
from noether_core.parity.divergence.causes.names import CAUSES


def test_each_bug_has_a_truth_that_can_be_said() -> None:
    table = bugs()
    assert len({bug.id for bug in table}) == len(table) >= 80
    for bug in table:
        assert set(bug.changes) <= set(bug.pair.options), bug.id
        assert any(bug.pair.options[name] != value for name, value in bug.changes.items()), bug.id
        assert set(bug.causes.split()) <= set(CAUSES), bug.id
        assert {key.partition("/")[0] for key in bug.keys.split()} <= set(STAGES), bug.id


def test_a_correct_pair_is_the_same_and_a_bug_of_either_side_is_found(tmp_path: Path) -> None:
    correct = compare_correct(tmp_path, PAIRS["tagger"], 0)
    assert correct.outcome == "same", correct.sentence
    chosen = [bug for bug in bugs() if bug.id in ("tagger-weights-not-in-mean", "tagger-mean-over-all")]
    findings = [examine(tmp_path, bug) for bug in chosen]
    for finding in findings:
        assert finding.key_right, finding.sentence
        assert finding.cause == "loss-reduction"
        assert finding.culprit_right
    text = page(findings, {"tagger": [correct]}, "python -m benchmarks.porting_exam")
    assert "| tagger | 1 of 1 (100 %) |" in text
    assert f"of {len(bugs())} bugs {len(bugs()) - 2} were not asked" in text
