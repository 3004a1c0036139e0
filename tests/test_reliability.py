"""The page of what a run survives says what was run, and no more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import reliability
from tests.reliability import ROOT, missing_tests, page_of, read_report, run_row, write_page
from tests.reliability_rows import ROWS, Command, Row

NOW = {
    "commit": "abc",
    "date": "2026-01-01",
    "versions": {"python": "3.12", "jax": "0.10", "torch": "2.13", "numpy": "2.1"},
}


def test_every_row_names_tests_that_are_there() -> None:
    assert [missing for row in ROWS.values() for missing in missing_tests(row)] == []


def test_the_rows_are_numbered_from_1_on_and_name_no_test_twice() -> None:
    assert [*ROWS] == [str(number) for number in range(1, len(ROWS) + 1)]
    assert len(ROWS) >= 18
    for row in ROWS.values():
        assert len(set(row.tests)) == len(row.tests) >= 1


def test_a_test_that_is_not_there_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_it():\n    pass\n")
    row = Row("a", "b", ("tests/test_a.py", "tests/test_a.py::test_it", "tests/test_a.py::test_i", "tests/test_b.py"))
    assert missing_tests(row, tmp_path) == ["tests/test_a.py::test_i", "tests/test_b.py"]


TESTS = """
import pytest

@pytest.mark.parametrize("seed", range(3))
def test_well(seed, sized):
    assert all(at < 9 for at in sized(range(4), "kills"))

def test_bad(sized):
    for at in sized(range(4), "kills"):
        assert at < 2

def test_left_out(full):
    if not full:
        pytest.skip("no time | today")
"""


@pytest.fixture
def tests_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (tmp_path / "tests" / "test_a.py").write_text(TESTS)
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    monkeypatch.setattr(reliability, "commit", lambda: "abc")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "result", "size", "trouble"),
    [
        ("test_well", "passed", "3 tests, 12 kills", ""),
        ("test_bad", "failed", "", "test_a::test_bad"),
        ("test_left_out", "not shown", "", "no time | today"),
        ("test_absent", "not shown", "", "::test_absent is not there"),
    ],
)
@pytest.mark.usefixtures("tests_of_ours")
def test_a_row_is_what_its_tests_come_to(
    name: str, result: str, size: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reliability, "missing_tests", lambda row: missing_tests(row, reliability.ROOT))
    found = run_row(Row("a", "b", (f"tests/test_a.py::{name}",)), is_small=True)
    assert (found["result"], found["size"]) == (result, size)
    assert trouble in " ".join(found["troubles"])
    assert bool(trouble) == bool(found["troubles"])


@pytest.mark.usefixtures("tests_of_ours")
@pytest.mark.parametrize(("status", "result"), [(0, "passed"), (3, "failed")])
def test_a_command_is_counted_by_what_it_prints(status: int, result: str) -> None:
    Path(reliability.ROOT / "counting.py").write_text(
        "import sys\nprint('read 1,250 files')\nsys.exit(int(sys.argv[1]))"
    )
    command = Command(f"counting {status}", f"counting {status} small", r"read ([\d,]+ files)")
    found = run_row(Row("a", "b", (), (command,)), is_small=False)
    assert (found["result"], found["size"]) == (result, f"1,250 files (counting {status})")
    assert ["ended with 3" in trouble for trouble in found["troubles"]] == ([True] if status else [])


def test_a_page_says_what_was_not_run_and_what_is_of_another_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = {"result": "passed", "troubles": [], "size": "7 tests", "seconds": 1234, **NOW}
    failed = {**result, "result": "failed", "troubles": ["test_a::test_b[x|y]"], "commit": "old", "size": ""}
    lines = page_of({"1": result, "2": failed}, NOW).splitlines()
    rows = [line for line in lines if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(ROWS)
    assert rows[0].endswith("| 7 tests | passed | 1,234 |")
    assert rows[1].endswith(r"| failed; test_a::test_b[x\|y] (at old, 2026-01-01) | 1,234 |")
    assert rows[2].endswith("|  | not run |  |")
    assert "at revision abc, on 2026-01-01, with Python 3.12, JAX 0.10" in lines[2]
    monkeypatch.setattr(reliability, "commit", lambda: "abc")
    write_page({"1": result}, tmp_path / "page.md", tmp_path / "kept.json")
    assert json.loads((tmp_path / "kept.json").read_text()) == {"1": result}
    assert "| 7 tests | passed | 1,234 |" in (tmp_path / "page.md").read_text()


def test_a_row_that_is_run_again_leaves_the_others_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def run(row: Row, **_: Any) -> dict[str, Any]:
        calls.append(row.fault)
        return {"result": "failed" if len(calls) == 2 else "passed", "troubles": [], "size": "", "seconds": 1, **NOW}

    monkeypatch.setattr(reliability, "run_row", run)
    for name in ("PAGE", "RESULTS"):
        monkeypatch.setattr(reliability, name, tmp_path / name)
    pages: list[dict[str, Any]] = []
    monkeypatch.setattr(reliability, "write_page", lambda results: _keep(pages, results, tmp_path / "RESULTS"))
    assert reliability.main(["--small", "3"]) == 0
    assert pages == []
    assert reliability.main(["1", "3"]) == 1
    assert reliability.main(["3"]) == 0
    assert [[*page] for page in pages] == [["1"], ["1", "3"], ["1", "3"]]
    assert pages[-1]["1"]["result"] == "failed"
    assert calls[1:] == [ROWS[number].fault for number in ("1", "3", "3")]
    with pytest.raises(SystemExit):
        reliability.main(["99"])


def _keep(pages: list[dict[str, Any]], results: dict[str, Any], kept: Path) -> None:
    pages.append(dict(results))
    kept.write_text(json.dumps(results))


def test_the_page_is_of_the_rows_there_are(sized: Callable[..., Iterator[Any]]) -> None:
    """Hold the page that is there to what stands beside it."""
    if not reliability.RESULTS.exists():
        pytest.skip("`make reliability` has not been run")
    results = json.loads(reliability.RESULTS.read_text())
    rows = [line for line in reliability.PAGE.read_text().splitlines() if line.startswith("| ") and line[2].isdigit()]
    for number, line in zip(sized(ROWS, "rows"), rows, strict=True):
        assert line.startswith(f"| {number} | ")
        assert (f"| {results[number]['result']}" if number in results else "| not run |") in line


def test_what_a_report_says_is_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text("<a><testcase classname='tests.test_a' name='test_b'><error/></testcase></a>")
    sizes: Counter[str] = Counter()
    assert (read_report(report, sizes), sizes) == (["test_a::test_b"], Counter())
