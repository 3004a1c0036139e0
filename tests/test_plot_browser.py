"""Open plots in a real browser: they begin as asked, smooth, switch, fit a phone, and run and load nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from report_cases import comparison, make_runs
from report_pages import HOSTILE, hostile_run
from test_plot import ended_run, log

from noether_core.report import write_plot, write_report

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


def sideways(browser: Browser) -> Any:
    """Return which parts of the bar and of the page's head have more than they show from left to right."""
    scrolls = "each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX !== 'visible'"
    return browser.run(
        "[...document.querySelectorAll('.bar, .bar *, .intro, .intro *')].filter((each) => !each.closest('.chip, .hidden')"
        f" && {scrolls}).map((each) => each.className)"
    )


@pytest.mark.parametrize("width", [320, 390, 740, 1000, 1280])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_the_bar_never_scrolls_sideways(browser: Browser, tmp_path: Path, width: int, count: int) -> None:
    for place in range(count):
        log(tmp_path / f"run-{place}-of-many-with-a-rather-long-name", {"loss": [1.0, 2.0]})
    browser.open(write_plot([tmp_path], tmp_path / "plot.html"), width, 844)
    fold = "document.getElementById('fold')"
    choices = "[...document.querySelectorAll('.controls button, .smooth input')]"
    is_seen = f"{choices}.every((each) => each.checkVisibility() && each.getBoundingClientRect().right <= innerWidth)"
    is_folded = width < 720
    assert browser.run(f"{fold}.checkVisibility()") is is_folded
    assert browser.run(is_seen) is not is_folded
    if is_folded:
        before = browser.run("document.documentElement.scrollHeight")
        browser.run(f"{fold}.click()")
        assert browser.run(is_seen)
        assert browser.run("document.documentElement.scrollHeight") == before  # what is below does not move
    assert sideways(browser) == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.run("document.querySelector('main').click()")
    assert browser.run(is_seen) is not is_folded
    assert browser.complaints() == []


def test_a_page_that_has_nothing_to_choose_has_no_fold(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report([], tmp_path / "report.html", comparison()), 390, 844)
    assert not browser.run("document.getElementById('fold').checkVisibility()")


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


PAINTED = """(() => {
  const canvas = document.querySelector('.uplot canvas');
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  const over = document.querySelector('.u-over').getBoundingClientRect();
  const [width, height] = [over.width, over.height].map((each) => Math.floor(each * scale));
  const hex = getComputedStyle(document.documentElement).getPropertyValue('--series-0').trim();
  const colour = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const place = [(over.x - box.x) * scale, (over.y - box.y) * scale];
  const pixels = canvas.getContext('2d').getImageData(...place, width, height).data;
  const isOurs = (at) => pixels[at + 3] > 60 && colour.every((channel, k) => Math.abs(pixels[at + k] - channel) < 40);
  return Array.from({length: width}, (_, x) => {
    const rows = Array.from({length: height}, (_, y) => y).filter((y) => isOurs(4 * (y * width + x)));
    return rows.length ? [Math.min(...rows) / height, Math.max(...rows) / height] : [];
  });
})()"""


def painted(browser: Browser) -> list[list[float]]:
    """Return where each column of pixels has the first run's colour: the highest place and the lowest, from 0 to 1."""
    found: list[list[float]] = browser.run(PAINTED)
    return found


def test_a_spike_among_many_points_is_painted_where_it_was(browser: Browser, tmp_path: Path) -> None:
    values = [float(k % 2) for k in range(9000)]
    values[2000], values[6001] = 9.0, -8.0
    browser.open(write_plot([log(tmp_path / "run", {"loss": values})], tmp_path / "plot.html"))
    columns = painted(browser)
    top, foot = (round(len(columns) * at / 8999) for at in (2000, 6001))
    assert min(column[0] for column in columns[top - 2 : top + 3] if column) < 0.1
    assert max(column[1] for column in columns[foot - 2 : foot + 3] if column) > 0.9
    rest = [column for at, column in enumerate(columns) if abs(at - top) > 3 and abs(at - foot) > 3]
    assert all(column and 0.3 < column[0] < column[1] < 0.7 for column in rest[2:-2])


def test_a_value_between_two_that_are_missing_is_seen(browser: Browser, tmp_path: Path) -> None:
    values = [math.nan] * 101
    values[50] = 3.0
    browser.open(write_plot([log(tmp_path / "run", {"loss": values})], tmp_path / "plot.html"))
    columns = painted(browser)
    seen = [at for at, column in enumerate(columns) if column and column[0] < 0.7]  # crosses are at the foot
    assert seen
    assert abs(seen[len(seen) // 2] - len(columns) / 2) < 4


def test_what_is_missing_is_said_under_the_pointer(browser: Browser, tmp_path: Path) -> None:
    values = [1.0] * 100
    values[50] = math.nan
    browser.open(write_plot([log(tmp_path / "run", {"loss": values})], tmp_path / "plot.html"))
    place = json.loads(browser.run("JSON.stringify(document.querySelector('.u-over').getBoundingClientRect())"))
    browser.point(place["x"] + place["width"] * 50 / 99, place["y"] + 40)
    tip = browser.run("document.querySelector('.tip:not([hidden])').innerText").split()
    assert tip[:2] == ["update", "51"]
    assert tip[-1] == "NaN"


def test_what_is_provisional_is_a_hollow_point_and_is_said(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_plot([ended_run(tmp_path / "whole", 60)], tmp_path / "plot.html"))
    assert "provisional" not in browser.run(NOTES)
    end = painted(browser)[-1]
    browser.open(write_plot([ended_run(tmp_path / "run", 57)], tmp_path / "plot.html"))
    assert "○ is provisional: its interval was not over" in browser.run(NOTES)
    assert "○" in browser.run("document.querySelector('.lasts').innerText")
    ring = painted(browser)[-1]
    assert ring[1] - ring[0] > 1.5 * (end[1] - end[0])  # its rim is above and below where the line ends
    place = json.loads(browser.run("JSON.stringify(document.querySelector('.u-over').getBoundingClientRect())"))
    browser.point(place["x"] + place["width"] - 1, place["y"] + 40)
    assert "provisional" in browser.run("document.querySelector('.tip:not([hidden])').innerText")
    browser.point(place["x"] + 1, place["y"] + 40)
    assert "provisional" not in browser.run("document.querySelector('.tip:not([hidden])').innerText")
    slide(browser, 40)
    assert "○ is provisional" in browser.run(NOTES)
    assert browser.complaints() == []


def open_for(browser: Browser, page: Path, names: str) -> None:
    """Show a page with some of its program's functions for all to call: what stands beside an axis is painted."""
    opened = f"Object.assign(window, {{ {names} }}); }})();\n</script>"
    text = page.read_text(encoding="utf-8").replace("})();\n</script>", opened)
    assert text.count("Object.assign(window") == 1
    page.write_text(re.sub("<meta http-equiv=[^>]*>", "", text), encoding="utf-8")
    browser.open(page)


def test_ticks_that_differ_little_are_told_apart(browser: Browser, tmp_path: Path) -> None:
    page = write_plot([log(tmp_path / "run", {"loss": [1e15, 1e15 + 4e9]})], tmp_path / "plot.html")
    open_for(browser, page, "ticks")
    assert browser.run("ticks([0, 0.5, null, 1])") == ["0", "0.5", "", "1"]
    assert browser.run("ticks([1e15, 1e15 + 1e9, 1e15 + 2e9])") == ["1e15", "1.000001e15", "1.000002e15"]
    assert browser.run("ticks([1e15 + 2.5e8, 1e15 + 5e8])") == ["1.00000025e15", "1.0000005e15"]
    assert browser.run("ticks([-1e-7, 0, 1e-7])") == ["−1e−7", "0", "1e−7"]
    assert browser.run("ticks([1.0000001, 1.0000002])") == ["1.0000001", "1.0000002"]
    assert browser.run("ticks([5, 5])") == ["5", "5"]


def test_an_axis_has_places_whatever_the_size_of_its_values(browser: Browser, tmp_path: Path) -> None:
    page = write_plot([log(tmp_path / "run", {"loss": [1.0, 2.0]})], tmp_path / "plot.html")
    open_for(browser, page, "steps, multiples, decades, yRange")
    spans = (
        "Array.from({length: 60}, (_, k) => 10 ** (10 * k - 295)).flatMap((size) => [[0, size], [-size, size],"
        " [size, size * (1 + 2 ** -52)], [size, size]])"
    )
    ranges = f"{spans}.map((y) => yRange([{{x: [0, 1], y}}], [0, 1], false, {{}}))"
    counts = browser.run(
        f"{ranges}.flatMap(([a, b]) => steps(b - a).slice(3, 6).map((s) => multiples(a, b, s).length))"
    )
    assert 2 <= min(counts) <= max(counts) <= 101
    assert browser.run("multiples(-0.25, 0.31, 0.1).map((value) => Number(value.toFixed(9)))") == [
        -0.2, -0.1, 0, 0.1, 0.2, 0.3,
    ]  # fmt: skip
    assert browser.run("decades(0.5, 20)") == [0.5, 1, 2, 5, 10, 20]
    assert browser.run("decades(1e-300, 1e300).length") == 3 * 600 + 1


SIZES = {
    "huge": [(-1.0) ** k * 1.7e308 for k in range(50)],
    "large": [(-1.0) ** k * 1e300 for k in range(50)],
    "tiny": [5e-324] * 50,
    "decades": [10.0 ** (2 * k - 50) for k in range(50)],
    "constant": [-3.25] * 50,
    "ulps": [1.0 + k % 2 * 2.0**-52 for k in range(50)],
    "zero": [0.0] * 50,
    "negative": [-float(k) for k in range(50)],
    "odd": [math.nan, math.inf] * 25,
    " ": [1.0] * 50,
}


@pytest.mark.parametrize("view", [{}, {"log": True}, {"smooth": 5}], ids=str)
def test_values_of_any_size_are_drawn(browser: Browser, tmp_path: Path, view: dict[str, Any]) -> None:
    browser.open(write_plot([log(tmp_path / "run", SIZES)], tmp_path / "plot.html", **view), 1280, 2000)
    browser.until(f"{CHARTS} === {len(SIZES)}")
    ours = "Math.max(...[0, 1, 2].map((k) => Math.abs(data[at + k] - colour[k]))) < 90 && data[at + 3] > 60"
    bare = browser.run(
        "(() => { const hex = getComputedStyle(document.documentElement).getPropertyValue('--series-0').trim();"
        " const colour = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));"
        " return [...document.querySelectorAll('.card')].filter((card) => { const canvas = card.querySelector('canvas');"
        " const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        f" for (let at = 0; at < data.length; at += 4) if ({ours}) return false; return true; }})"
        ".map((card) => card.key); })()"
    )
    assert bare == []
    assert browser.run("[...document.querySelectorAll('h4')].some((each) => each.textContent === '\" \"')")
    assert browser.complaints() == []


def test_a_run_without_values_says_so_and_one_curve_has_room(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "run" / "metrics").mkdir(parents=True)
    browser.open(write_report([tmp_path / "run"], tmp_path / "report.html"))
    assert "Nothing is logged yet." in browser.run("document.body.innerText")
    browser.open(write_plot([log(tmp_path / "one", {"loss": [1.0, 2.0]})], tmp_path / "plot.html"))
    assert browser.run("document.querySelector('.uplot').offsetWidth") > 900
    assert browser.complaints() == []


def test_zooming_fits_the_values_that_are_left(browser: Browser, tmp_path: Path) -> None:
    values = [1000.0 if k < 50 else 1.0 for k in range(100)]
    browser.open(write_plot([log(tmp_path / "run", {"loss": values})], tmp_path / "plot.html"))
    place = json.loads(browser.run("JSON.stringify(document.querySelector('.u-over').getBoundingClientRect())"))
    y = place["y"] + 50
    for kind, share in (("mousePressed", 0.6), ("mouseMoved", 0.8), ("mouseMoved", 0.9), ("mouseReleased", 0.9)):
        x = place["x"] + place["width"] * share
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    browser.settle()
    assert all(column and column[0] > 0.3 for column in painted(browser)[2:-2])  # a line in the middle
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_all_that_comes_into_view_is_drawn_while_the_page_moves(browser: Browser, tmp_path: Path, width: int) -> None:
    run = log(tmp_path / "run", {f"layer{k}/norm": [1.0, 2.0] for k in range(40)})
    browser.open(write_plot([run], tmp_path / "plot.html"), width, 800)
    browser.run(
        "new Promise((done) => { const step = () => { const before = scrollY; scrollBy({top: 60, behavior: 'instant'});"
        " if (scrollY > before) requestAnimationFrame(step); else done(); }; step(); })"
    )
    inside = "getBoundingClientRect().top < innerHeight && each.getBoundingClientRect().bottom > 0"
    browser.until(
        f"[...document.querySelectorAll('.plot')].filter((each) => each.{inside}).every((each) => each.children.length)"
    )
    assert 0 < browser.run(CHARTS) < 30  # what has left is let go


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
