"""Open plots in a real browser: they begin as asked, smooth, switch, fit a phone, and run and load nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from report_cases import make_runs
from report_pages import HOSTILE, hostile_run
from test_plot import log

from noether_core.report import write_plot

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="plots are tried in Chromium, and there is none here: apt-get install chromium"
)
CHARTS = "document.querySelectorAll('.uplot').length"
NOTES = "[...document.querySelectorAll('.note')].map((each) => each.textContent).join()"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    assert program is not None
    with Browser(program) as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


def pressed(browser: Browser) -> Any:
    return browser.run("[...document.querySelectorAll('.choice [aria-pressed=true]')].map((each) => each.textContent)")


def slide(browser: Browser, value: int) -> None:
    browser.run(
        f"(() => {{ const input = document.querySelector('.smooth input'); input.value = {value};"
        " input.dispatchEvent(new Event('input')); })()"
    )
    browser.settle()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("is_dark", [False, True])
def test_a_plot_is_drawn_and_fits(
    browser: Browser, runs: list[Path], tmp_path: Path, width: int, is_dark: bool
) -> None:
    browser.open(write_plot(runs, tmp_path / "plot.html", smooth=3), width, 900, is_dark=is_dark)
    browser.until(f"{CHARTS} > 1")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []
    assert len(browser.requests()) == 1  # the page itself
    assert browser.run("document.title") == "digits-torch, digits-jax – Noether plot"
    assert not browser.run("[...document.querySelectorAll('h2')].some((each) => each.offsetHeight)")


def test_it_begins_as_it_was_asked_to(browser: Browser, runs: list[Path], tmp_path: Path) -> None:
    browser.open(write_plot(runs, tmp_path / "plot.html", axis="sample", log=True, smooth=4))
    assert pressed(browser) == ["Sample", "Log", "Values"]
    assert browser.run("document.querySelector('.smooth output').textContent") == "4 %"
    assert browser.run("document.querySelector('.smooth input').value") == "40"
    assert "smoothed" in browser.run(NOTES)


def test_an_axis_that_no_run_counted_is_not_begun_with(browser: Browser, tmp_path: Path) -> None:
    run = log(tmp_path / "run", {"loss": [3.0, 2.0, 1.0]})
    browser.open(write_plot([run], tmp_path / "plot.html", axis="epoch"))
    assert browser.run(CHARTS) == 1
    assert browser.complaints() == []


def test_smoothing_is_a_mean_with_gaps_where_values_are_missing(browser: Browser, tmp_path: Path) -> None:
    values = [float(k % 2) for k in range(100)]
    values[50] = math.nan
    browser.open(write_plot([log(tmp_path / "run", {"loss": values})], tmp_path / "plot.html"))
    assert "smoothed" not in browser.run(NOTES)
    slide(browser, 40)
    assert "smoothed; faint: as logged" in browser.run(NOTES)
    assert "× marks" in browser.run(NOTES)
    box = browser.run("JSON.stringify(document.querySelector('.u-over').getBoundingClientRect())")
    place = json.loads(box)
    browser.point(place["x"] + place["width"] / 4, place["y"] + 40)
    tip = browser.run(
        "[...document.querySelectorAll('.tip')].filter((each) => !each.hidden).map((each) => each.innerText).join()"
    )
    shown = [float(word) for word in tip.split() if word.replace(".", "").isdigit()]
    assert len(shown) == 2  # the update and the smooth value, not what is beneath
    assert shown[1] == pytest.approx(0.5, abs=0.02)
    slide(browser, 0)
    assert "smoothed" not in browser.run(NOTES)
    assert browser.complaints() == []


def test_a_run_is_hidden_in_both_places_where_it_is_named(browser: Browser, runs: list[Path], tmp_path: Path) -> None:
    browser.open(write_plot(runs, tmp_path / "plot.html"), 390, 844)
    chips = "[...document.querySelectorAll('.chip[data-run=\"0\"]')]"
    assert browser.run(f"{chips}.length") == 2
    browser.run(f"{chips}[1].click()")
    browser.settle()
    assert browser.run(f"{chips}.map((each) => each.getAttribute('aria-pressed'))") == ["false", "false"]
    assert browser.complaints() == []


def test_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    page = write_plot([hostile_run(tmp_path / HOSTILE[3])], tmp_path / "plot.html", smooth=5)
    browser.open(page)
    browser.until(f"{CHARTS} > 0")
    assert browser.complaints() == []
    assert len(browser.requests()) == 1
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
