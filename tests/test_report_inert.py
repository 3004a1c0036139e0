"""Try names that would do harm, and what else a page must not do: act, load, or run anything but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from report_cases import comparison, make_runs
from report_pages import HOSTILE, Page, hostile_comparison, hostile_run, log

from noether_core.report import write_report

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Page:
    runs = make_runs(tmp_path_factory.mktemp("report"))
    return Page(write_report(runs, runs[0].parent / "report.html", comparison()))


def test_no_name_adds_an_element(tmp_path: Path) -> None:
    plain = Page(write_report([log(tmp_path / "plain", [{"loss": 0.5}])], tmp_path / "plain.html"))
    run = hostile_run(tmp_path)
    page = Page(write_report([run, run], tmp_path / "hostile.html", hostile_comparison()))
    assert page.elements == plain.elements
    assert [kind for kind, _ in page.texts] == [kind for kind, _ in plain.texts]
    keys = [chart["key"] for chart in page.data["charts"]]
    assert {name for name in HOSTILE if name in keys} == set(HOSTILE)


def test_nothing_of_the_data_stands_in_the_page_as_it_could_act(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    text = write_report([run], tmp_path / "hostile.html", hostile_comparison()).read_text(encoding="utf-8")
    data = text[text.index('id="data">') : text.index("</script>", text.index('id="data">'))]
    assert not set("<&\u2028\u2029") & set(data.removeprefix('id="data">'))


def test_the_policy_allows_these_scripts_and_styles_and_no_connection(compared: Page) -> None:
    policy = compared.attribute("meta", "http-equiv", "Content-Security-Policy", "content")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    programs = [(kind, text) for kind, text in compared.texts if not text.startswith('{"where"')]
    hashes: dict[str, set[str]] = {"script": set(), "style": set()}
    for kind, text in programs:
        hashes[kind].add(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    assert rules["default-src"] == "'none'"
    assert set(rules["script-src"].split()) == hashes["script"]
    assert set(rules["style-src"].split()) == hashes["style"]
    assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}


def test_no_program_of_ours_takes_text_for_markup() -> None:
    for file in (ROOT / "noether_core" / "report" / "assets").glob("*.js"):
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(|XMLHttp|import\(",
            file.read_text(),
        )
        assert not found, f"{file.name}: {found}"


def test_the_page_names_nothing_elsewhere(compared: Page) -> None:
    loads = [
        (tag, name)
        for tag, attrs in compared.elements
        for name, _ in attrs
        if name in ("src", "href", "srcset", "action")
    ]
    assert loads == [("a", "href")]  # to the content
    for kind, text in compared.texts:
        assert not re.search(r"@import|url\(", text), kind
