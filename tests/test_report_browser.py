"""Open reports in a real browser: they draw, answer to mouse and keyboard, fit a phone, and load and run nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from report_cases import comparison, make_runs
from report_pages import HOSTILE, hostile_comparison, hostile_run

from noether_core.report import write_report

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="reports are tried in Chromium, and there is none here: apt-get install chromium"
)
CHARTS = "document.querySelectorAll('.uplot').length"
TIP = "[...document.querySelectorAll('.u-over .tip')].filter((tip) => !tip.hidden).map((tip) => tip.innerText).join()"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    assert program is not None
    with Browser(program) as browser:
        yield browser


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = make_runs(tmp_path_factory.mktemp("compared"))
    return write_report(runs, runs[0].parent / "report.html", comparison())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = make_runs(tmp_path_factory.mktemp("plain"))
    return write_report(runs, runs[0].parent / "report.html")


def press(browser: Browser, words: str) -> None:
    browser.run(
        f"[...document.querySelectorAll('button')].find((each) => each.textContent === {json.dumps(words)}).click()"
    )
    browser.settle()


def look_for(browser: Browser, words: str) -> None:
    browser.run(
        "(() => { const box = document.getElementById('search');"
        f" box.value = {json.dumps(words)}; box.dispatchEvent(new Event('input')); }})()"
    )
    browser.settle()


def middle(browser: Browser, selector: str) -> tuple[float, float]:
    """Return a place in the middle of the first element that is found."""
    box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
    x, y = browser.run(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
    return x, y


def shown_keys(browser: Browser) -> set[str]:
    found = browser.run(
        "[...document.querySelectorAll('#curves .group:not([hidden]) .card h4')].map((each) => each.textContent)"
    )
    return set(found)


def test_a_page_asks_for_nothing_and_complains_of_nothing(browser: Browser, compared: Path) -> None:
    browser.open(compared)
    browser.run("scrollTo({top: 1e9, behavior: 'instant'})")
    browser.settle()
    assert browser.requests() == [compared.resolve().as_uri()]
    assert browser.complaints() == []


def test_the_answer_stands_first(browser: Browser, compared: Path) -> None:
    browser.open(compared)
    assert browser.run("document.querySelector('main h1').textContent") == comparison().sentence
    assert browser.run("document.querySelector('.rung.first .stage').textContent") == "grad"
    assert browser.run("document.querySelectorAll('.cause').length") == 3
    assert browser.run("document.querySelectorAll('.differences tbody tr').length") == 12
    press(browser, f"Show all {len(comparison().differences):,}")
    assert browser.run("document.querySelectorAll('.differences tbody tr').length") == len(comparison().differences)


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_no_width_makes_the_page_scroll_sideways(width: int, is_dark: bool, browser: Browser, compared: Path) -> None:
    browser.open(compared, width, 800, is_dark=is_dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(16, 18, 21)" if is_dark else "rgb(247, 247, 245)"
    )


def test_charts_are_made_when_they_come_into_view_and_let_go_after(browser: Browser, plain: Path) -> None:
    browser.open(plain, 390, 800)
    before = browser.run(CHARTS)
    assert 0 < before < 8
    browser.run(
        "document.querySelector('#curves').lastElementChild.previousElementSibling.scrollIntoView({behavior: 'instant'})"
    )
    browser.until(f"{CHARTS} > 0 && document.querySelector('.plot').children.length === 0")
    assert browser.run(CHARTS) < 12


def test_hovering_says_the_values(browser: Browser, plain: Path) -> None:
    browser.open(plain)
    browser.until(f"{CHARTS} > 0")
    browser.point(*middle(browser, ".u-over"))
    update, *rows = [line for line in browser.run(TIP).split("\n") if line]
    assert update.startswith("update ")
    assert rows[0::2] == ["digits-torch", "digits-jax"]
    assert all(float(value) for value in rows[1::2])


def test_a_finger_on_a_chart_says_the_values_too(browser: Browser, plain: Path) -> None:
    browser.open(plain, 390, 800)
    browser.until(f"{CHARTS} > 0")
    x, y = middle(browser, ".u-over")
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    browser.until(f"{TIP}.startsWith('update ')")


def test_the_filter_leaves_what_has_every_word(browser: Browser, plain: Path) -> None:
    browser.open(plain)
    everything = shown_keys(browser)
    look_for(browser, "GRAD bias")
    assert shown_keys(browser) == {key for key in everything if "grad" in key and "bias" in key} != set()
    look_for(browser, "nothing has this")
    assert shown_keys(browser) == set()
    assert browser.run("document.querySelector('#curves .empty').hidden") is False


def test_scales_axes_and_differences_are_drawn(browser: Browser, plain: Path) -> None:
    browser.open(plain)
    for words in ("Log", "Epoch", "Time", "Difference", "Update", "Linear", "Values"):
        press(browser, words)
        browser.until(f"{CHARTS} > 0")
    assert browser.complaints() == []


def test_values_that_are_the_same_say_so(browser: Browser, plain: Path) -> None:
    browser.open(plain)
    press(browser, "Difference")
    browser.until(
        "[...document.querySelectorAll('.calm')].some((each) => each.innerText.includes('the same to the bit'))"
    )


def test_a_run_is_hidden_and_shown(browser: Browser, plain: Path) -> None:
    browser.open(plain)
    press(browser, "digits-jax")
    browser.until("document.querySelector('.lasts').children.length === 1")
    press(browser, "digits-jax")
    browser.until("document.querySelector('.lasts').children.length === 2")


def test_heat_maps_have_pixels_of_more_than_one_colour(browser: Browser, plain: Path) -> None:
    browser.open(plain)
    browser.run("document.getElementById('arrays').scrollIntoView({behavior: 'instant'})")
    browser.until("document.querySelectorAll('.heat canvas').length >= 6")
    pixels = "document.querySelector('.heat canvas').getContext('2d').getImageData(0, 0, 30, 30).data.buffer"
    colours = browser.run(f"new Set(new Uint32Array({pixels})).size")
    assert colours > 100


def test_hostile_names_are_text_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    browser.open(write_report([run, run], tmp_path / "hostile.html", hostile_comparison()))
    for words in ("Difference", "Log", "Time"):
        press(browser, words)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.run("scrollTo({top: 1e9, behavior: 'instant'})")
    browser.settle()
    assert browser.complaints() == []
    assert len(browser.requests()) == 1
    assert browser.run("document.querySelectorAll('img, iframe, b b, main script').length") == 0
    assert browser.run("({}).polluted") is None
    assert browser.run("document.querySelector('main h1').textContent") == HOSTILE[0]
    assert set(HOSTILE) <= shown_keys(browser)


def test_the_policy_refuses_what_is_not_the_pages_own(browser: Browser, plain: Path) -> None:
    browser.open(plain)
    script = "Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'})"
    browser.run(f"document.body.append({script})")
    assert browser.run("window.ran") is None
    assert browser.run("fetch('data:text/plain,x').then(() => 'loaded', () => 'refused')") == "refused"
    assert "Content Security Policy" in "".join(browser.complaints())


def test_print_has_every_chart(browser: Browser, plain: Path) -> None:
    browser.open(plain, is_dark=True)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("[...document.querySelectorAll('.plot')].every((each) => each.children.length > 0)")
    assert browser.complaints() == []
