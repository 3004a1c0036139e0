"""Write reports, and read them back: what they hold, that names stay text, their size, their bytes."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contrast import contrast
from report_cases import PARTED, UPDATES, comparison, make_runs
from report_pages import Page, log, unpack

from noether_core import NoetherError, RunFormatError, read_run
from noether_core.emit.arrays import write_arrays
from noether_core.parity.divergence.result import Comparison
from noether_core.report import write_report
from noether_core.report.overview import labels
from noether_core.report.pictures import pictures
from noether_core.report.recorded import Recorded
from noether_torch import Run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def compared(runs: list[Path]) -> Page:
    return Page(write_report(runs, runs[0].parent / "report.html", comparison()))


# ------------------------------------------------------------------ what a page holds


def test_a_page_holds_every_key_of_both_runs(runs: list[Path], compared: Page) -> None:
    keys = {key for path in runs for key in read_run(path).series}
    assert {chart["key"] for chart in compared.data["charts"]} == keys
    assert [run["label"] for run in compared.data["runs"]] == ["digits-torch", "digits-jax"]


def test_values_and_updates_come_back(runs: list[Path], compared: Page) -> None:
    data = compared.data
    chart = next(each for each in data["charts"] if each["key"] == "loss/total")
    for place, path in enumerate(runs):
        series = read_run(path).series["loss/total"]
        (curve,) = [each for each in chart["curves"] if each["run"] == place]
        np.testing.assert_allclose(unpack(curve["y"]), series.value, rtol=1e-6)
        clock = data["clocks"][curve["clock"]]
        places, values = map(unpack, clock["update"])
        np.testing.assert_array_equal(np.interp(np.arange(clock["n"]), places, values), series.update)


def test_the_difference_of_two_runs_is_that_of_their_values(runs: list[Path], compared: Page) -> None:
    a, b = (read_run(path).series["grad/encoder.0.weight/norm"].value for path in runs)
    chart = next(each for each in compared.data["charts"] if each["key"] == "grad/encoder.0.weight/norm")
    wanted = np.abs(a - b) / np.maximum(np.abs(a), np.abs(b))
    np.testing.assert_allclose(unpack(chart["apart"]["y"]), wanted, rtol=1e-6)
    data = next(each for each in compared.data["charts"] if each["key"] == "data/x/norm")
    assert data["apart"] == {"n": UPDATES, "equal": UPDATES}


def test_runs_that_log_at_other_updates_are_compared_where_both_do(tmp_path: Path) -> None:
    a = log(tmp_path / "a", [{"loss": float(at), "other": 1.0} for at in range(1, 7)])
    b = log(tmp_path / "b", [{"loss": at + 0.5} if at % 2 else {"more": 1.0} for at in range(1, 7)])
    data = Page(write_report([a, b], tmp_path / "a.html")).data
    (loss,) = [chart for chart in data["charts"] if chart["key"] == "loss"]
    np.testing.assert_allclose(unpack(loss["apart"]["y"]), [0.5 / 1.5, 0.5 / 3.5, 0.5 / 5.5], rtol=1e-6)
    assert np.cumsum(unpack(loss["apart"]["rows"])).tolist() == [0, 2, 4]  # of the first run's values
    assert [len(chart["curves"]) for chart in data["charts"]] == [2, 1, 1]


def test_the_verdict_is_the_comparisons(compared: Page) -> None:
    found, wanted = compared.data["verdict"], comparison()
    assert (found["sentence"], found["outcome"], found["same_through"]) == (wanted.sentence, "differs", PARTED - 1)
    states = {rung["stage"]: rung["state"] for rung in found["ladder"]}
    assert states == {
        "data": "same", "param": "later", "act": "same", "loss": "same", "grad": "first", "clip": "also", "update": "also",
        "opt": "also",
    }  # fmt: skip
    assert [row[:3] for row in found["differences"]] == [[e.update, e.stage, e.key] for e in wanted.differences]
    assert [cause["sentence"] for cause in found["causes"]] == [cause.sentence for cause in wanted.causes]
    assert found["courses"][0]["key"] == "grad/encoder.0.weight"


def test_saved_arrays_come_with_their_difference(compared: Page) -> None:
    (weight,) = [each for each in compared.data["arrays"]["pictures"] if each["name"] == "grad/encoder.0.weight"]
    assert [frame["update"] for frame in weight["frames"]] == [1, 20, PARTED, UPDATES]
    first, *_, last = weight["frames"]
    assert [panel["run"] for panel in first["panels"]] == [0, 1, -1]
    assert first["panels"][2]["ends"] == [0.0, 0.0]
    assert last["panels"][2]["ends"][1] > 0
    cells = unpack(last["panels"][2]["cells"]).reshape(64, 48)
    assert set(np.flatnonzero(cells.any(axis=0))) == set(range(20, 28))


def test_configs_and_settings_stand_side_by_side(compared: Page) -> None:
    tables = {table["title"]: table for table in compared.data["tables"]}
    assert ["optimizer.eps", "1e-8", "1e-6"] in tables["Config"]["rows"]
    assert ["framework", "torch 2.13", "jax 0.10"] in tables["Settings"]["rows"]
    assert ["updates", "60", "60"] in tables["Environment"]["rows"]


def test_a_comparison_of_trainings_in_memory_needs_no_runs(tmp_path: Path) -> None:
    data = Page(write_report([], tmp_path / "a.html", comparison())).data
    assert (data["runs"], data["charts"]) == ([], [])
    assert {rung["state"] for rung in data["verdict"]["ladder"]} == {"same", "later", "first", "also"}


@pytest.mark.parametrize("outcome", ["same", "cannot say"])
def test_each_outcome_has_its_ladder(outcome: Any, runs: list[Path], tmp_path: Path) -> None:
    found = Comparison(outcome, "A sentence.", ("a", "b"))
    ladder = Page(write_report(runs, tmp_path / "a.html", found)).data["verdict"]["ladder"]
    states = {rung["stage"]: rung["state"] for rung in ladder}
    assert states["clip"] == states["opt"] == "missing"  # the runs have no key of these
    assert states["grad"] == ("same" if outcome == "same" else "unknown")


def test_text_nan_and_ints_are_drawn_too(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"note": f"n{at}", "loss": (0.5, math.nan, math.inf)[at], "count": 10**400 if at else 3} for at in range(3)
    ]
    data = Page(write_report([log(tmp_path / "run", entries)], tmp_path / "a.html")).data
    assert data["texts"] == [{"run": 0, "key": "note", "n": 3, "newest": [[1, "n0"], [2, "n1"], [3, "n2"]]}]
    curves = {chart["key"]: unpack(chart["curves"][0]["y"]).tolist() for chart in data["charts"]}
    assert [str(value) for value in curves["loss"]] == ["0.5", "nan", "inf"]
    assert curves["count"] == [3.0, math.inf, math.inf]


def test_what_was_probed_is_drawn_by_its_statistics_and_arrays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Run(tmp_path / "probed", callbacks=[{"kind": "ProbeCallback", "every_n_updates": 1}]) as run:
        run.probe(model, optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 6)).square().mean()
            loss.backward()
            optimizer.step()
            run.step({"loss": loss}, losses=loss)
    data = Page(write_report([tmp_path / "probed"], tmp_path / "a.html")).data
    keys = [chart["key"] for chart in data["charts"]]
    assert {"param/weight/norm", "grad/bias/max", "update/weight/std"} <= set(keys)
    assert not any("probes" in key or "fingerprint" in key for key in keys)
    (loss_key,) = [key for key in keys if key.startswith("loss/")]
    assert len(unpack(data["charts"][keys.index(loss_key)]["curves"][0]["y"])) == 4
    (weight,) = [each for each in data["arrays"]["pictures"] if each["name"] == "grad/weight"]
    assert [frame["update"] for frame in weight["frames"]] == [1, 2, 3, 4]
    assert (weight["interval"], weight["frames"][0]["panels"][0]["shape"]) == ("probes", [3, 6])


def test_of_very_many_arrays_those_that_differ_have_room(tmp_path: Path) -> None:
    path = log(tmp_path / "run", [{"loss": 0.5}])
    arrays = {f"a{at:04}": np.ones(3, np.float32) for at in range(1000)}
    for update in (1, 2, 3):
        write_arrays(path / "update_outputs" / "U1" / f"E0_U{update}_S0.safetensors", arrays)
    found = pictures([Recorded(read_run(path))], 2, {"a0999"})
    assert {"a0000", "a0999"} <= {each["name"] for each in found["pictures"]}
    assert all([frame["update"] for frame in each["frames"]] == [1, 2, 3] for each in found["pictures"])
    assert found["problems"] == ["700 more saved arrays have no room on this page"]


def test_what_is_not_counted_is_no_axis_and_epochs_have_parts(compared: Page, tmp_path: Path) -> None:
    (clock,) = Page(write_report([log(tmp_path / "run", [{"loss": 0.5}] * 3)], tmp_path / "a.html")).data["clocks"]
    assert {"epoch", "sample"} & set(clock) == set()
    clock = compared.data["clocks"][0]
    places, values = map(unpack, clock["epoch"])
    np.testing.assert_allclose(np.interp(np.arange(60), places, values), np.arange(1, 61) / 20)


# ------------------------------------------------------------------ its bytes


def test_the_same_runs_give_the_same_bytes(runs: list[Path], tmp_path: Path) -> None:
    first, second = (write_report(runs, tmp_path / name, comparison()).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_no_file_that_the_page_is_made_of_is_left_out_of_a_wheel() -> None:
    """Hatchling packs all files of a package but those that git ignores."""
    files = [str(file) for file in (ROOT / "noether_core" / "report" / "assets").rglob("*")]
    assert any(file.endswith("uplot/LICENSE") for file in files)
    ignored = subprocess.run(["git", "check-ignore", "--no-index", *files], cwd=ROOT, capture_output=True, check=False)
    if ignored.returncode > 1:
        pytest.skip("git says which files a wheel leaves out, and this is no clone")
    assert ignored.stdout == b""


# ------------------------------------------------------------------ wrong uses


def test_nothing_to_draw_and_no_run_are_said(tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match="at least one run directory, or a comparison"):
        write_report([], tmp_path / "a.html")
    with pytest.raises(RunFormatError, match="does not exist; give the directory that a Run wrote"):
        write_report([tmp_path / "none"], tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_damage_is_told_on_the_page_and_the_rest_is_drawn(runs: list[Path], tmp_path: Path) -> None:
    path = log(tmp_path / "run", [{"loss": 0.5}, {"loss": 0.25}])
    file = path / "update_outputs" / "U1" / "E0_U1_S0.safetensors"
    write_arrays(file, {"x": np.ones(4, np.float32)})
    file.write_bytes(file.read_bytes()[:-2])
    log_file = next((path / "metrics").glob("[0-9].jsonl"))
    log_file.write_bytes(log_file.read_bytes()[:-4])
    data = Page(write_report([path], tmp_path / "a.html")).data
    assert data["runs"][0]["problems"]
    assert "damaged, left out" in data["arrays"]["problems"][0]
    assert unpack(data["charts"][0]["curves"][0]["y"]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["a/x"], ["x"]),
        (["a/x", "b/x"], ["a/x", "b/x"]),
        (["a/x", "a/x"], ["x (1)", "x (2)"]),
        (["a/jax", "a/torch"], ["jax", "torch"]),
    ],
)
def test_labels_tell_runs_apart(paths: list[str], wanted: list[str], tmp_path: Path) -> None:
    readers = [read_run(log(tmp_path / path, [{"loss": 0.5}])) for path in dict.fromkeys(paths)]
    assert labels([readers[list(dict.fromkeys(paths)).index(path)] for path in paths]) == wanted


def test_the_command_writes_a_page(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from noether_core.cli import main

    monkeypatch.setattr(
        sys, "argv", ["noether-parity", "report", *map(str, runs), "-o", str(tmp_path / "deep" / "a.html")]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f"0.5 MB: {tmp_path / 'deep' / 'a.html'}"
    assert len(Page(tmp_path / "deep" / "a.html").data["runs"]) == 2


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_the_page_is_read_well(scheme: int) -> None:
    style = files("noether_core.report").joinpath("assets", "page.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\n\s*\}", style, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-fA-F]{6})", block))
    grounds = ("ground", "surface", "sunk", "raised")
    texts = [(text, ground) for text in ("ink", "soft", "faint", "bad", "good", "open", "accent") for ground in grounds]
    texts += [(tone, f"{tone}-ground") for tone in ("bad", "good", "open")] + [("on-accent", "accent")]
    low = {pair: found for pair in texts if (found := contrast(*(colours[name] for name in pair))) < 4.5}
    curves = [f"series-{k}" for k in range(8)]
    low |= {(name, "surface"): found for name in curves if (found := contrast(colours[name], colours["surface"])) < 3}
    assert not low
