"""Run the demo once, on trainings of one epoch; then change what it wrote, and see it fail."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from report_pages import Page
from rich.console import Console

import noether_torch
from examples import demo
from noether_core import NoetherError, read_run
from noether_core.emit.arrays import read_arrays, write_arrays
from noether_core.emit.jsonl import encode_line, iter_lines
from noether_core.emit.trackers.tensorboard import _torch_left_out
from noether_core.parity import read_recording
from noether_torch.backend import _TorchBackend

STEPS = {"digits": 44, "airfoil": 48}
UPDATES = {"digits": 22, "airfoil": 24}

# Python runs a sitecustomize module as it starts: this one notes, as the process ends, which frameworks it has loaded.
NOTE = """
import atexit, os, pathlib, sys

def note():
    loaded = {name.partition(".")[0] for name in list(sys.modules)} & {"jax", "jaxlib", "flax", "optax", "torch"}
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else "other"
    pathlib.Path(os.environ["NOTES"], module).write_text(" ".join(sorted(loaded)))

atexit.register(note)
"""


@dataclass(frozen=True)
class Done:
    status: int
    out: Path
    svg: Path
    output: str
    loaded: dict[str, str]


def plain_console(width: int = 160) -> Console:
    return Console(file=io.StringIO(), width=width)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    root = tmp_path_factory.mktemp("demo")
    (root / "notes").mkdir()
    (root / "site").mkdir()
    (root / "site" / "sitecustomize.py").write_text(NOTE, encoding="utf-8")
    console = plain_console()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTES", str(root / "notes"))
        patch.setenv("PYTHONPATH", str(root / "site"))
        patch.setenv("PYTHONWARNINGS", "error")
        status = demo.run_demo(root / "runs" / "demo", root / "pictures" / "demo.svg", console, epochs=1)
    loaded = {file.name: file.read_text(encoding="utf-8") for file in (root / "notes").iterdir()}
    return Done(status, root / "runs" / "demo", root / "pictures" / "demo.svg", printed(console), loaded)


@pytest.fixture
def trained(done: Done, tmp_path: Path) -> Path:
    """Return a copy of what the trainings wrote, for a report of its own."""
    copy = tmp_path / "trained"
    shutil.copytree(done.out, copy, ignore=shutil.ignore_patterns("replayed_*", "probes", "report.html"))
    return copy


# ------------------------------------------------------------------ what it shows and leaves


def test_it_ends_well(done: Done) -> None:
    assert done.status == 0
    assert "differ" not in done.output.replace("relative difference", "")
    assert re.search(r"\nDone in \d+ s\.\n$", done.output)


@pytest.mark.parametrize("workload", STEPS)
def test_it_says_how_much_was_compared(done: Done, workload: str) -> None:
    text = " ".join(done.output.split())
    files = [
        *(done.out / workload / "jax").glob("metrics/1.jsonl"),
        *(path for path in (done.out / workload / "jax").rglob("E*.safetensors") if "probes" not in path.parts),
    ]
    numbers = sum(len(points) for points in read_run(done.out / workload / "jax").series.values())
    assert len(files) == {"digits": 2, "airfoil": 3}[workload]
    assert numbers >= 30
    assert (
        f"Fed the same update outputs ({STEPS[workload]} accumulation steps recorded in the JAX training), the JAX and the"
        f" PyTorch front-end wrote the same {numbers} numbers and {len(files)} files: identical to the bit." in text
    )
    assert text.count("Trained independently, from the same weights on the same batches, JAX and PyTorch drifted") == 2


@pytest.mark.parametrize("workload", STEPS)
def test_what_the_trainings_computed_is_the_same_and_a_page_says_so(done: Done, workload: str) -> None:
    sentence = "Same through update 12"
    page = Page(done.out / workload / "report.html").data
    verdict = page["verdict"]
    assert (verdict["outcome"], verdict["labels"]) == ("same", ["jax", "torch"])
    assert verdict["sentence"].startswith(sentence)
    assert {rung["stage"]: rung["state"] for rung in verdict["ladder"]} == {
        **dict.fromkeys(("data", "param", "act", "loss", "grad", "update", "opt"), "same"),
        "clip": "missing",
    }
    drawn = {chart["key"]: chart for chart in page["charts"]}
    assert len(drawn["grad/hidden1.weight/norm"]["curves"]) == 2
    assert drawn["grad/hidden1.weight/norm"]["apart"]["n"] == 12
    assert drawn["act/hidden1@1/norm"]["apart"]["n"] == 12  # of the second micro-batch
    maps = {picture["name"]: picture for picture in page["arrays"]["pictures"]}
    assert [panel["run"] for panel in maps["opt/nu/hidden1.weight"]["frames"][0]["panels"]] == [0, 1, -1]
    text = " ".join(done.output.split())
    assert f"Compared array by array: {sentence}" in text
    assert f"{done.out / workload / 'report.html'}\n" in done.output


@pytest.mark.parametrize("workload", STEPS)
def test_the_table_has_every_key_with_its_last_values(done: Done, workload: str) -> None:
    runs = [read_run(done.out / workload / framework).series for framework in ("jax", "torch")]
    _, section = done.output.split(f"{workload}: two independent trainings")
    lines = section.partition("Fed the same")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    table = {row[0]: row[1:] for row in cells}
    assert runs[0].keys() == runs[1].keys()
    for key in runs[0]:
        update = str(runs[0][key].update[-1])
        assert table[key][:3] == [update, *(f"{run[key].value[-1]:.9g}" for run in runs)]


@pytest.mark.parametrize("workload", STEPS)
def test_every_run_is_whole(done: Done, workload: str) -> None:
    names = {path.name for path in (done.out / workload).iterdir()}
    assert names == {
        "jax",
        "torch",
        "replayed_jax",
        "replayed_torch",
        "jax.safetensors",
        "torch.safetensors",
        "report.html",
    }
    for framework in ("jax", "torch"):
        directory = done.out / workload / framework
        run = read_run(directory)
        assert (run.problems, run.superseded) == ([], 0)
        assert run.entries[-1]["update"] == UPDATES[workload]
        assert len(list((directory / "tensorboard").iterdir())) == 1
        assert len(list(read_recording(directory.with_suffix(".safetensors")))) == STEPS[workload]


def test_each_training_process_loaded_one_framework_alone(done: Done) -> None:
    """The demo's and its docstring's claim, though each of these processes writes TensorBoard files too."""
    assert done.loaded == {
        **{f"examples.{workload}.train_jax": "flax jax jaxlib optax" for workload in STEPS},
        **{f"examples.{workload}.train_torch": "torch" for workload in STEPS},
    }


def test_both_trainings_learn_the_same(done: Done) -> None:
    for workload in STEPS:
        jax, pytorch = (read_run(done.out / workload / framework).series for framework in ("jax", "torch"))
        key = {"digits": "loss/U10", "airfoil": "loss/U5"}[workload]
        assert jax[key].value[-1] < 0.8 * jax[key].value[0]
        assert pytorch[key].value[-1] == pytest.approx(jax[key].value[-1], rel=1e-3)


def test_the_output_of_a_pipe_is_plain_and_shows_progress_in_lines(done: Done) -> None:
    assert "\x1b" not in done.output
    for name in ("digits JAX", "digits PyTorch"):
        assert re.findall(rf"{name}: (\d+)/22 updates", done.output)[-1] == "22"
    assert "airfoil JAX: 24/24 updates\n" in done.output


# ------------------------------------------------------------------ plain or rich


def test_a_terminal_gets_colours_and_the_same_words(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    plain = plain_console(120)
    rich = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="truecolor", legacy_windows=False)
    assert [demo.report(trained, None, plain, {}), demo.report(again, None, rich, {})] == [0, 0]
    colours = re.compile(r"\x1b\[[\d;]*m")
    assert "\x1b[1;32mFed the same update outputs" in printed(rich)  # bold green
    words = colours.sub("", printed(rich)).replace(str(again), str(trained))
    assert [line.rstrip() for line in words.splitlines()] == [line.rstrip() for line in printed(plain).splitlines()]


def test_a_terminal_gets_bars_and_anything_else_a_line_a_quarter() -> None:
    plain, rich = plain_console(100), Console(file=io.StringIO(), width=100, force_terminal=True)
    for console in (plain, rich):
        reporter = demo.Reporter(console)
        with reporter.bars:
            for number in range(1, 101):
                reporter.show("digits JAX", number, 100)
    assert printed(plain).splitlines() == [f"digits JAX: {number}/100 updates" for number in (25, 50, 75, 100)]
    assert "100/100 updates" in printed(rich)
    assert "━" in printed(rich)


# ------------------------------------------------------------------ the picture


def test_the_picture_is_one_file_that_loads_nothing(done: Done) -> None:
    source = done.svg.read_text(encoding="utf-8")
    tree = ET.fromstring(source)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"https?://(?!www\.w3\.org/)\S+", re.sub(r"<!--.*?-->", "", source)) == []
    assert not re.search(r"@font-face|@import|<script|<image|href=", source)
    text = " ".join("".join(tree.itertext()).replace("\xa0", " ").split())
    for phrase in (
        "make demo",
        "digits: two independent",
        "airfoil: two independent",
        "identical to the bit",
        "loss/E1",
    ):
        assert phrase in text


def test_without_an_svg_no_picture_is_made(trained: Path) -> None:
    demo.report(trained, None, plain_console(), {})
    assert not list(trained.parent.rglob("*.svg"))


# ------------------------------------------------------------------ it fails if one bit differs


def nudge_recorded_step(out: Path) -> list[str]:
    """Flip one bit of one recorded value: the replays then differ from the training, though not from each other."""
    file = out / "jax.safetensors"
    arrays = read_arrays(file)
    name = next(name for name in arrays if name.startswith("00000003/") and name.endswith("/loss"))
    arrays[name] = (arrays[name].view(np.int32) ^ (1 << 8)).view(np.float32)
    write_arrays(file, arrays)
    saved = (out / "jax" / "update_outputs" / "losses").rglob("*.safetensors")
    return ["metrics/1.jsonl", *(path.relative_to(out / "jax").as_posix() for path in saved)]


def nudge_logged_number(out: Path) -> list[str]:
    """Change one number of the training's log by one unit in the last place."""
    file = out / "jax" / "metrics" / "1.jsonl"
    entries = list(iter_lines(file, []))
    key = next(key for key in entries[1] if key.startswith(("accuracy/", "loss/")))
    entries[1][key] = float(np.nextafter(np.float32(entries[1][key]), np.float32(9)))
    file.write_bytes(b"".join(encode_line(entry) for entry in entries))
    return ["metrics/1.jsonl"]


def flip_a_bit_of_a_saved_array(out: Path) -> list[str]:
    file = next(iter(sorted((out / "jax" / "update_outputs").rglob("*.safetensors"))))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return [file.relative_to(out / "jax").as_posix()]


def remove_a_saved_array(out: Path) -> list[str]:
    file = next(iter(sorted((out / "jax" / "update_outputs").rglob("*.safetensors"))))
    file.unlink()
    return [file.relative_to(out / "jax").as_posix()]


def add_a_log(out: Path) -> list[str]:
    shutil.copy(out / "jax" / "metrics" / "1.jsonl", out / "jax" / "metrics" / "2.jsonl")
    return ["metrics/2.jsonl"]


CHANGES = [nudge_recorded_step, nudge_logged_number, flip_a_bit_of_a_saved_array, remove_a_saved_array, add_a_log]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("workload", STEPS)
def test_one_bit_in_what_the_training_wrote_makes_it_fail(trained: Path, workload: str, change: Any) -> None:
    names = change(trained / workload)
    console = plain_console()
    assert demo.report(trained, None, console, {}) == 1
    lines = printed(console).splitlines()
    assert [line for line in lines if line.startswith("differs: ")] == [f"differs: {workload}/{name}" for name in names]
    sentences = " ".join(printed(console).split())
    assert f"Both replays differ from what the JAX training itself wrote in {', '.join(names)}." in sentences
    assert sentences.count("identical to the bit") == 1  # the other workload's


class OneBitOff(_TorchBackend):
    """Hand over every tensor right, but for the last bit of the first float32 scalar."""

    def __init__(self) -> None:
        self.is_done = False

    def from_numpy(self, value: np.ndarray[Any, Any]) -> torch.Tensor:
        if not self.is_done and value.dtype == np.float32 and value.shape == ():
            self.is_done = True
            value = (value.view(np.int32) ^ (1 << 6)).view(np.float32)
        return super().from_numpy(value)


def test_a_front_end_that_is_off_by_one_bit_makes_it_fail(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(noether_torch.Run):
        backend = OneBitOff()

    monkeypatch.setitem(demo.RUNS, "torch", Broken)
    console = plain_console()
    assert demo.report(trained, None, console, {}) == 1
    text = " ".join(printed(console).split())
    assert "Fed the same update outputs, the front-ends differ in metrics/1.jsonl." in text
    assert "differs: digits/metrics/1.jsonl" in text
    assert "differs: airfoil" not in text  # the bit was off once
    assert text.count("identical to the bit") == 1


def test_a_recording_cut_short_makes_it_fail(trained: Path) -> None:
    file = trained / "airfoil" / "jax.safetensors"
    arrays = read_arrays(file)
    last = f"{STEPS['airfoil'] - 1:08d}/"
    short = {name: array for name, array in arrays.items() if not name.startswith(last)}
    write_arrays(file, {**short, "accumulation_steps": np.array(STEPS["airfoil"] - 1)})
    console = plain_console()
    assert demo.report(trained, None, console, {}) == 1
    assert "differs: airfoil/metrics/1.jsonl" in printed(console)


def test_a_damaged_recording_is_named(trained: Path) -> None:
    file = trained / "digits" / "jax.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(NoetherError, match=re.escape(str(file))):
        demo.report(trained, None, plain_console(), {})


# ------------------------------------------------------------------ what may go wrong before


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    for name in ("thesis.tex", "digits", "jax"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("data", encoding="utf-8")
    console = plain_console()
    with pytest.raises(NoetherError, match=r"holds 'jax', 'thesis.tex'; give an empty or new directory"):
        demo.run_demo(tmp_path, None, console, epochs=1)
    assert sorted(path.name for path in tmp_path.rglob("precious")) == ["precious"] * 3
    assert printed(console) == ""


def test_a_file_is_no_directory_for_the_runs(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious", encoding="utf-8")
    with pytest.raises(NoetherError, match=r"out' is a file; give an empty or new directory"):
        demo.run_demo(tmp_path / "out", None, plain_console(), epochs=1)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "precious"


def test_only_an_earlier_demo_s_runs_are_removed(tmp_path: Path) -> None:
    for name in ("digits", "airfoil"):
        (tmp_path / "out" / name / "jax" / "metrics").mkdir(parents=True)
    demo._clear(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    demo._clear(tmp_path / "out")  # a new one
    (tmp_path / "empty").mkdir()
    demo._clear(tmp_path / "empty")


def test_the_command_refuses_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x", encoding="utf-8")
    command = [str(Path(sys.executable).with_name("noether-parity")), "demo", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(demo.ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"noether-parity: --out {str(tmp_path)!r} holds 'mine'; give an empty or new directory for the demo's runs\n"
    )


def test_a_training_that_fails_shows_what_it_said_once_the_other_has_ended(tmp_path: Path) -> None:
    (tmp_path / "jax").write_text("in the way", encoding="utf-8")
    with pytest.raises(demo.TrainingError) as caught:
        demo.train_both("digits", tmp_path, demo.Reporter(plain_console()), epochs=1)
    for phrase in ("examples.digits.train_jax", "exited with 1:\n", "FileExistsError", str(tmp_path / "jax")):
        assert phrase in str(caught.value)
    assert isinstance(caught.value, NoetherError)  # so the command shows it as a message
    assert read_run(tmp_path / "torch").entries[-1]["update"] == UPDATES["digits"]


# ------------------------------------------------------------------ TensorBoard without torch


def test_torch_is_left_out_in_this_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    found: list[Any] = []

    def find() -> None:
        found.append(any(finder.find_spec("torch", None) for finder in sys.meta_path if hasattr(finder, "find_spec")))

    with _torch_left_out():
        with pytest.raises(ModuleNotFoundError, match="torch is left out here"):
            import torch  # noqa: F401
        thread = threading.Thread(target=find)
        thread.start()
        thread.join()
    assert found == [True]
    find()
    assert found == [True, True]


TRACKED = """
import sys
from pathlib import Path
from noether_core.emit.trackers.tensorboard import TensorBoardTracker
before = list(sys.meta_path)
tracker = TensorBoardTracker(Path(sys.argv[1]))
tracker.log({"epoch": 0, "update": 1, "sample": 1, "loss": 0.5, "note": "text"})
tracker.close()
assert "tensorboardX" in sys.modules
assert "torch" not in sys.modules
assert sys.meta_path == before
import torch
assert torch.ones(2).sum() == 2
"""


def test_a_tensorboard_tracker_loads_no_torch_and_forbids_none(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", TRACKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 1
