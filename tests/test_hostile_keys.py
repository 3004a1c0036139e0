"""Keys that mean something to a file system, a terminal, a browser or a spreadsheet are names, and come back as they were."""

from __future__ import annotations

import csv
import io
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from tool_readers import tensorboard_series

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.cli import main
from noether_core.emit.export import export_run
from noether_core.parity.replay import read_recording

KEYS = {
    "up": "../x",
    "far up": "../../../../../../../../tmp/noether-hostile",
    "absolute": "/etc/noether-hostile",
    "home": "~/x",
    "dots": "..",
    "backslashes": "..\\..\\x",
    "NUL": "a\0b",
    "300 bytes": "ü" * 150,
    "3,000 letters": "x" * 3000,
    "upper": "Foo",
    "lower": "foo",
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[31mred\x1b[0m",
    "C1": "\x9b2J",
    "return": "a\rb",
    "newline": "a\nb",
    "right to left": "\u202egnp.x",
    "zero width": "a\u200bb",
    "script": "<script>alert(1)</script>",
    "attribute": "\" onload='alert(1)",
    "entity": "&lt;b&gt;",
    "CDATA": "]]>",
    "markup": "[bold]x[/bold]",
    "prototype": "__proto__",
    "constructor": "constructor",
    "emoji": "🙂👩\u200d👩\u200d👧",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "formula": "=1+1",
    "percent": "%s%n{0}{x}",
    "space": " ",
    "nothing": "",
    "comma": 'a,"b',
}
FRONT_ENDS = {"jax": noether_jax, "torch": noether_torch}
AT_ONCE = list(KEYS.values())


def values(update: int) -> dict[str, float]:
    return {key: float(update * 100 + at) for at, key in enumerate(AT_ONCE)}


def everything_in(path: Path) -> set[str]:
    return {os.fspath(each.relative_to(path)) for each in path.rglob("*")}


@pytest.fixture(params=FRONT_ENDS)
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train with all of the keys at once in `run`, from a directory of its own."""
    front_end: Any = FRONT_ENDS[request.param]
    directory = tmp_path / "a" / "b" / "c"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("HOME", str(tmp_path / "a"))
    config = {"every_n_updates": 1, "keys": AT_ONCE, "save_output": True}
    with front_end.Run(
        "run", [config, config | {"id": "2", "reduce": "max"}], trackers=["tensorboard"], record="recording"
    ) as run:
        run.step(values(1))
        run.log({f"{key} own": [{key: key}] for key in AT_ONCE})
        run.save_state("state")
        run.step(values(2))
    with front_end.Run("resumed", [config, config | {"id": "2", "reduce": "max"}], record="again") as run:
        run.load_state("state")
        run.step(values(2))
    return directory


def test_they_come_back_as_they_were_and_nothing_is_elsewhere(home: Path, tmp_path: Path) -> None:
    assert {each.name for each in home.iterdir()} == {"run", "resumed", "recording", "again", "state"}
    assert [each.name for each in (home.parent, *home.parent.iterdir())] == ["b", "c"]
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert not Path("/etc/noether-hostile").exists()
    assert not Path("/tmp/noether-hostile").exists()
    assert not any(set(name) - set(map(chr, range(32, 127))) for name in everything_in(home))
    read = read_run(home / "run")
    assert read.problems == []
    for number, entry in enumerate(read.entries, 1):
        found = {key: value for key, value in entry.items() if key.endswith("U1")}
        logged = {f"{key}/U1": value for key, value in values(number).items()}
        assert found == logged | {f"{key}/max/U1": value for key, value in values(number).items()}
    assert [read.entries[0][f"{key} own"] for key in AT_ONCE] == [[{key: key}] for key in AT_ONCE]
    for file in read.arrays:
        assert file.iteration.update is not None
        assert {key: float(value) for key, value in file.load().items()} == values(file.iteration.update)
    assert read_run(home / "resumed").entries[-1].keys() == read.entries[-1].keys()
    steps = [*read_recording(home / "recording")]
    assert [{key: float(value) for key, value in (step or {}).items()} for step in steps] == [values(1), values(2)]


def test_exports_have_them_too(home: Path) -> None:
    names = [*read_run(home / "run").series]
    table = pyarrow.parquet.read_table(export_run(home / "run", "parquet").path)
    text = export_run(home / "run", "csv").path.read_bytes().decode("utf-8")
    head = next(csv.reader(io.StringIO(text, newline="")))
    for key in AT_ONCE:
        name = f"{key}/U1"
        assert name in names
        assert head.count(name) + head.count(f"'{name}") == 1, name
        assert table.column_names.count(name) == 1, name
    (directory,) = {file.parent for file in (home / "run").rglob("*tfevents*")}
    curves = tensorboard_series(directory)
    assert {f"{key}/U1" for key in AT_ONCE} <= curves.keys()
    assert {each.name for each in home.iterdir()} == {"run", "resumed", "recording", "again", "state"}


@pytest.mark.parametrize("command", ["show run", "show run --svg run.svg", "check run", "merge run", "explain"])
def test_they_are_inert_in_a_terminal_and_in_a_picture(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.split()
    if command == "explain":
        callbacks = [{"every_n_updates": 1, "keys": AT_ONCE, "patterns": ["<b>\x1b[31m"]}]
        (home / "c.yaml").write_text(yaml.safe_dump({"callbacks": callbacks}))
        words = ["explain", "c.yaml", str(next((home / "run").rglob("*U1_S1.safetensors")))]
    monkeypatch.setattr(sys, "argv", ["noether-parity", *words])
    monkeypatch.setenv("FORCE_COLOR", "")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert caught.value.code in (0, 1), printed
    assert "Traceback" not in printed.err
    for text in printed:
        assert [char for char in text if not char.isprintable() and char != "\n"] == []
    if "--svg" in words:
        picture = (home / "run.svg").read_text("utf-8")
        elements = [*ET.fromstring(picture).iter()]
        assert {element.tag.rpartition("}")[2] for element in elements}.isdisjoint(
            {"script", "foreignObject", "a", "b"}
        )
        assert not [name for element in elements for name in element.attrib if name.startswith("on")]
        shown = "".join(element.text or "" for element in elements if element.tag.endswith("text"))
        assert "<script>alert(1)</script>" in shown.replace("\xa0", " ")


@pytest.mark.sweep(2)
@pytest.mark.parametrize("framework", FRONT_ENDS)
@pytest.mark.parametrize("seed", range(100))
def test_any_name_is_a_name(framework: str, seed: int, tmp_path: Path, sized: Callable[..., Iterator[Any]]) -> None:
    rng = random.Random(seed)
    letters = [
        *"../\\\0\n\r\t\x1b\x07\x7f\x9b<>&'\"=+-@%${}[]:;|?*~ aA",
        "\u202e",
        "\u200b",
        "🙂",
        "e\u0301",
        "ß",
        "__",
    ]
    keys = list({"".join(rng.choices(letters, k=rng.randint(0, 40))): None for _ in range(20)})
    with FRONT_ENDS[framework].Run(
        tmp_path / "run", [{"every_n_updates": 1, "keys": keys, "save_output": True}]
    ) as run:
        run.step({key: float(at) for at, key in enumerate(keys)})
    read = read_run(tmp_path / "run")
    assert [*read.series] == [f"{key}/U1" for key in sized(keys, "keys")]
    (file,) = read.arrays
    assert {key: float(np.asarray(value)) for key, value in file.load().items()} == {
        key: float(at) for at, key in enumerate(keys)
    }
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    assert everything_in(tmp_path / "run") <= {
        *("config.yaml", "metrics", "metrics/1.jsonl", "metrics/1.time.jsonl", "starts", "starts/1.json"),
        *("update_outputs", "update_outputs/U1", "update_outputs/U1/E0_U1_S1.safetensors", "writer.lock", "writer.pid"),
    }
