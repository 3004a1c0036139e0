"""A capsule is read back, shown, and safe to open, whatever is in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from capsule_cases import ended, the_capsule
from hook_cases import INF, NAN

import noether_torch
from noether_core import NoetherError, RunFormatError
from noether_core.cli import main
from noether_core.emit.capsule import MOST_BYTES, encode_capsule, read_capsule
from noether_core.emit.jsonl import encode_line
from noether_core.parity.check import check_run

ESCAPES = "\x1b]0;title\x07\u202e\r\x9b31m"


@dataclass(frozen=True)
class Column:
    key: str
    values: tuple[Any, ...]
    callback: str = "a callback"
    elements: int = 1
    is_odd: bool = False

    def newest(self, most: int) -> Iterator[tuple[tuple[int, int], Any]]:
        yield from [((number, 0), value) for number, value in enumerate(self.values, 1)][-most:]


def written(path: Path, columns: list[Column], most: int = 32, **about: Any) -> Path:
    path.write_bytes(encode_capsule(about, columns, most))
    return path


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["noether-parity", "show", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_values_read_back_exactly(tmp_path: Path) -> None:
    values = (1, -0.0, NAN, INF, -INF, 2**63, [1.5, NAN], {"elements": 9, "nan": 9}, True, 5e-324)
    capsule = read_capsule(
        written(tmp_path / "a", [Column("NaN\ud800", values), Column("b", (1,))], reason={"kind": "x"})
    )
    assert capsule.problems == []
    assert capsule.about["reason"] == {"kind": "x"}
    first, second = capsule.values
    assert (first.key, first.callback, repr(first.values)) == ("NaN\ud800", "a callback", repr(list(values)))
    assert first.steps == [(number, 0) for number in range(1, 11)]
    assert (second.key, second.values) == ("b", [1])


@pytest.mark.parametrize("keys", [1, 100, 3000, 40_000])
@pytest.mark.parametrize("name", ["k", "\x00" * 40, "long" * 30])
def test_it_is_bounded_and_says_what_is_left_out(keys: int, name: str, tmp_path: Path) -> None:
    columns = [Column(f"{name}{number}", (0.1 + number,) * 64) for number in range(keys)]
    columns.append(Column("odd", (1.0, NAN), is_odd=True))
    path = written(tmp_path / "a", columns, 64)
    capsule = read_capsule(path)
    assert path.stat().st_size <= MOST_BYTES
    assert capsule.problems == []
    assert len(capsule.values) + capsule.left_out == keys + 1
    assert capsule.values[0].key == "odd"
    assert len({len(each.values) for each in capsule.values[1:]}) == 1
    if keys <= 3000:
        assert capsule.left_out == 0
        assert len(capsule.values[1].values) >= 32


def test_a_damaged_line_costs_that_line(tmp_path: Path) -> None:
    columns = [Column(f"key{number}", (float(number),)) for number in range(5)]
    whole = written(tmp_path / "a", columns, reason={"kind": "x"}).read_bytes()
    for number, line in enumerate(whole.splitlines(keepends=True)):
        at = whole.index(line)
        for place in (at + 1, at + len(line) - 1):
            (tmp_path / "a").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            capsule = read_capsule(tmp_path / "a")
            assert f"{tmp_path / 'a'}, byte {at}: " in capsule.problems[0]
            assert [each.key for each in capsule.values] == [f"key{each}" for each in range(5) if each != number - 1]
            assert bool(capsule.about) == (number != 0)


def test_what_was_run_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(run: Any) -> None:
        for number in range(40):
            run.step({"loss": NAN if number >= 30 else float(number), "pair": [1.0, number], "wide": [0.5] * 20})

    config = {"every_n_updates": 100, "keys": ["loss", "pair", "wide"]}
    ended(noether_torch.Run(tmp_path, [config]), RuntimeError("the data is gone"), body)
    path = the_capsule(tmp_path).path
    text = printed(capsys, monkeypatch, path, "--steps", 4)
    for phrase in (
        "RuntimeError after epoch 0, update 40",
        "the data is gone",
        "every_n_updates: 100",
        "torch",
        "✗ nan",
    ):
        assert phrase in text
    assert "U29" not in text
    assert all(f"U{update}" in text for update in (30, 31, 32, 33))
    assert "U34" not in text
    assert "[1, 30]" in text
    assert "~0.5" in text
    document = json.loads(printed(capsys, monkeypatch, path, "--json"))
    assert document["values"][0]["values"][-10:] == ["NaN"] * 10
    assert document["about"]["reason"]["kind"] == "RuntimeError"
    assert check_run(tmp_path).is_clean
    assert any(str(path) in note for note in check_run(tmp_path).notes)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_no_escape_reaches_the_terminal(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = {"kind": ESCAPES, "message": ESCAPES, "traceback": ESCAPES}
    about = dict.fromkeys(["time", "host", "start", "process", "python", "accumulation_step", "config"], ESCAPES)
    nested = {"reason": reason, "iteration": {"epoch": ESCAPES}, "versions": {ESCAPES: ESCAPES}, "notes": [ESCAPES]}
    columns = [Column(ESCAPES, (1.0, {ESCAPES: 1}, {"nan": 1, ESCAPES: 2}), callback=ESCAPES)]
    path = written(tmp_path / "a", columns, **about, **nested)
    text = printed(capsys, monkeypatch, path, *options)
    assert [char for char in text if not char.isprintable() and char != "\n"] == []


UNITS = {"epoch": 0, "update": 1, "sample": 1}
LINES: dict[str, dict[str, Any]] = {
    "another version": {"capsule": 2},
    "no key": {"key": 3, "callback": 0, "steps": [], "values": []},
    "no callback": {"key": "a", "callback": "b", "steps": [], "values": []},
    "no steps": {"key": "a", "callback": 0, "values": [1]},
    "fewer steps": {"key": "a", "callback": 0, "steps": [[1, 0]], "values": [1, 2]},
    "odd steps": {"key": "a", "callback": 0, "steps": [[1, -1]], "values": [1]},
    "text": {"key": "a", "callback": 0, "steps": [[1, 0]], "values": ["x"]},
    "nested": {"key": "a", "callback": 0, "steps": [[1, 0]], "values": [[[1]]]},
    "counts": {"keys": -1, "left_out": 0, "most": 3},
    "an entry": {**UNITS, "loss": 1.0},
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_of_something_else_costs_itself(line: dict[str, Any], tmp_path: Path) -> None:
    whole = written(tmp_path / "a", [Column("key", (1.0,))])
    whole.write_bytes(encode_line(line) + whole.read_bytes())
    capsule = read_capsule(whole)
    assert len(capsule.problems) == 1
    assert [each.values for each in capsule.values] == [[1.0]]


def test_what_is_no_capsule_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no capsule\n" * 3)
    (tmp_path / "empty").touch()
    (tmp_path / "log").write_bytes(encode_line({**UNITS, "loss": 1.0}))
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**30)
    (tmp_path / "link").symlink_to(tmp_path / "text")
    for name in ("text", "empty", "log", "large", "link"):
        with pytest.raises(RunFormatError, match=name):
            read_capsule(tmp_path / name)
    for name in ("absent", "."):
        with pytest.raises((OSError, NoetherError)):
            read_capsule(tmp_path / name)
