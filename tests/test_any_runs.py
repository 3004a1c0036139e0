"""Whatever runs hold and are called: each command gives an answer or a clear error, in the way that it is documented."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from any_bits import FLOATS, INTS, any_array
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transplant import NumpyTraining

import noether_torch
from noether_core import NoetherError, read_run
from noether_core.cli import main
from noether_core.parity.between_runs import (
    NotTheSameTrainingError,
    assert_same_training,
    compare_trainings,
    transplant,
)
from noether_core.parity.divergence import MemoryTraining, compare
from noether_core.report import write_plot, write_report

# ---------------------------------------------------------------------- runs that are drawn

NAMES = [
    *("w", "l.weight", "0.weight", "a.b.c", "layers.0.kernel", "a/b", "..", "../../x", ".", "-k", "%s", "{key}", "NaN"),
    *("<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", '"', "'", "\\", "[bold]x[/]", "__proto__"),
    *("\x1b[31mred", "é😀", "\u202egnp", "a\nb", "\0", "\ud800", " ", "\t", "\u2028", "x" * 3000),
]
VALUES = (0.0, 1.0, float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, 2.0**53)
DTYPES = (*INTS, *FLOATS, "complex64", *["float32"] * 9)
PIECES = ("batch", "params", "activations", "losses", "grads", "clipped", "updates")


def make(path: Path, seed: int, names: list[str], pieces: list[str], kept: dict[Any, Any]) -> Path:
    """Write a run whose keys come and go, with any values; those in `kept` are mostly another run's."""
    generator = np.random.default_rng(seed)
    limit = int(generator.choice([1, 64, 2**20]))
    probes = {
        "every_n_updates": int(generator.integers(1, 3)),
        "arrays": int(generator.integers(3)),
        "array_limit": limit,
    }
    logged = {"every_n_updates": 1, "scalars": True, "log_as": "{key}"}
    with noether_torch.Run(path, [{"kind": "ProbeCallback", **probes}, logged]) as run:
        for update in range(int(generator.choice([0, 1, 2, 4]))):
            step: dict[str, dict[str, Any]] = {}
            for piece in pieces:
                if generator.random() < 0.9:
                    step[piece] = {}
                    for name in names:
                        place = (update, piece, name)
                        if generator.random() < 0.2 or place not in kept:
                            kept[place] = any_array(generator, str(generator.choice(DTYPES)))
                        if generator.random() < 0.9:
                            step[piece][name] = kept[place]
            scalars = {name: float(generator.choice(VALUES)) for name in names if generator.random() < 0.8}
            run.step({"first": 1.0, **scalars, **noether_torch.probe(run.probes_due, **step)})
    return path


def command(*arguments: Any) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code and what it printed."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["noether-parity", *map(str, arguments)]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def answered(*arguments: Any, codes: tuple[int, ...] = (0, 2)) -> tuple[int, str]:
    """Check a command's answer: an exit code of its own, never a traceback, nothing that steers a terminal."""
    code, out, err = command(*arguments)
    assert code in codes, (arguments, code, err)
    assert all(char.isprintable() or char == "\n" for char in (out + err).replace("\x1b[", "")), (arguments, out, err)
    assert "Traceback" not in err
    assert code != 2 or err or out, arguments
    return code, out


@pytest.mark.filterwarnings("ignore:probe found nothing to record")
@settings(max_examples=settings.default.max_examples // 10)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5, unique=True),
    st.booleans(),
)
def test_drawn_runs_are_compared_and_drawn(seed: int, names: list[str], pieces: list[str], is_other: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept: dict[Any, Any] = {}
        a = make(Path(folder, "a"), seed, names, pieces, kept)
        b = make(Path(folder, "b"), seed + is_other, names[:2], pieces[::-1], kept)
        code, out = answered("compare", a, b, "--json", codes=(0, 1, 2))
        form = orjson.loads(out)  # a strict parser
        assert form["exit_code"] == code
        assert not [note for note in form["warnings"] if "could not be asked" in note]
        try:
            assert_same_training(a, b)
            is_same = True
        except NotTheSameTrainingError:
            is_same = False
        assert is_same == (code == 0)
        answered("compare", a, b, "--report", Path(folder, "page.html"), codes=(0, 1, 2))
        answered("show", a, b)
        answered("plot", a, b, "-o", Path(folder, "plot.html"))
        assert orjson.loads(answered("check", a, "--json", codes=(0, 1))[1])["path"] == str(a)
        read_run(a).to_pandas()


# ---------------------------------------------------------------------- what stands where a run, or a page, is to be


def logged_run(path: Path, *values: float) -> Path:
    with noether_torch.Run(path, [{"every_n_updates": 1, "keys": ["loss"]}]) as run:
        for value in values or (1.0, 0.5):
            run.step({"loss": value})
    return path


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):  # a socket's path is short
        server.bind(path.name)


PLACES: Mapping[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("x"),
    "an empty folder": Path.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "a socket": listening,
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_run_is_said_by_every_command(place: str, tmp_path: Path) -> None:
    there, run = tmp_path / "there", logged_run(tmp_path / "run")
    PLACES[place](there)
    page = tmp_path / "page.html"
    for arguments in (
        ("compare", run, there, "--json"),
        ("compare", there, run),
        ("compare", run, run, "--twins", there),
        ("compare", run, run, "--mapping", there),
        ("show", there),
        ("show", run, there),
        ("show", there, "--json"),
        ("plot", there, "-o", page),
        ("report", run, there, "-o", page),
        ("export", there, "--to", "csv", "--out", page),
        ("merge", there),
        ("calibrate", there, "--", "true"),
        ("explain", there, there),
    ):
        answered(*arguments, codes=(2,))
    answered("check", there, codes=(1, 2))
    assert not page.exists()


@pytest.mark.parametrize("place", ["an empty folder", "a pipe", "a socket"])
def test_a_page_takes_the_place_of_a_file_alone(place: str, tmp_path: Path) -> None:
    """Of root's `-o /dev/null` too, which a rename would have made a file for all."""
    run, there = logged_run(tmp_path / "run"), tmp_path / "there.html"
    PLACES[place](there)
    before = there.lstat().st_mode
    for write in (
        lambda: write_report([run], there),
        lambda: write_plot([run], there),
        lambda: answered("export", run, "--to", "csv", "--out", there, codes=(0,)),
    ):
        with pytest.raises((NoetherError, AssertionError), match="which a new file would replace"):
            write()
        assert there.lstat().st_mode == before
    there.rmdir() if there.is_dir() else there.unlink()
    there.symlink_to("nowhere")
    assert write_report([run], there).is_file()


@pytest.mark.parametrize("values", [(1e308, -1e308), (1e308, 1e308), (5e-324, 1e308), (1e300, 1.0000000000000002e300)])
@pytest.mark.parametrize("is_log", [False, True])
def test_a_picture_of_the_largest_numbers_is_drawn(values: tuple[float, ...], is_log: bool, tmp_path: Path) -> None:
    run = logged_run(tmp_path / "run", 1.0, *values)
    assert write_plot([run], tmp_path / "plot.svg", log=is_log).read_bytes().startswith(b"<?xml")


def test_half_a_surrogate_pair_is_an_escape_in_a_frame(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    with noether_torch.Run(tmp_path, [{"every_n_updates": 1, "keys": ["\ud800"]}]) as run:
        run.step({"\ud800": 1.0})
        run.log({"text\udfff": "\ud800!", "list": [1, [2]]})
        run.step({"\ud800": 2.0})
    frame = read_run(tmp_path).to_pandas()
    assert frame["\\ud800/U1"].tolist() == [1.0, 2.0]
    assert "\\ud800!" in frame["text\\udfff"].tolist()
    assert [1, [2]] in frame["list"].tolist()


# ---------------------------------------------------------------------- what is probed


@pytest.mark.filterwarnings("ignore:probe found nothing to record")
def test_an_update_of_which_nothing_is_probed_costs_no_other(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [{"kind": "ProbeCallback", "every_n_updates": 1, "arrays": 9}]) as run:
        run.step(noether_torch.probe(run.probes_due, batch={}))
        run.step(noether_torch.probe(run.probes_due, losses=torch.ones(())))
    assert compare_trainings(tmp_path, tmp_path).outcome == "same"


def renamed(training: MemoryTraining, label: str) -> MemoryTraining:
    arrays = {
        update: {key.replace("fc", "dense"): value for key, value in keys.items()}
        for update, keys in training.arrays.items()
    }
    return MemoryTraining(label, "torch", arrays)


def test_a_moment_that_has_not_its_parameters_shape_is_compared_as_it_is() -> None:
    def step(update: int, rows: int = 3) -> dict[str, Any]:
        weight = np.arange(2.0 * rows).reshape(rows, 2) + update
        factored = {"opt/row/fc.weight": weight.sum(1), "opt/step/fc.weight": np.float64(update)}
        return {"param/fc.weight": weight, "grad/fc.weight": weight / 7, **factored}

    a = MemoryTraining("a", "torch", {1: step(1), 2: step(2)})
    assert compare_trainings(a, renamed(a, "b")).outcome == "same"
    grown = MemoryTraining("b", "torch", {1: step(1), 2: step(2, rows=4)})
    found = compare_trainings(a, renamed(grown, "b"))
    assert found.first is not None
    assert (found.first.update, found.first.key) == (2, "param/fc.weight")


def test_rows_with_nan_are_in_their_order() -> None:
    batch = np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0]])
    a, b, c = (
        MemoryTraining(label, "torch", {1: {"data/x": rows, "loss/total": 1.0}})
        for label, rows in (("a", batch), ("b", batch.copy()), ("c", batch[[1, 0, 2]]))
    )
    assert not [note for note in compare(a, b).warnings if "order" in note]
    assert [note for note in compare(a, c).warnings if "another order" in note]


def test_two_names_that_are_mapped_to_one_are_told() -> None:
    a = MemoryTraining("a", "torch", {1: {"param/v": np.ones((2, 3)), "param/w": np.ones((2, 3))}})
    b = MemoryTraining("b", "torch", {1: {"param/p": np.ones((2, 3))}})
    found = compare_trainings(a, b, mapping={"v": "p", "w": "p"})
    assert "the mapping pairs each of 'v', 'w' with 'p'" in found.warnings


# ---------------------------------------------------------------------- step functions of strangers

ONE, TWO = NumpyTraining(0.5), NumpyTraining(0.4)


def _in_place(*arguments: Any, **options: Any) -> Any:
    found = ONE.step(*arguments, **options)
    for arrays in arguments[:4]:
        for array in arrays.values():
            array[...] = np.nan
        arrays.clear()
    return found


STEPS: Mapping[str, tuple[Callable[..., Any], str]] = {
    "raises": (lambda *_, **__: {}["\x1b[31m"], "failed (KeyError: '\\x1b[31m')"),
    "returns nothing": (lambda *_, **__: None, "it returned NoneType; expected a dict from keys to arrays"),
    "returns a list": (lambda *_, **__: [1.0], "it returned list; expected a dict"),
    "returns text": (lambda *_, **__: {"loss/total": "low"}, "it returned str for 'loss/total'; expected an array of numbers"),
    "returns None for a key": (lambda *_, **__: {"loss/total": None}, "it returned NoneType for 'loss/total'"),
    "returns what is ragged": (lambda *_, **__: {"grad/w": [[1.0], [1.0, 2.0]]}, "failed (ValueError: "),
    "takes nothing": (lambda _: {}, "failed (TypeError: "),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_fails_is_a_sentence(name: str) -> None:
    step, words = STEPS[name]
    a, b = ONE.run("mine"), TWO.run("theirs")
    for steps, whose in (((step, TWO.step), "mine"), ((ONE.step, step), "theirs")):
        said = transplant(*steps, a, b, compare(a, b))
        assert said.culprit is None
        assert said.sentence.startswith(f"Cannot say: {whose}'s step function, given what it recorded, failed (")
        assert words in said.sentence


def test_a_step_that_fails_on_the_others_inputs_says_on_which() -> None:
    def picky(batch: Any, params: Any, *rest: Any, **options: Any) -> Any:
        if not np.array_equal(params["w"], known["w"]):
            raise ValueError("other weights")
        return TWO.step(batch, params, *rest, **options)

    a, b = ONE.run("mine", seed=1), TWO.run("theirs")
    known = {"w": b.arrays[1]["param/w"]}
    for update in b.arrays:
        b.arrays[update] |= {key: a.arrays[update][key] for key in ("data/x", "data/y")}
    b.arrays[1] |= TWO.step({"x": a.arrays[1]["data/x"], "y": a.arrays[1]["data/y"]}, known, {}, {}, 1)
    said = transplant(ONE.step, picky, a, b, compare(a, b))
    assert said.sentence == (
        "Cannot say: theirs's step function, given the params alone of mine, failed (ValueError: other weights)"
    )
    assert [swap.given for swap in said.swaps] == ["nothing"]


def _each(change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *args, **named: {key: change(np.array(value)) for key, value in ONE.step(*args, **named).items()}


@pytest.mark.parametrize(
    "odd",
    [
        _in_place,
        _each(lambda value: torch.tensor(value, requires_grad=True)),
        _each(lambda value: value.astype(np.float64)),
        _each(lambda value: value.tolist()),
        lambda *args, **named: {**ONE.step(*args, **named), "elsewhere/x": 1.0, 3: 2.0},
    ],
    ids=["writes into its inputs", "tensors with a graph", "float64", "lists", "other keys"],
)
def test_a_step_may_write_into_its_inputs_and_return_what_it_likes(odd: Callable[..., Any]) -> None:
    a, b = ONE.run("mine"), TWO.run("theirs")
    assert transplant(odd, TWO.step, a, b, compare(a, b)).culprit == "clip"
