"""Plot runs: what the page and the pictures hold, that names stay text, what is refused, and that nothing seen is lost."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from report_cases import make_runs
from report_pages import HOSTILE, Page, hostile_run, unpack
from typer.testing import CliRunner

from noether_core import LogWriter, NoetherError, RunFormatError, UpdateCounter, read_run
from noether_core.cli import app
from noether_core.report import write_plot, write_report
from noether_core.report.curves import drawn_rows
from noether_core.text import inert
from noether_core.thinning import kept_rows, means
from noether_torch import Run

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra `plot`")


def log(path: Path, values: dict[str, list[Any]]) -> Path:
    counter = UpdateCounter()
    writer = LogWriter(path, update_counter=counter)
    for row in zip(*values.values(), strict=True):
        counter.next_update()
        for key, value in zip(values, row, strict=True):
            writer.add_scalar(key, value)
        writer.flush()
    writer.close()
    return path


def words(svg: Path) -> list[str]:
    return ["".join(each.itertext()).strip() for each in ET.parse(svg).iter(f"{SVG}text")]


# ------------------------------------------------------------------ the page


def test_the_page_has_the_reports_curves_and_nothing_else(runs: list[Path], tmp_path: Path) -> None:
    plotted = Page(write_plot(runs, tmp_path / "plot.html")).data
    reported = Page(write_report(runs, tmp_path / "report.html")).data
    assert [chart["key"] for chart in plotted["charts"]] == [chart["key"] for chart in reported["charts"]] != []
    for name in ("charts", "clocks", "runs", "texts"):
        assert plotted[name] == reported[name]
    assert plotted["arrays"]["pictures"] == plotted["tables"] == []
    assert reported["arrays"]["pictures"] != [] != reported["tables"]


def test_the_page_begins_as_it_was_asked_to(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_plot(runs, tmp_path / "plot.html", keys=["LOSS", "head act"], axis="epoch", log=True, smooth=4))
    assert page.data["view"] == {"axis": "epoch", "log": True, "smooth": 4.0}
    assert [chart["key"] for chart in page.data["charts"]] == ["loss/total", "act/head/norm"]


def test_the_same_runs_give_the_same_page(runs: list[Path], tmp_path: Path) -> None:
    first, second = (write_plot(runs, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_a_folder_of_runs_is_those_below_it(tmp_path: Path) -> None:
    both = [log(tmp_path / "runs" / name, {"loss": [1.0, 2.0]}) for name in ("a", "b")]
    pages = [write_plot(given, tmp_path / f"{len(given)}.html").read_bytes() for given in ([tmp_path / "runs"], both)]
    assert pages[0] == pages[1]
    (tmp_path / "none").mkdir()
    with pytest.raises(RunFormatError, match="none"):
        write_plot([tmp_path / "none"], tmp_path / "none.html")


def test_a_name_stays_text_in_the_page(tmp_path: Path) -> None:
    page = Page(write_plot([hostile_run(tmp_path / HOSTILE[3])], tmp_path / "plot.html"))
    (script, *_) = [text for kind, text in page.texts if kind == "script"]
    assert "<" not in script
    assert "&" not in script
    assert {tag for tag, _ in page.elements} <= {
        "html", "head", "meta", "title", "style", "body", "a", "button", "header", "span", "label", "input", "kbd", "div",
        "nav", "main", "noscript", "p", "script",
    }  # fmt: skip


def test_a_spike_among_many_values_is_drawn_and_all_values_have_a_part_in_the_smooth_line(tmp_path: Path) -> None:
    values = [1.0] * 20_000
    values[7777] = 50.0
    log(tmp_path / "run", {"loss": values})
    (chart,) = Page(write_plot([tmp_path / "run"], tmp_path / "plot.html")).data["charts"]

    curve = chart["curves"][0]
    assert max(unpack(curve["y"])) == 50.0
    assert len(unpack(curve["y"])) < len(values)
    assert np.mean(unpack(curve["means"])) == pytest.approx(np.mean(values), rel=1e-6)


@given(hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(allow_infinity=True)), st.integers(1, 40))
@example(np.full(11, 1.7976931348623157e308), 1)
def test_means_are_those_of_what_is_finite(values: np.ndarray[Any, Any], count: int) -> None:
    count = min(count, len(values))
    edges = np.linspace(0, len(values), count + 1).astype(np.int64)
    found = means(values, count)
    assert len(found) == count
    for mean, first, end in zip(found, edges, edges[1:], strict=False):
        known = [value for value in values[first:end].tolist() if math.isfinite(value)]
        if not known:
            assert math.isnan(mean)
            continue
        rounding = 1e-9 * max(map(abs, known)) + 1e-300
        assert min(known) - rounding <= mean <= max(known) + rounding
        assert mean == pytest.approx(float(sum(map(Fraction, known)) / len(known)), abs=rounding)


def ended_run(path: Path, updates: int, values: int = 1) -> Path:
    """Write a run that ends within an interval of 10 updates, with so many values before its last, provisional one."""
    with Run(path, "loss", every=10) as run:
        for update in range(updates):
            run.step({"loss": 1.0 / (update + values)})
    return path


def test_the_page_says_which_values_are_provisional(tmp_path: Path) -> None:
    ended, whole = ended_run(tmp_path / "ended", 47), ended_run(tmp_path / "whole", 60)
    (chart,) = Page(write_plot([ended, whole], tmp_path / "plot.html")).data["charts"]
    assert unpack(chart["curves"][0]["provisional"]).tolist() == [4]
    assert "provisional" not in chart["curves"][1]
    other = ended_run(tmp_path / "other", 47, 2)
    (chart,) = Page(write_plot([ended, other], tmp_path / "plot.html")).data["charts"]
    assert unpack(chart["apart"]["provisional"]).tolist() == [4]
    assert "provisional" in read_run(ended)._repr_html_()
    assert "provisional" not in read_run(whole)._repr_html_()


def some_provisional(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, count - 1), max_size=8, unique=True).map(sorted)


@given(
    st.integers(1, 300).flatmap(lambda count: st.tuples(st.just(count), some_provisional(count))), st.integers(4, 50)
)
def test_what_is_provisional_is_drawn_however_few_points_are(drawn: tuple[int, list[int]], most: int) -> None:
    count, provisional = drawn
    values = np.sin(np.arange(count))
    rows, marks = drawn_rows(values, most, np.array(provisional, np.int64))
    assert rows[marks].tolist() == provisional
    assert set(rows.tolist()) == set(kept_rows(values, most).tolist()) | set(provisional)


# ------------------------------------------------------------------ pictures


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(("ending", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_what_its_name_says_and_the_same_each_time(
    ending: str, begin: bytes, runs: list[Path], tmp_path: Path
) -> None:
    paths = [write_plot(runs, tmp_path / f"{name}.{ending}", keys=["loss"], smooth=3) for name in "ab"]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(begin)


@pytest.mark.usefixtures("matplotlib")
def test_an_svg_names_keys_and_runs_in_both_lights_and_loads_nothing(runs: list[Path], tmp_path: Path) -> None:
    picture = write_plot(runs, tmp_path / "plot.svg", keys=["act", "loss"])
    assert {"loss/total", "act/encoder.0/norm", "act/head/norm", "digits-torch", "digits-jax", "update"} <= set(
        words(picture)
    )
    source = picture.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in source
    assert not re.search(r"@font-face|@import|<script|<image|href=\"(?!#)|url\((?!#)", source)


@pytest.mark.usefixtures("matplotlib")
def test_names_are_text_in_a_picture_whatever_they_are(tmp_path: Path) -> None:
    names = ["$x^{2}$", "$\\frac{", "<b>&amp;", "\x1b[31m", "日本語", "_hidden", "a" * 300]
    log(tmp_path / "$\\run$", {name: [1.0, 2.0] for name in names})
    log(tmp_path / "_other", {"$x^{2}$": [2.0, 1.0]})
    found = words(write_plot([tmp_path / "$\\run$", tmp_path / "_other"], tmp_path / "plot.svg"))
    assert {*map(inert, names[:6]), "$\\run$", "_other"} <= set(found)
    assert not any(len(each) > 60 for each in found)


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize("is_log", [False, True])
def test_what_is_not_finite_is_a_gap_and_a_mark(is_log: bool, tmp_path: Path) -> None:
    whole = log(tmp_path / "whole", {"loss": [float(k) for k in range(1, 101)]})
    odd = log(tmp_path / "odd", {"loss": [math.nan if k == 50 else float(k) for k in range(1, 101)]})

    def strokes(run: Path) -> tuple[int, int]:
        tree = ET.parse(write_plot([run], tmp_path / "plot.svg", log=is_log))
        (axes,) = [each for each in tree.iter(f"{SVG}g") if each.get("id") == "axes_1"]
        lines = [each.get("d", "") for each in axes.iter(f"{SVG}path") if "#0072b2" in each.get("style", "")]
        marks = [each for each in axes.iter(f"{SVG}use") if "#0072b2" in each.get("style", "")]
        return sum(line.count("M") for line in lines if line.count("L") > 5), len(marks)

    assert strokes(whole) == (1, 0)
    assert strokes(odd) == (2, 1)


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize("smooth", [0, 5])
def test_what_is_provisional_is_a_hollow_mark_that_the_legend_names(smooth: float, tmp_path: Path) -> None:
    whole, ended = ended_run(tmp_path / "whole", 60), ended_run(tmp_path / "ended", 47)
    legend = "provisional: its interval was not over"

    def hollow(run: Path) -> int:
        tree = ET.parse(write_plot([run], tmp_path / "plot.svg", smooth=smooth))
        (axes,) = [each for each in tree.iter(f"{SVG}g") if each.get("id") == "axes_1"]
        styles = [each.get("style", "") for each in axes.iter(f"{SVG}use")]
        return sum("fill: #ffffff" in style and "stroke: #0072b2" in style for style in styles)

    assert (hollow(whole), legend in words(tmp_path / "plot.svg")) == (0, False)
    assert (hollow(ended), legend in words(tmp_path / "plot.svg")) == (1, True)


@pytest.mark.usefixtures("matplotlib")
def test_a_value_between_two_that_are_missing_is_a_mark(tmp_path: Path) -> None:
    log(tmp_path / "run", {"loss": [1.0 if k % 2 else math.nan for k in range(100)]})
    tree = ET.parse(write_plot([tmp_path / "run"], tmp_path / "plot.svg"))
    (axes,) = [each for each in tree.iter(f"{SVG}g") if each.get("id") == "axes_1"]
    marks = [each.get("style", "") for each in axes.iter(f"{SVG}use")]
    assert (
        sum("#0072b2" in style for style in marks) == 100
    )  # a cross for each that is missing, a dot for each other one


@pytest.mark.usefixtures("matplotlib")
def test_long_names_of_runs_stay_within_a_picture(tmp_path: Path) -> None:
    for place in range(6):
        log(tmp_path / f"{place}{'-w' * 30}", {"loss": [1.0, 2.0]})
    tree = ET.parse(write_plot([tmp_path], tmp_path / "plot.svg"))
    (legend,) = [each for each in tree.iter(f"{SVG}g") if each.get("id") == "legend_1"]
    places = [each.get("x", "") for each in legend.iter(f"{SVG}text")]
    assert (len(places), len(set(places))) == (6, 1)  # one below the other


@pytest.mark.usefixtures("matplotlib")
def test_a_log_scale_is_numbered_in_plain_figures(tmp_path: Path) -> None:
    run = log(tmp_path / "run", {"loss": [10.0 ** -(k / 10) for k in range(41)]})
    found = words(write_plot([run], tmp_path / "plot.svg", log=True))
    assert {"0.1", "0.01", "0.001"} <= set(found)
    assert not any("$" in word or "mathdefault" in word for word in found)


WITHOUT = """
import sys
from noether_core import MissingDependencyError
sys.modules["matplotlib"] = None
from noether_core.errors import MissingDependencyError
from noether_core.report import write_plot
write_plot([sys.argv[1]], sys.argv[2] + "/plot.html")
try:
    write_plot([sys.argv[1]], sys.argv[2] + "/plot.svg")
except MissingDependencyError as error:
    print(error)
"""


def test_without_matplotlib_a_page_is_written_and_a_picture_says_what_to_install(
    runs: list[Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(runs[0]), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "install the extra 'plot'" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["plot.html"]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("out", "options", "phrase"),
    [
        ("plot.jpg", {}, "ends in '.jpg'; give a file that ends in .html (a page), or .png, .svg, .pdf"),
        ("plot", {}, "ends in ''"),
        ("plot.html", {"axis": "steps"}, "axis is 'steps'; give one of update, epoch, sample, time"),
        ("plot.html", {"smooth": -1}, "smooth is -1.0; give percent of the axis, from 0 to 25"),
        ("plot.html", {"smooth": math.nan}, "smooth is nan"),
        ("plot.html", {"keys": ["nothing"]}, "no key has the words 'nothing'; the runs logged 23: loss/total, "),
    ],
)
def test_what_cannot_be_is_refused(
    out: str, options: dict[str, Any], phrase: str, runs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(NoetherError) as caught:
        write_plot(runs, tmp_path / out, **options)
    assert phrase in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_run_and_no_value_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match="at least one run"):
        write_plot([], tmp_path / "plot.html")
    with pytest.raises(RunFormatError, match="does not exist"):
        write_plot([tmp_path / "absent"], tmp_path / "plot.html")
    (tmp_path / "run" / "metrics").mkdir(parents=True)
    with pytest.raises(NoetherError, match="nothing is logged yet"):
        write_plot([tmp_path / "run"], tmp_path / "plot.html")


@pytest.mark.usefixtures("matplotlib")
def test_an_axis_that_was_not_counted_has_no_picture(tmp_path: Path) -> None:
    run = log(tmp_path / "run", {"loss": [1.0, 2.0]})
    with pytest.raises(NoetherError, match="none of these keys has a number over epoch"):
        write_plot([run], tmp_path / "plot.svg", axis="epoch")


def test_the_command_plots(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "plot.html"
    arguments = ["plot", *map(str, runs), "-o", str(out), "-k", "loss", "--x", "sample", "--log", "--smooth", "2.5"]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, f"{out.stat().st_size / 1e6:.1f} MB: {out}")
    assert Page(out).data["view"] == {"axis": "sample", "log": True, "smooth": 2.5}


def test_the_pages_program_prints_what_the_page_says(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "plot.md").read_text(encoding="utf-8")
    ((program, shown),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (shown, "")
    assert len(Page(tmp_path / "plot.html").data["runs"]) == 2
