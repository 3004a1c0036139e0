from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from rich.console import Console

from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.emit.arrays import write_arrays
from noether_core.parity import Difference, compare_runs, differing_files, ulps
from noether_core.parity.side_by_side import drift_sentence, side_by_side

INF, NAN = math.inf, math.nan
NAMES = ("JAX", "PyTorch")
TINY32, TINY64 = 2.0**-149, 5e-324  # the smallest subnormals
HUGE32, HUGE64 = float(np.finfo(np.float32).max), float(np.finfo(np.float64).max)

# ------------------------------------------------------------------ ulps

DISTANCES: list[tuple[Any, Any, float]] = [
    (1.0, 1.0, 0),
    (1.0, 1.0 + 2**-23, 1),  # two float32 numbers
    (1.0, 1.0 - 2**-24, 1),  # below a power of two they lie half as far apart
    (1.0, 2.0, 2**23),
    (0.1, math.nextafter(0.1, 1), 1),  # two float64 numbers that are no float32 ones
    (1.0, 1.0 + 2**-52, 1),
    (1.0, 1.1, 450359962737050),  # one of them a float32 number: counted in float64's
    (np.float32(0.1).item(), 0.1, 107374182),
    (0.0, -0.0, 0),
    (0, -0.0, 0),
    (0.0, TINY32, 1),
    (-TINY32, TINY32, 2),
    (TINY32, 2 * TINY32, 1),
    (0.0, TINY64, 1),
    (-TINY64, TINY64, 2),
    (TINY64, 3 * TINY64, 2),
    (0.0, 2.0**-126, 2**23),  # the smallest normal float32
    (-1.0, 1.0, 2 * (127 << 23)),
    (HUGE32, HUGE32 - 2.0**104, 1),
    (HUGE32, 2.0**128, 2**29),  # beyond float32
    (HUGE64, math.nextafter(HUGE64, 0), 1),
    (HUGE64, -HUGE64, 2 * ((2047 << 52) - 1)),
    (NAN, NAN, 0),
    (INF, INF, 0),
    (-INF, -INF, 0),
    (NAN, 1.0, INF),
    (NAN, INF, INF),
    (INF, -INF, INF),
    (INF, HUGE64, INF),
    (INF, 0.0, INF),
    (3, 3, 0),
    (3, 3.0, 0),
    (2**24, 2**24 + 1, 2**28),  # the second is no float32 number
    (2**53, 2**53 + 1, 1),  # one float64 for both, and yet they differ
    (2**53, 2**53 + 2, 1),
    (10**30, 10**30 + 1, 1),
    (-(2**63), 2**63, 2 * (190 << 23)),
    (True, True, 0),
    (True, 1.0, 0),
    (True, False, 127 << 23),
    (10**400, 10**400, 0),
    (10**400, 10**400 + 1, INF),
    (10**400, 1.0, INF),
    (10**400, 7, INF),
    (10**400, -(10**400), INF),
    (10**400, INF, INF),
    (10**400, NAN, INF),
    (2**1024 - 1, HUGE64, INF),  # rounds to an infinity
]


@pytest.mark.parametrize(("a", "b", "distance"), DISTANCES, ids=lambda value: f"{value!r:.24}")
def test_the_distance_of_two_numbers(a: Any, b: Any, distance: float) -> None:
    assert ulps(a, b) == distance
    assert ulps(b, a) == distance
    negative = ulps(-a, -b) if not isinstance(a, bool) else distance
    assert negative == distance


@given(st.integers(), st.integers())
def test_ints_are_apart_exactly_if_they_differ(a: int, b: int) -> None:
    assert (ulps(a, b) == 0) == (a == b)
    assert ulps(a, b) == ulps(b, a)


@given(st.floats(width=32), st.integers(-1000, 1000))
def test_float32_numbers_are_counted_one_by_one(start: float, steps: int) -> None:
    value = np.float32(start)
    for _ in range(abs(steps) % 20):
        with np.errstate(over="ignore"):
            value = np.nextafter(value, np.float32(INF if steps > 0 else -INF), dtype=np.float32)
    if math.isfinite(start) and np.isfinite(value):
        assert ulps(start, float(value)) == abs(steps) % 20


# ------------------------------------------------------------------ compare_runs


def write_run(path: Path, *entries: dict[str, Any]) -> Path:
    """Write a run with one entry for each update."""
    (path / "metrics").mkdir(parents=True)
    counter = UpdateCounter()
    writer = LogWriter(path, update_counter=counter)
    for entry in entries:
        counter.next_update()
        for key, value in entry.items():
            if isinstance(value, bool | int | float):
                writer.add_scalar(key, value)
            else:
                writer.add_nonscalar(key, value)
        writer.flush()
    writer.close()
    return path


def compared(tmp_path: Path, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[Difference]:
    return compare_runs(read_run(write_run(tmp_path / "a", *a)), read_run(write_run(tmp_path / "b", *b)))


def test_every_value_of_either_run_is_listed_by_key_then_update(tmp_path: Path) -> None:
    a = [{"loss": 1.0, "only a": 5.0}, {"loss": 2.0}, {"loss": 3.0}]
    b = [{"loss": 1.0}, {"loss": 2.0 + 2**-22, "only b": 6}, {}, {"loss": 4.0}]
    assert compared(tmp_path, a, b) == [
        Difference("loss", 1, 1.0, 1.0, 0),
        Difference("loss", 2, 2.0, 2.0 + 2**-22, 1),
        Difference("loss", 3, 3.0, None, INF),
        Difference("loss", 4, None, 4.0, INF),
        Difference("only a", 1, 5.0, None, INF),
        Difference("only b", 2, None, 6, INF),
    ]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (NAN, NAN, 0),
        (NAN, 1.0, INF),
        (INF, -INF, INF),
        (10**400, 10**400, 0),
        (10**400, 10**400 + 1, INF),
        (10**400, 0.5, INF),
        (2**63, 2**63, 0),
        (True, 1, 0),
        ("a", "a", 0),
        ("a", "b", INF),
        ("1.0", 1.0, INF),
        ([1, 2.5], [1, 2.5], 0),
        ([1, NAN], [1, NAN], 0),
        ([1, NAN], [2, NAN], INF),
        ({"x": 1}, {"x": 1}, 0),
        (None, None, 0),
        (None, 1.0, INF),
    ],
    ids=lambda value: f"{value!r:.24}",
)
def test_the_distance_of_two_logged_values(tmp_path: Path, a: Any, b: Any, distance: float) -> None:
    for turn, (one, other) in enumerate([(a, b), (b, a)]):
        (row,) = compared(tmp_path / str(turn), [{"v": one}], [{"v": other}])
        assert row.ulps == distance


def test_runs_without_entries_have_nothing_to_compare(tmp_path: Path) -> None:
    assert [row.key for row in compared(tmp_path, [], [{"loss": 1.0}])] == ["loss"]
    assert compared(tmp_path / "none", [], []) == []


def test_files_are_compared_byte_by_byte(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name, {"loss": 1.0})
        for file in ("U1/E0_U1_S1", "id/E1/E1_U1_S1"):
            write_arrays(tmp_path / name / "update_outputs" / f"{file}.safetensors", {"v": np.ones(2)})
        (tmp_path / name / "config.yaml").write_text(name, encoding="utf-8")  # is not compared
        probed = tmp_path / name / "update_outputs" / "id" / "probes"
        for kind in ("statistics", "arrays", "arrays/1"):  # nor are these
            write_arrays(probed / kind / "E0_U1_S1.safetensors", {"start": np.frombuffer(name.encode(), np.uint8)})
    assert differing_files(tmp_path / "a", tmp_path / "b") == ([], 3)
    saved = tmp_path / "b" / "update_outputs" / "U1" / "E0_U1_S1.safetensors"
    saved.write_bytes(saved.read_bytes()[:-1] + b"\x01")
    (tmp_path / "a" / "update_outputs" / "id" / "E1" / "E1_U1_S1.safetensors").unlink()
    write_arrays(tmp_path / "a" / "update_outputs" / "E2_U2_S2.safetensors", {})
    assert differing_files(tmp_path / "a", tmp_path / "b") == (
        [f"update_outputs/{name}.safetensors" for name in ("E2_U2_S2", "U1/E0_U1_S1", "id/E1/E1_U1_S1")],
        4,
    )


# ------------------------------------------------------------------ the report


def rows(*pairs: tuple[Any, Any]) -> list[Difference]:
    """Return a row for each pair, all of one key, at updates 1, 2, ..."""
    return [Difference("loss", at, a, b, ulps(a, b)) for at, (a, b) in enumerate(pairs, start=1)]


def test_the_sentence_says_where_the_drift_began_and_ended() -> None:
    differences = [*rows((1.0, 1.0 + 2**-23), (2.0, 2.0), (1.0, 1.25)), Difference("lr", 3, 0.5, 0.5, 0)]
    assert drift_sentence(differences, NAMES) == (
        "Trained independently, from the same weights on the same batches, JAX and PyTorch drifted from a median of 1 ulps at"
        " update 1 to 1,048,576 at update 3; 2 of 4 numbers were equal, and the widest relative difference was 0.2 (loss,"
        " update 3)."
    )


WIDEST: dict[str, tuple[Any, Any, str]] = {
    "equal": (1.0, 1.0, "0"),
    "zeros": (0.0, -0.0, "0"),
    "two NaN": (NAN, NAN, "0"),
    "two infinities": (INF, INF, "0"),
    "far": (1.0, 3.0, "0.67"),
    "of two signs": (-1.0, 1.0, "2"),
    "zero beside a number": (0.0, 1e-30, "1"),
    "subnormals": (TINY64, 2 * TINY64, "0.5"),
    "the largest": (HUGE64, -HUGE64, "2"),  # their difference overflows
    "large ints": (2**60, 2**60 + 1, "8.7e-19"),  # their difference is lost in float64
    "long ints": (10**300, 10**300 + 10**298, "0.0099"),
    "int beside a float": (10**300, 1.0, "1"),
    "bools": (True, False, "1"),
    "NaN in the first": (NAN, 1.0, "∞"),
    "NaN in the second": (1.0, NAN, "∞"),
    "infinity in the first": (INF, 1.0, "∞"),
    "infinity in the second": (1.0, INF, "∞"),
    "opposite infinities": (INF, -INF, "∞"),
    "NaN and infinity": (NAN, INF, "∞"),
    "int beyond float64": (10**400, 1.0, "∞"),
    "ints beyond float64": (10**400, 10**400 + 1, "∞"),
}


@pytest.mark.parametrize(("a", "b", "widest"), WIDEST.values(), ids=WIDEST)
def test_the_widest_relative_difference_of_one_pair(a: Any, b: Any, widest: str) -> None:
    for pair in ((a, b), (b, a)):
        sentence = drift_sentence(rows(pair), NAMES)
        assert f"the widest relative difference was {widest} (loss, update 1)." in sentence
        assert "nan" not in sentence


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_nan_or_an_infinity_in_one_run_is_the_widest_wherever_it_stands(bad: float, at: int) -> None:
    pairs: list[tuple[Any, Any]] = [(1.0, 2.0), (4.0, 3.0)]
    for pair in ((1.0, bad), (bad, 1.0)):
        sentence = drift_sentence(rows(*pairs[:at], pair, *pairs[at:]), NAMES)
        assert f"was ∞ (loss, update {at + 1})." in sentence


def test_a_drift_from_or_to_infinity_is_shown_as_one() -> None:
    assert "drifted from a median of ∞ ulps at update 1 to 1 at update 2;" in drift_sentence(
        rows((1.0, NAN), (1.0, 1.0 + 2**-23)), NAMES
    )
    assert "drifted from a median of 0 ulps at update 1 to ∞ at update 2;" in drift_sentence(
        rows((1.0, 1.0), (1.0, NAN)), NAMES
    )


def test_only_what_both_runs_logged_as_numbers_counts() -> None:
    one_sided = [Difference("a", 1, 1.0, None, INF), Difference("b", 9, None, 1.0, INF)]
    text = [Difference("note", 9, "x", "y", INF)]
    assert drift_sentence([*one_sided, *text], NAMES) == "JAX and PyTorch logged no number in common."
    assert drift_sentence([], NAMES) == "JAX and PyTorch logged no number in common."
    sentence = drift_sentence([*one_sided, *text, *rows((1.0, 1.0))], NAMES)
    assert "0 ulps at update 1 to 0 at update 1; 1 of 1 numbers were equal" in sentence


def shown(differences: list[Difference], title: str = "title", width: int = 120) -> list[list[str]]:
    """Return a table's cells, row by row, as text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(side_by_side(title, differences, NAMES))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == title
    return [
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")]
        for line in lines
        if "│" in line or "┃" in line
    ]


def test_the_table_has_the_last_value_of_each_key() -> None:
    differences = [
        *rows((1.0, 2.0), (0.1, 0.1), (0.25, 0.25 + 2**-25)),
        Difference("only", 7, None, 12, INF),
        Difference("flag", 7, True, True, 0),
        Difference("nan", 7, NAN, 1.0, INF),
        Difference("far", 7, 1.0, 2.0, 2**23),
        Difference("note", 7, "x", "x", 0),
    ]
    assert shown(differences) == [
        ["key", "update", "JAX", "PyTorch", "ulps apart"],
        ["loss", "3", "0.25", "0.25000003", "1"],
        ["only", "7", "-", "12", "∞"],
        ["flag", "7", "True", "True", "0"],
        ["nan", "7", "nan", "1", "∞"],
        ["far", "7", "1", "2", "8,388,608"],
        ["note", "7", "x", "x", "0"],
    ]


def test_float32_numbers_one_ulp_apart_look_different() -> None:
    for value in (1.0, 0.1, 1e-30, 3e30, 16777213.0):
        a = np.float32(value)
        b = np.nextafter(a, np.float32(INF), dtype=np.float32)
        (_, row) = shown(rows((a.item(), b.item())))
        assert row[2] != row[3]
        assert row[4] == "1"


def test_a_long_key_is_folded_and_no_control_character_gets_through() -> None:
    long = "k" * 300
    cells = shown([Difference(long, 1, 1.0, 1.0, 0)], width=80)
    assert "".join(row[0] for row in cells[1:]) == long
    cells = shown([Difference("[red]x\x1b[31m", 1, 1.0, 1.0, 0)], title="[b]title")
    assert cells[1][0] == r"[red]x\x1b[31m"


def test_ints_beyond_float64_are_told_apart_from_the_file_to_the_sentence(tmp_path: Path) -> None:
    differences = compared(tmp_path, [{"total": 10**400, "loss": 1.0}], [{"total": 10**400 + 1, "loss": 1.0}])
    assert json.loads((tmp_path / "a" / "metrics" / "1.jsonl").read_text())["total"] == 10**400
    assert "1 of 2 numbers were equal, and the widest relative difference was ∞ (total, update 1)" in drift_sentence(
        differences, NAMES
    )
    assert shown(differences, width=2000)[1][4] == "∞"
