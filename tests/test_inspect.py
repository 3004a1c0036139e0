from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from noether_core import LogWriter, NoetherError, UpdateCounter, load_callbacks, read_run
from noether_core.config.load import parse_callback
from noether_core.emit.arrays import write_arrays
from noether_core.emit.columns import Series
from noether_core.errors import UpdateOutputError
from noether_core.explanation import Explanation, explain, explain_together, render
from noether_core.inspect.example import read_outputs
from noether_core.inspect.fitted import Course
from noether_core.inspect.show import series_cells, show_run
from noether_core.parity import ulps
from noether_core.text import inert, number, sparkline
from noether_torch import Run

BARS = "▁▂▃▄▅▆▇█"
HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb",
    "a\nb",
    "\x9b2J",
    "[bold]x[/bold]",
    "\u202egnp.x",
    "a\u200bb",
]

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
numbers = st.floats(-1e300, 1e300, allow_subnormal=False) | st.sampled_from([math.nan, math.inf, -math.inf])


def printed(renderable: RenderableType, width: int = 400) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def log(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    counter = UpdateCounter()
    writer = LogWriter(path, update_counter=counter)
    for entry in entries:
        counter.next_update()
        for key, value in entry.items():
            (writer.add_nonscalar if isinstance(value, str) else writer.add_scalar)(key, value)
        writer.flush()
    writer.close()


# ------------------------------------------------------------------ text


@given(st.text(st.characters()))
def test_inert_text_is_printable_and_plain_text_is_left_alone(text: str) -> None:
    assert inert(text).isprintable()
    inert(text).encode("utf-8")  # an error for half a surrogate pair
    assert (inert(text) == text) == text.isprintable()


@pytest.mark.parametrize("text", ["\x1b[31m", "\x07", "\x9b", "\r", "\n", "\0", "\u202e", "\u2028", "\ud800"])
def test_what_steers_a_terminal_is_written_as_an_escape(text: str) -> None:
    shown = inert(f"a{text}ß🧪")
    assert shown.startswith("a\\")
    assert shown.endswith("ß🧪")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1 / 3, "0.333333"), (1e-30, "1e-30"), (2**53, "9007199254740992"), (False, "False"), (math.inf, "inf")],
)
def test_a_number_is_short(value: Any, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([3.0], "▄"),
        ([2, 2, 2], "▄▄▄"),
        ([0, 1, 2, 3, 4, 5, 6, 7], BARS),
        ([7, 0], "█▁"),
        ([math.nan, 1.0, math.inf, 2.0, -math.inf], "·▁·█·"),
        ([math.nan, math.inf], "··"),
        ([-1.7e308, 0.0, 1.7e308], "▁▅█"),
        ([True, False], "█▁"),
    ],
)
def test_a_sparkline_is_as_expected(values: list[float], line: str) -> None:
    assert sparkline(values) == line


@given(st.lists(numbers, max_size=24))
def test_a_sparkline_keeps_the_order_of_the_values(values: list[float]) -> None:
    line = sparkline(values)
    assert len(line) == len(values)
    assert [char == "·" for char in line] == [not math.isfinite(value) for value in values]
    finite = sorted((value, BARS.index(char)) for value, char in zip(values, line, strict=True) if char != "·")
    bars = [bar for _, bar in finite]
    assert bars == sorted(bars)
    if finite and finite[-1][0] / 2 - finite[0][0] / 2 > 1e-300:
        assert (bars[0], bars[-1]) == (0, len(BARS) - 1)


@given(st.lists(numbers, min_size=1, max_size=200), st.integers(1, 40))
def test_a_sparkline_is_no_wider_than_asked(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set(BARS) | {"·"}
    assert ("·" in line) == any(not math.isfinite(value) for value in values)


def test_a_long_series_is_averaged_in_groups() -> None:
    assert sparkline([0.0, 2.0, 3.0, 5.0, 7.0, 9.0], width=3) == sparkline([1.0, 4.0, 8.0])
    assert sparkline([*range(1000)], width=8) == BARS
    assert sparkline([0.0] * 12 + [math.nan] + [1.0] * 12, width=5) == "▁▁·██"


def course_by_python(values: list[float], width: int = 24) -> str:
    """Draw a sparkline without NumPy, for reference."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [reduce(add, (value / (b - a) for value in values[a:b])) for a, b in pairwise(edges)]
    finite = [value for value in values if math.isfinite(value)]
    low, span = (min(finite) / 2, max(finite) / 2 - min(finite) / 2) if finite else (0.0, 0.0)
    return "".join(
        "·" if not math.isfinite(value) else BARS[round((value / 2 - low) / span * 7) if span else 3]
        for value in values
    )


@given(
    st.lists(st.floats(), min_size=1, max_size=200)
    | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=99)
)
def test_arrays_and_lists_give_one_row(values: list[Any]) -> None:
    count = np.arange(len(values))
    typed = Series(
        "v", count, count, count, count, np.array(values, np.float64 if isinstance(values[0], float) else np.int64)
    )
    objects = replace(typed, value=np.fromiter(values, object, len(values)))
    known = [value for value in values if value == value]
    extremes = (number(min(known)), number(max(known))) if known else ("", "")
    course = course_by_python([float(value) for value in values])
    first, last = number(values[0]), number(values[-1])
    expected = [str(len(values)), first, last, *extremes, course, f"update {len(values) - 1}"]
    for series in (typed, objects):
        shown = [sparkline(c.values) if isinstance(c, Course) else str(c) for c in series_cells(series)]
        assert shown == expected


# ------------------------------------------------------------------ ulps


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (0.0, -0.0, 0),
        (math.nan, math.nan, 0),
        (math.inf, math.inf, 0),
        (math.inf, -math.inf, math.inf),
        (math.nan, 0.0, math.inf),
        (1.0, math.inf, math.inf),
        (True, 1.0, 0),
        (0, 1, 0x3F800000),
        (1.0, 2.0, 2**23),
        (1.0, 1.0 + 2**-52, 1),
        (2.0**-149, -(2.0**-149), 2),
        (5e-324, -5e-324, 2),
        (1.0, 1.5 + 2**-52, 2**51 + 1),
        (2**53, 2**53 + 1, 1),
        (1e39, np.nextafter(1e39, 0), 1),
    ],
)
def test_the_distance_is_as_expected(a: float, b: float, distance: float) -> None:
    assert ulps(a, b) == ulps(b, a) == distance


@given(float32s)
def test_the_next_float32_is_one_ulp_away(value: float) -> None:
    assume(value < float(np.finfo(np.float32).max))
    following = float(np.nextafter(np.float32(value), np.float32(math.inf)))
    assert ulps(value, following) == 1


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_next_float64_is_one_ulp_away(value: float) -> None:
    following = math.nextafter(value, math.inf)
    assume(math.isfinite(following))
    assert ulps(value, following) == 1


@given(float32s, float32s, float32s)
def test_distances_add_up(a: float, b: float, c: float) -> None:
    a, b, c = sorted((a, b, c))
    assert ulps(a, c) == ulps(a, b) + ulps(b, c)


# ------------------------------------------------------------------ show


def test_show_has_a_row_for_each_series_and_each_array(tmp_path: Path) -> None:
    callbacks = [
        {"every_n_updates": 1, "keys": ["loss"], "patterns": ["grad/"]},
        {"every_n_updates": 2, "keys": ["field"], "reduce": "last", "log_output": False, "save_output": True},
    ]
    with Run(tmp_path, callbacks=callbacks, effective_batch_size=4) as run:
        for step in range(4):
            outputs = {"loss": torch.tensor(1.0 - step / 4), "field": torch.ones(2, 3), "grad": {"norm": step}}
            run.step(update_outputs=outputs)
    text = printed(show_run(read_run(tmp_path)))
    assert rows(text) == [
        ["loss/U1", "4", "1", "0.25", "0.25", "1", "█▆▃▁", "update 4"],
        ["grad/norm/U1", "4", "0", "3", "0", "3", "▁▃▆█", "update 4"],
        ["U2", "E0_U2_S8", "field", "float32", "(2, 3)"],
        ["U2", "E0_U4_S16", "field", "float32", "(2, 3)"],
    ]
    assert str(tmp_path) in text
    assert "damaged" not in text
    assert "superseded" not in text


def test_show_takes_nan_text_bools_and_what_came_late(tmp_path: Path) -> None:
    log(tmp_path, [{"a": math.nan, "b": "on", "c": True}, {"a": 2.0, "b": "off", "c": False}, {"a": -math.inf, "d": 1}])
    assert rows(printed(show_run(read_run(tmp_path)))) == [
        ["a", "3", "nan", "-inf", "-inf", "2", "·▄·", "update 3"],
        ["b", "2", "on", "off", "", "", "", "update 2"],
        ["c", "2", "True", "False", "False", "True", "█▁", "update 2"],
        ["d", "1", "1", "1", "1", "1", "▄", "update 3"],
    ]


def test_show_of_nan_only_has_no_extremes(tmp_path: Path) -> None:
    log(tmp_path, [{"a": math.nan}, {"a": math.nan}])
    assert rows(printed(show_run(read_run(tmp_path)))) == [["a", "2", "nan", "nan", "", "", "··", "update 2"]]


def test_show_takes_any_int_that_can_be_logged(tmp_path: Path) -> None:
    log(tmp_path, [{"a": 10**400}])
    assert rows(printed(show_run(read_run(tmp_path)), width=4000))[0][:2] == ["a", "1"]


def test_show_of_a_run_that_logged_nothing_says_so(tmp_path: Path) -> None:
    with Run(tmp_path, callbacks=[{"every_n_updates": 1, "keys": ["v"]}]):
        pass
    assert "nothing is logged yet" in printed(show_run(read_run(tmp_path)))


def test_show_counts_what_a_later_start_superseded(tmp_path: Path) -> None:
    log(tmp_path, [{"a": 1.0}] * 5)
    log(tmp_path, [{"a": 2.0}] * 2)
    text = printed(show_run(read_run(tmp_path)))
    assert "5 entries of earlier starts are superseded" in text
    assert rows(text)[0][:4] == ["a", "2", "2", "2"]


@pytest.mark.parametrize("cut", [1, 9, 20])
def test_a_torn_last_line_is_named_and_the_rest_is_shown(tmp_path: Path, cut: int) -> None:
    log(tmp_path, [{"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}])
    file = tmp_path / "metrics" / "1.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines)[:-cut])
    text = printed(show_run(read_run(tmp_path)))
    assert rows(text) == [["loss", "2", "1", "2", "1", "2", "▁█", "update 2"]]
    (problem,) = [line for line in text.splitlines() if "damaged" in line]
    assert problem.startswith(f"damaged, left out: {file}, byte {len(lines[0]) + len(lines[1])}: ")


def test_a_damaged_array_file_is_named_in_its_row_and_the_others_are_shown(tmp_path: Path) -> None:
    log(tmp_path, [{"loss": 1.0}])
    files = [tmp_path / "update_outputs" / "U1" / f"E0_U{n}_S{n}.safetensors" for n in (1, 2, 3)]
    for file in files:
        write_arrays(file, {"field": np.ones((2, 3), np.float16)})
    files[1].write_bytes(files[1].read_bytes()[:-1])
    (tmp_path / "update_outputs" / "U1" / "mine.safetensors").write_bytes(b"not ours")
    first, second, third = rows(printed(show_run(read_run(tmp_path))))[1:]
    assert first == ["U1", "E0_U1_S1", "field", "float16", "(2, 3)"]
    assert third == ["U1", "E0_U3_S3", "field", "float16", "(2, 3)"]
    assert second[:2] == ["U1", "E0_U2_S2"]
    assert second[2].startswith(f"{files[1]} is not a readable safetensors file")


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_shown_inert_and_as_they_are(tmp_path: Path, key: str) -> None:
    callback = {"every_n_updates": 1, "keys": [key], "save_output": True}
    with Run(tmp_path, callbacks=[callback]) as run:
        run.step(update_outputs={key: 1.0})
        run.log_writer.add_nonscalar(f"{key} text", key)
    text = printed(show_run(read_run(tmp_path)))
    assert text.replace("\n", "").isprintable()
    names = [row[0 if row[-1].startswith("update") else 2] for row in rows(text)]
    assert names == [inert(f"{key}/U1"), inert(f"{key} text"), inert(key)]


# ------------------------------------------------------------------ explain


def explained(callback: dict[str, Any], outputs: dict[str, Any]) -> Explanation:
    shapes = {key: np.shape(value) for key, value in outputs.items()}
    return explain(parse_callback({"every_n_updates": 1, **callback}), shapes)


@pytest.mark.parametrize(
    "callback",
    [
        {"keys": ["loss"]},
        {"keys": ["lr", "loss"], "patterns": ["loss", "grad/"], "save_output": True},
        {"patterns": [""], "reduce": {"loss": "last", "grad/": ["last", "mean"]}, "save_output": True},
        {"keys": ["field"], "log_output": False, "save_output": True, "reduce": "last", "id": "mine"},
        {"keys": ["field", "loss"], "save_output": True, "reduce": ["mean"]},
    ],
)
def test_a_run_logs_and_saves_exactly_what_explain_said(tmp_path: Path, callback: dict[str, Any]) -> None:
    outputs = {"loss": 0.5, "lr": 0.1, "grad/norm": 2.0, "grad/max": 3.0, "aux_loss": 1.0, "field": np.ones((2, 3))}
    explanation = explained(callback, outputs)
    assert explanation.is_clean
    with Run(tmp_path, callbacks=[{"every_n_updates": 1, **callback}]) as run:
        run.step(update_outputs={key: torch.tensor(value) for key, value in outputs.items()})
    written = read_run(tmp_path)
    logged = [name for match in explanation.matched for name in match.logged]
    saved = {name for match in explanation.matched for name in match.saved}
    assert logged == list(written.series)
    assert saved == {name for file in written.arrays for name in file.load()}
    assert logged or saved


def test_explain_says_what_matched_by_which_entry() -> None:
    outputs = {"loss": 1.0, "aux_loss": 1.0, "field": np.ones(3), "lr": 0.1}
    found = explained({"keys": ["loss"], "patterns": ["loss", "aux", "iel"]}, outputs)
    assert [(match.key, match.shape, match.by) for match in found.matched] == [
        ("loss", (), "key"),
        ("aux_loss", (), "pattern 'loss', pattern 'aux'"),
        ("field", (3,), "pattern 'iel'"),
    ]
    text = printed(render([found], {key: np.shape(value) for key, value in outputs.items()}))
    assert rows(text)[1] == ["aux_loss", "()", "pattern 'loss', pattern 'aux'", "aux_loss/U1", "-"]
    assert "not tracked: lr" in text
    assert "✗" not in text


@pytest.mark.parametrize(
    ("callback", "problem"),
    [
        (
            {"keys": ["pressure_los"]},
            "key 'pressure_los' is not among the update outputs. Did you mean 'pressure_loss'?",
        ),
        ({"keys": ["Lr"]}, "key 'Lr' is not among the update outputs. Did you mean 'lr'?"),
        ({"keys": ["zzz"]}, "key 'zzz' is not among the update outputs."),
        ({"patterns": ["los", "GRAD"]}, "pattern 'GRAD' is contained in no key."),
        ({"patterns": ["pressure_*"]}, "pattern 'pressure_*' is contained in no key. A pattern is a literal substring"),
        ({"keys": ["lr"], "reduce": {"rl": "last"}}, "reduce names 'rl', which no tracked key contains."),
    ],
)
def test_an_entry_that_matches_nothing_is_named_with_the_closest_key(callback: dict[str, Any], problem: str) -> None:
    outputs = {"pressure_loss": 1.0, "lr": 0.1}
    found = explained(callback, outputs)
    assert not found.is_clean
    (unmatched,) = found.unmatched
    assert unmatched.startswith(problem)
    assert f"✗ {unmatched}" in printed(render([found], dict.fromkeys(outputs, ())))


def test_a_field_that_cannot_be_logged_is_a_problem_beforehand(tmp_path: Path) -> None:
    callback = {"keys": ["field"], "reduce": "last"}
    found = explained(callback, {"field": np.ones((3, 4))})
    assert not found.is_clean
    assert "`last` of shape (3, 4) cannot be logged" in found.matched[0].problem
    with (
        Run(tmp_path, callbacks=[{"every_n_updates": 1, **callback}]) as run,
        pytest.raises(NoetherError, match=r"\(3, 4\)"),
    ):
        run.step(update_outputs={"field": torch.ones(3, 4)})
    assert explained(callback, {"field": np.ones((1, 1))}).is_clean


@pytest.mark.parametrize(
    "callbacks",
    [
        [{"keys": ["v"]}, {"patterns": ["v"]}],
        [{"keys": ["v"], "save_output": True, "log_output": False}, {"keys": ["w"], "save_output": True}],
    ],
    ids=["logged twice", "saved twice"],
)
def test_what_a_run_refuses_is_not_clean(tmp_path: Path, callbacks: list[dict[str, Any]]) -> None:
    callbacks = [{"every_n_updates": 1, **callback} for callback in callbacks]
    with pytest.raises(NoetherError), Run(tmp_path, callbacks=callbacks) as run:
        run.step(update_outputs={"v": 1.0, "w": 1.0})
    assert not all(each.is_clean for each in explain_together([*map(parse_callback, callbacks)], {"v": (), "w": ()}))


@pytest.mark.parametrize("key", HOSTILE)
def test_explain_shows_hostile_keys_inert(key: str) -> None:
    found = explained({"keys": [key, f"{key}?"], "patterns": [f"!{key}"]}, {key: 1.0, f"x{key}": 2.0})
    text = printed(render([found], {key: (), f"x{key}": ()}))
    assert text.replace("\n", "").isprintable()
    assert rows(text) == [[inert(key), "()", "key", inert(f"{key}/U1"), "-"]]
    assert f"not tracked: {inert(f'x{key}')}" in text


OUTPUTS = {"loss": 0.5, "on": True, "field": [[1, 2, 3], [4, 5, 6]], "none": None, "deep": {"a": {"b": [1.0]}}}
SHAPES = {"loss": (), "on": (), "field": (2, 3), "deep/a/b": (1,)}


def test_json_yaml_and_safetensors_give_the_same_shapes(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(OUTPUTS), encoding="utf-8")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(OUTPUTS), encoding="utf-8")
    write_arrays(tmp_path / "a.safetensors", {key: np.zeros(shape) for key, shape in SHAPES.items()})
    for name in ("a.json", "a.yaml", "a.safetensors"):
        assert read_outputs(tmp_path / name) == SHAPES


def test_a_shape_stands_for_an_array(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "field: {shape: [3, 4], dtype: float32}\nscalar: {shape: []}\nlayer: {shape: [2], mean: 1.0}", encoding="utf-8"
    )
    expected = {"field": (3, 4), "scalar": (), "layer/shape": (1,), "layer/mean": ()}
    assert read_outputs(tmp_path / "a.yaml") == expected


def test_what_a_run_saved_is_an_example_of_update_outputs(tmp_path: Path) -> None:
    with Run(tmp_path, callbacks=[{"every_n_updates": 1, "patterns": [""], "save_output": True}]) as run:
        run.step(update_outputs={"loss": 1.0, "field": torch.ones(2, 3)})
    (saved,) = read_run(tmp_path).arrays
    assert set(read_outputs(saved.path)) == {"loss", "field"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "cannot read update outputs from"),
        ("a.json", "", "cannot read update outputs from"),
        ("a.json", "[1, 2]", "holds list; expected a dict"),
        ("a.yaml", "", "holds NoneType; expected a dict"),
        ("a.yaml", "a: [", "cannot read update outputs from"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a.yaml", "a: 2020-01-01", "'a' is date"),
        ("a.json", '{"a": "x"}', "'a' is str 'x'; expected a number"),
        ("a.json", '{"a": [1, [2]]}', "'a' is a ragged list"),
        ("a.json", '{"a/b": 1, "a": {"b": 2}}', "two update outputs flatten to the key 'a/b'"),
        ("a.safetensors", "not one", "is not a readable safetensors file"),
    ],
)
def test_a_file_that_holds_no_update_outputs_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UpdateOutputError, match=message):
        read_outputs(tmp_path / name)


@pytest.mark.parametrize("name", ["absent.json", "absent.yaml", "absent.safetensors", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UpdateOutputError, match=f"cannot read update outputs from '{tmp_path}"):
        read_outputs(tmp_path / name)


@pytest.mark.parametrize("shape", ["3, 4", ["a"], [-1], [2.5], [True], [None]])
def test_a_shape_that_is_none_is_refused(tmp_path: Path, shape: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"field": {"shape": shape}}), encoding="utf-8")
    with pytest.raises(UpdateOutputError, match="field"):
        read_outputs(tmp_path / "a.json")


def test_the_readmes_config_is_explained_in_full(tmp_path: Path) -> None:
    """The names are those of the tree and the text in `docs/`."""
    source = (
        (Path(__file__).parents[1] / "docs" / "config.md")
        .read_text(encoding="utf-8")
        .split("```yaml\n")[1]
        .split("```")[0]
    )
    (tmp_path / "callbacks.yaml").write_text(source, encoding="utf-8")
    outputs = {"loss": (), "lr": (), "aux_loss": (), "grad/norm": (), "pressure_error": (32,)}
    first, second = (explain(config, outputs) for config in load_callbacks(tmp_path / "callbacks.yaml"))
    assert first.is_clean
    assert second.is_clean
    assert [name for match in first.matched for name in match.logged] == [
        *("loss/U10", "lr/U10", "aux_loss/U10", "grad/norm/U10")
    ]
    assert [(match.logged, match.saved) for match in second.matched] == [((), ("pressure_error",))]
