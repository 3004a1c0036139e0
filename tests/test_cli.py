from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

from noether_core import LogWriter, UpdateCounter
from noether_core.cli import app, main
from noether_core.emit.arrays import write_arrays

LONG = "layer/" + "/".join(f"block_{n}" for n in range(7)) + "/attention/norm"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Parity = Callable[..., Done]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parity:
    """Return a function that runs the whole program in this process, its messages for errors included."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["noether-parity", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return run


def program(*arguments: str | Path, **environment: str) -> Done:
    """Run the installed program, its output piped."""
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "FORCE_COLOR", "NO_COLOR"}}
    command = [str(Path(sys.executable).with_name("noether-parity")), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, check=False, env={**kept, "TERM": "xterm-256color", **environment}
    )
    return Done(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path / "run", update_counter=counter)
    for update in range(1, 4):
        counter.next_update()
        writer.add_scalar("loss/U1", 1 / update)
        writer.add_scalar(f"{LONG}/mean/U1", update)
        writer.add_scalar(f"{LONG}/mean/E1", -update)
        writer.flush()
    writer.close()
    write_arrays(tmp_path / "run" / "update_outputs" / "U1" / "E0_U1_S1.safetensors", {LONG: np.ones(3)})
    return tmp_path / "run"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"callbacks: [{{every_n_updates: 10, keys: [loss], patterns: [{LONG}]}}]", encoding="utf-8")
    return path


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps({"loss": 0.5, LONG: {"mean": 1.0, "max": 2.0}}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["--help"], ["demo", "show", "explain", "Usage"]),
        (["show", "--help"], ["A run directory", "--svg", "--follow"]),
        (["plot", "--help"], ["Run directories", "--smooth", "--out"]),
        (["explain", "--help"], ["callbacks", ".json, .yaml or .safetensors"]),
        (["demo", "--help"], ["--out", "--svg"]),
    ],
)
def test_help_names_what_there_is(arguments: list[str], phrases: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    text = " ".join(done.output.replace("│", "").split())  # as it was before it was wrapped
    assert all(phrase in text for phrase in phrases)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ([], "Usage"),
        (["shwo"], "No such command 'shwo'"),
        (["show"], "Missing argument"),
        (["check", "a", "b"], "unexpected extra argument"),
        (["show", "--colour", "a"], "No such option"),
        (["explain", "config.yaml"], "Missing argument"),
    ],
)
def test_a_wrong_command_line_exits_2_and_says_why(arguments: list[str], phrase: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert phrase in done.output
    assert "Traceback" not in done.output


def test_show_exits_0(run_path: Path) -> None:
    done = CliRunner().invoke(app, ["show", str(run_path)])
    assert done.exit_code == 0
    assert "loss/U1" in done.output
    assert "saved arrays" in done.output


def test_show_saves_a_picture_that_loads_nothing(run_path: Path) -> None:
    run_path = run_path.rename(run_path.with_name("a <b> & c"))
    picture = run_path.parent / "pictures" / "run.svg"
    done = CliRunner().invoke(app, ["show", str(run_path), "--svg", str(picture)])
    assert (done.exit_code, "loss/U1" in done.output) == (0, True)
    source = picture.read_text(encoding="utf-8")
    shown = " ".join("".join(ET.fromstring(source).itertext()).replace("\xa0", " ").split())
    assert all(phrase in shown for phrase in ("noether-parity show", "a <b> & c", "loss/U1", "█▃▁", "saved arrays"))
    assert not re.search(r"@font-face|@import|<script|<image|href=", source)


def test_explain_exits_0_when_all_is_well(config: Path, outputs: Path) -> None:
    done = CliRunner().invoke(app, ["explain", str(config), str(outputs)])
    assert done.exit_code == 0
    assert "loss/U10" in done.output


def test_explain_exits_1_for_a_typo_and_names_the_closest_key(config: Path, outputs: Path) -> None:
    config.write_text("callbacks: [{every_n_updates: 10, keys: [los]}]", encoding="utf-8")
    done = CliRunner().invoke(app, ["explain", str(config), str(outputs)])
    assert done.exit_code == 1
    assert "✗ key 'los' is not among the update outputs. Did you mean 'loss'?" in done.output


def test_explain_exits_1_when_one_of_several_callbacks_matches_nothing(config: Path, outputs: Path) -> None:
    entries = "[{every_n_updates: 10, keys: [loss]}, {every_n_updates: 10, patterns: [nothing]}]"
    config.write_text(f"callbacks: {entries}", encoding="utf-8")
    done = CliRunner().invoke(app, ["explain", str(config), str(outputs)])
    assert done.exit_code == 1
    assert "loss/U10" in done.output
    assert "pattern 'nothing' is contained in no key" in done.output


def refused(done: Done) -> str:
    """Return the one message of an error: exit code 2, nothing on standard output, no traceback."""
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.startswith("noether-parity: ")
    return done.err


def test_show_of_what_is_no_run_says_so(parity: Parity, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "absent' does not exist; give the directory" in refused(parity("show", tmp_path / "absent"))
    assert "empty' has no config.yaml, metrics/ or" in refused(parity("show", tmp_path / "empty"))


def test_show_of_a_file_does_not_say_that_it_is_absent(parity: Parity, config: Path) -> None:
    assert "does not exist" not in refused(parity("show", config))


def test_show_of_a_file_is_refused(parity: Parity, config: Path) -> None:
    assert f"{str(config)!r}" in refused(parity("show", config))


def test_explain_names_the_file_that_is_absent(parity: Parity, config: Path, outputs: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert f"config file {str(absent)!r} does not exist" in refused(parity("explain", absent, outputs))
    assert f"cannot read update outputs from {str(absent)!r}" in refused(parity("explain", config, absent))
    assert f"config file {str(tmp_path)!r} cannot be read" in refused(parity("explain", tmp_path, outputs))


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("", ["has no `callbacks:` list"]),
        ("callback: []", ["has no `callbacks:` list", "'callback'"]),
        ("callbacks: [", ["is not valid YAML"]),
        ("callbacks: [3]", ["callbacks[0]", "expected a mapping"]),
        (
            "callbacks: [{kind: Trackadditionaloutputs, keys: [loss]}]",
            ["Did you mean 'TrackAdditionalOutputsCallback'"],
        ),
        ("callbacks: [{every_n_update: 1, keys: [loss]}]", ["every_n_update"]),
        ("callbacks: [{every_n_updates: 1}]", ["keys and patterns are both empty"]),
        ("callbacks: [{every_n_updates: 0, keys: [loss]}]", ["every_n_updates"]),
        ("callbacks: [{every_n_updates: 1, every_n_epochs: 1, keys: [loss]}]", ["exactly one of"]),
    ],
)
def test_a_wrong_config_is_one_message(
    parity: Parity, config: Path, outputs: Path, text: str, phrases: list[str]
) -> None:
    config.write_text(text, encoding="utf-8")
    message = refused(parity("explain", config, outputs))
    assert all(phrase in message for phrase in phrases)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "text"}', '{"a": [[1], 2]}'])
def test_wrong_outputs_are_one_message(parity: Parity, config: Path, outputs: Path, content: str) -> None:
    outputs.write_text(content, encoding="utf-8")
    refused(parity("explain", config, outputs))


def test_a_message_is_one_line_however_long_the_path(parity: Parity, tmp_path: Path) -> None:
    path = tmp_path / ("directory/" * 30)
    (line,) = refused(parity("show", path)).splitlines()
    assert repr(str(path)) in line


def test_a_name_that_no_file_can_have_is_one_message(parity: Parity) -> None:
    refused(parity("show", "x" * 300))


def test_a_directory_in_place_of_a_log_is_one_message(parity: Parity, run_path: Path) -> None:
    (run_path / "metrics" / "2.jsonl").mkdir()
    done = parity("show", run_path)
    assert "Traceback" not in done.err
    assert "2.jsonl" in done.err + done.out


def test_lists_nested_too_deep_are_one_message(parity: Parity, config: Path, outputs: Path) -> None:
    outputs.write_text('{"a":' + "[" * 50_000 + "]" * 50_000 + "}", encoding="utf-8")
    refused(parity("explain", config, outputs))


def test_piped_output_has_no_escape_codes_and_long_keys_whole(run_path: Path) -> None:
    done = program("show", run_path)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    names = [f"{LONG}/mean/U1", f"{LONG}/mean/E1", LONG]
    assert all(len(name) > 80 for name in names[:2])
    assert all(re.search(rf"(^| ){re.escape(name)}( |$)", done.out, re.MULTILINE) for name in names)


def test_explain_folds_long_keys_and_cuts_none(config: Path, outputs: Path) -> None:
    done = program("explain", config, outputs)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    rows = [line.split("│")[1:-1] for line in done.out.splitlines() if line.startswith("│")]
    columns = ["".join(cell.strip() for cell in column) for column in zip(*rows, strict=True)]
    assert columns[0] == f"loss{LONG}/mean{LONG}/max"
    assert columns[3] == f"loss/U10{LONG}/mean/U10{LONG}/max/U10"


@pytest.mark.parametrize("columns", ["60", "160"])
def test_show_never_cuts_a_key(tmp_path: Path, columns: str) -> None:
    writer = LogWriter(tmp_path, update_counter=UpdateCounter())
    keys = ["k" * 200 + end for end in "ab"]
    for key in keys:
        writer.add_scalar(key, 1.0)
    writer.close()
    done = program("show", tmp_path, COLUMNS=columns)
    assert [line for line in done.out.splitlines() if line.startswith("k")] == keys


def test_an_error_on_a_pipe_has_no_escape_codes(tmp_path: Path) -> None:
    message = refused(program("show", tmp_path / "absent"))
    assert (
        message == f"noether-parity: {str(tmp_path / 'absent')!r} does not exist; give the directory that a Run wrote\n"
    )


def test_a_reader_that_hangs_up_sees_no_traceback(run_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("noether-parity")), "show", str(run_path)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


def test_an_ascii_terminal_sees_no_traceback(run_path: Path) -> None:
    done = program("show", run_path, PYTHONIOENCODING="ascii")
    assert "Traceback" not in done.err
    assert "loss/U1" in done.out
