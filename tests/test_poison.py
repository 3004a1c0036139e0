"""No value and no name costs another one its place in a file: it is refused at the call, or reads back exactly."""

from __future__ import annotations

import enum
import logging
import math
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hook_cases import each_front_end

from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.emit.arrays import encode_arrays, read_arrays, read_headers, write_arrays
from noether_core.emit.escapes import escaped_name, escaped_text, name_of, text_or_float
from noether_core.emit.jsonl import decode_line, encode_line
from noether_core.errors import NoetherError, UpdateOutputError


class OddFloat(float):
    def __format__(self, spec: str) -> str:
        raise RuntimeError("no format")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __float__(self) -> float:
        raise RuntimeError("no float")


class OddText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no str")

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise RuntimeError("no bytes")


class OddInt(int):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Color(enum.IntEnum):
    RED = 3


class OddDict(dict[Any, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


def nested(depth: int) -> Any:
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


TEXTS = [
    "",
    "NaN",
    "Infinity",
    "-Infinity",
    "\\NaN",
    "\\\\-Infinity",
    "\\",
    "\\\\",
    "nan",
    " NaN",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "é😀",
    "\x7f",
    "\u2028",
    '"',
    "a\nb",
    "x" * 10_000,
    "crc32",
    '","crc32":"00000000"}',
]
# what is logged, and what reads back; `Refused` where that is to be
Refused = object()
VALUES: list[tuple[Any, Any]] = [
    *((text, text) for text in TEXTS),
    *(([text, {text: text}], [text, {text: text}]) for text in TEXTS if len(text) < 100),
    (10**639, 10**639),
    (-(10**639), -(10**639)),
    (10**640, Refused),
    (10**5000, Refused),
    ([10**5000], Refused),
    ({"a": -(10**5000)}, Refused),
    (OddFloat(1.5), 1.5),
    (OddFloat("nan"), math.nan),
    (OddFloat(-0.0), -0.0),
    (OddInt(7), 7),
    (Color.RED, 3),
    (OddText("odd"), "odd"),
    ([OddFloat(2.5), OddInt(10**5000)], Refused),
    ([OddFloat(2.5), OddText("t")], [2.5, "t"]),
    ({OddText("a"): 1}, {"a": 1}),
    ({1: "a", "1": "b"}, Refused),
    ({1: "a"}, Refused),
    ({None: 1}, Refused),
    ({"a": {2.0: 1}}, Refused),
    ({b"a": 1}, Refused),
    (OddDict(a=1), Refused),
    (OrderedDict(a=[1, (2, 3)]), {"a": [1, [2, 3]]}),
    (nested(100), nested(100)),
    (nested(101), Refused),
    (nested(100_000), Refused),
    ("x" * 2**21, Refused),
    (["x" * 1000] * 2000, Refused),
    ([1.0] * 50_000, [1.0] * 50_000),
    (b"a", Refused),
    (1j, Refused),
    ({1, 2}, Refused),
    (object(), Refused),
    ([object()], Refused),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float64("inf"), math.inf),
    ([math.nan, "NaN", math.inf, "Infinity"], [math.nan, "NaN", math.inf, "Infinity"]),
    (None, None),
]
KEYS: list[tuple[Any, bool]] = [
    *((text, text != "crc32") for text in TEXTS),
    ("x" * 2**16, True),
    ("x" * (2**16 + 1), False),
    ("x" * 10**7, False),
    (3, False),
    (None, False),
    (b"a", False),
    (OddText("odd key"), True),
    (OddText("update"), False),
    ("update", False),
    ("__proto__", True),
]


def values_of(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("epoch", "update", "sample")}


def same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b) and type(a) is type(b)


@pytest.mark.parametrize("way", ["add_nonscalar", "add_values"])
def test_a_value_reads_back_exactly_or_is_refused_at_the_call(way: str, tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    expected: list[dict[str, Any]] = []
    for number, (value, wanted) in enumerate(VALUES):
        counter.next_update()
        writer.add_scalar("before", float(number))
        if way == "add_values":
            errors = writer.add_values({"value": value})
        else:
            try:
                writer.add_nonscalar("value", value)
                errors = []
            except NoetherError as error:
                errors = [error]
        assert bool(errors) is (wanted is Refused), (type(value), errors)
        assert all(type(error) is NoetherError and len(str(error)) < 1000 for error in errors)
        writer.add_scalar("after", float(number))
        writer.flush()
        expected.append({"before": float(number), **({} if errors else {"value": wanted}), "after": float(number)})
    writer.close()
    read = read_run(tmp_path)
    assert not read.problems
    found = list(map(values_of, read.entries))
    assert len(found) == len(expected)
    for entry, wanted in zip(found, expected, strict=True):
        assert same(entry, wanted)
    assert repr(list(map(values_of, writer.log_entries))) == repr(expected)


NUMBERS = {
    "float": (OddFloat(1.5), 1.5),
    "int": (OddInt(3), 3),
    "wide": (10**5000, Refused),
    "text": (OddText("a"), Refused),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("way", ["add_scalar", "add_scalars"])
def test_a_number_is_taken_as_a_plain_one(number: str, way: str) -> None:
    writer, (value, wanted) = LogWriter(update_counter=UpdateCounter()), NUMBERS[number]
    for key, logger in (("silent", None), ("told", logging.getLogger("told"))):
        arguments = (key, value) if way == "add_scalar" else ({key: value},)
        if wanted is Refused:
            with pytest.raises(NoetherError):
                getattr(writer, way)(*arguments, logger=logger, format_str=".3f")
        else:
            getattr(writer, way)(*arguments, logger=logger, format_str=".3f")
    writer.add_scalar("after", 1.0)
    writer.flush()
    expected = {"after": 1.0} if wanted is Refused else {"silent": wanted, "told": wanted, "after": 1.0}
    assert repr(values_of(writer.log_entries[0])) == repr(expected)


def test_a_format_that_raises_logs_nothing() -> None:
    writer = LogWriter(update_counter=UpdateCounter())
    with pytest.raises(ValueError, match=r"format|Unknown"):
        writer.add_scalar("a", 1.0, logger=logging.getLogger("told"), format_str="y")
    writer.add_scalar("a", 2.0)
    assert writer.current_values() == {"a": 2.0}


def test_a_key_reads_back_exactly_or_is_refused_at_the_call(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    taken = []
    for number, (key, is_taken) in enumerate(KEYS):
        counter.next_update()
        writer.add_scalar("before", number)
        for add in (writer.add_scalar, writer.add_nonscalar, lambda key, value: writer.add_scalars({key: value})):
            counter.next_update()
            writer.add_scalar("before", number)
            if is_taken:
                add(key, 1.0)
                taken.append(str.__str__(key))
            else:
                with pytest.raises(NoetherError, match="cannot log under the key"):
                    add(key, 1.0)
        writer.flush()
    writer.close()
    read = read_run(tmp_path)
    assert not read.problems
    assert len(read.entries) == 4 * len(KEYS)
    assert list(read.series) == ["before", *dict.fromkeys(taken)]


def test_what_is_logged_is_a_copy() -> None:
    writer = LogWriter(update_counter=UpdateCounter())
    value = {"a": [1, {"b": 2}]}
    writer.add_nonscalar("x", value)
    value["a"][1]["b"] = 3  # type: ignore[index]
    value["a"].append(4)
    writer.flush()
    assert writer.log_entries[0]["x"] == {"a": [1, {"b": 2}]}


def test_an_entry_of_more_than_a_line_is_read_as_one(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    texts = {f"text{number}": chr(number % 26 + 97) * 1_000_000 for number in range(70)}
    for number in range(3):
        counter.next_update()
        writer.add_scalar("number", number)
        for key, text in texts.items() if number == 1 else ():
            writer.add_nonscalar(key, text)
        writer.flush()
    writer.close()
    read = read_run(tmp_path)
    assert read.problems == []
    assert [entry["number"] for entry in read.entries] == [0, 1, 2]
    assert texts.items() <= read.entries[1].items()


# ---------------------------------------------------------------------- the names of arrays

NAMES = [
    *TEXTS,
    "__metadata__",
    "noether-name:",
    "noether-name:__metadata__",
    "noether-name:\\u0041",
    "x" * 300,
    "x" * 60_000,
    "/",
    "..",
    "__proto__",
]


def test_any_name_of_an_array_reads_back(tmp_path: Path) -> None:
    arrays = {name: np.array([number, 0.5]) for number, name in enumerate(NAMES)}
    write_arrays(tmp_path / "all", arrays)
    found = read_arrays(tmp_path / "all")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    assert read_headers(tmp_path / "all").keys() == arrays.keys()


def test_ordinary_names_are_written_as_they_are() -> None:
    assert all(escaped_name(name) == name for name in ["", "loss", "a/b", "😀", "\0", "x" * 300, "a\\b"])


def test_escapes_come_back_whatever_they_are_of() -> None:
    rng = random.Random()
    parts = ["NaN", "Infinity", "-", "\\", "noether-name:", "__metadata__", "\ud800", "é", "\\x41", "\\", "a"]
    for _ in range(3000):
        text = "".join(rng.choices(parts, k=rng.randrange(5)))
        assert name_of(escaped_name(text)) == text
        assert text_or_float(escaped_text(text)) == text
        assert decode_line(encode_line({"a": text, "b": [text]})) == {"a": text, "b": [text]}
    assert encode_line({"a": "text", "b": math.nan}).startswith(b'{"a":"text","b":"NaN","crc32"')


def test_names_that_take_too_much_are_refused_together() -> None:
    with pytest.raises(NoetherError, match="the names of 700 arrays take") as caught:
        encode_arrays({f"{number}{'x' * 60_000}": np.zeros(1) for number in range(700)})
    assert len(str(caught.value)) < 10_000


@each_front_end
def test_no_tracked_key_costs_another(front_end: Any, tmp_path: Path) -> None:
    names = [name for name in NAMES if name]
    config = {"every_n_updates": 2, "keys": names, "reduce": ["mean", "last"], "save_output": True}
    with front_end.Run(tmp_path, [config]) as run:
        for number in (1.0, 2.0):
            run.step({name: np.float32(number + place) for place, name in enumerate(names)})
    read = read_run(tmp_path)
    assert not read.problems
    (file,) = read.arrays
    arrays = file.load()
    for place, name in enumerate(names):
        assert read.series[f"{name}/mean/U2"].value.tolist() == [place + 1.5]
        assert arrays[f"{name}/mean"] == place + 1.5
        assert arrays[f"{name}/last"] == place + 2


@each_front_end
def test_a_key_that_is_too_long_is_refused_at_its_step(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [{"every_n_updates": 1, "patterns": ["loss"]}]) as run:
        run.step({"loss": 1.0, "x" * 10**7: 2.0})
        with pytest.raises(UpdateOutputError, match="has a name of 10000004 characters"):
            run.step({"loss": 1.0, "loss" + "x" * 10**7: 2.0})
        run.step({"loss": 2.0})
    assert read_run(tmp_path).series["loss/U1"].value.tolist() == [1.0, 2.0]
