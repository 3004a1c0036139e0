"""Check the page on planted bugs: what it counts, what it claims, and that results are kept and taken up again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("jax")
pytest.importorskip("torch")

from benchmarks.porting_bugs.families import BUGS, FAMILIES, WAYS
from benchmarks.porting_bugs.findings import NAMED, Finding
from benchmarks.porting_bugs.page import page
from benchmarks.results import Correct, kept

PAGE = Path(__file__).parents[1] / "docs" / "porting_bugs.md"
LEAST = {
    "update, stage and key": 0.95,
    f"a right cause among the first {NAMED}": 0.85,
    "transplanting names the culprit": 0.90,
}


written = pytest.mark.skipif(
    not PAGE.is_file(), reason="no page: `python -m benchmarks.porting_bugs --seeds 30` writes it"
)


def rates(text: str) -> dict[str, tuple[int, int]]:
    found = re.findall(r"^\| ([^|]+) \| (\d+) of (\d+) \(", text, re.MULTILINE)
    return {name: (int(right), int(count)) for name, right, count in found}


def finding(name: str, **changes: object) -> Finding:
    bug = BUGS[name]
    right = {"update": bug.first_update, "key": bug.keys[0], "causes": bug.causes, "culprit": bug.culprits[0]}
    return Finding(**{"name": name, "sentence": "said", "seconds": 0.1, **right, **changes})  # type: ignore[arg-type]


@written
def test_the_page_is_about_all_bugs_and_holds_what_is_claimed() -> None:
    found = rates(PAGE.read_text(encoding="utf-8"))
    for name, least in LEAST.items():
        right, count = found[name]
        assert count == len(BUGS)
        assert right >= least * count, name
    for name in (*FAMILIES, *WAYS):
        assert found[name] == (30, 30)


@written
def test_the_pages_rows_are_the_bugs_and_add_up_to_its_rates() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [
        re.split(r" \| ", line.strip("| "))
        for line in text.splitlines()
        if re.match(r"\| [a-z0-9-]+ \| (none|\d+:)", line)
    ]
    assert len(rows) == len(BUGS)
    found = rates(text)
    assert sum(row[4] == "yes" for row in rows) == found["update, stage and key"][0]
    assert sum("**" in row[5] for row in rows) == found[f"a right cause among the first {NAMED}"][0]
    assert sum(row[7] == "yes" for row in rows) == found["transplanting names the culprit"][0]


def test_a_page_counts_what_is_right() -> None:
    findings = [
        finding("cnn-tf32"),
        finding("mlp-tf32", update=2),
        finding("lstm-tf32", causes=("padding",), culprit=None),
    ]
    correct = {"cnn": [Correct("cnn", 0, "same", ""), Correct("cnn", 1, "differs", "")]}
    found = rates(page(findings, correct, 4, "python -m benchmarks.porting_bugs"))
    assert found["first update"] == found["update, stage and key"] == (2, 3)
    assert found[f"a right cause among the first {NAMED}"] == found["transplanting names the culprit"] == (2, 3)
    assert found["cnn"] == (1, 2)


def test_a_result_that_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    asked = []

    def ask() -> Finding:
        asked.append(1)
        return finding("cnn-tf32", update=None, culprit=None)

    first = kept(tmp_path, "cnn-tf32", Finding, ask)
    assert kept(tmp_path, "cnn-tf32", Finding, ask) == first == ask()
    assert len(asked) == 2
    assert kept(None, "cnn-tf32", Finding, ask) == first
