from __future__ import annotations

import contextlib
import errno
import json
import math
import multiprocessing
import os
import uuid
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noether_core import RunFormatError
from noether_core.emit.columns import Point
from noether_core.emit.jsonl import LineFile, decode_line, encode_line, iter_lines
from noether_core.emit.lines import MOST_DEPTH

UNITS = {"epoch": 0, "update": 3, "sample": 24}
KEYS = st.text().filter(lambda key: key not in {*UNITS, "crc32"})
SCALARS = st.booleans() | st.integers() | st.floats()
SPECIAL_TEXT = {"NaN", "Infinity", "-Infinity"}


# ------------------------------------------------------------------ the standard library's encoder, for reference


def strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str) and value.lstrip("\\") in SPECIAL_TEXT:
        return f"\\{value}"
    if isinstance(value, dict):
        return {str(name): strict(item) for name, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value


def reference_encode(entry: dict[Any, Any]) -> bytes:
    body = json.dumps(strict(entry), ensure_ascii=True, allow_nan=False, separators=(",", ":"))[:-1].encode("ascii")
    return b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def named(value: Any) -> Any:
    if isinstance(value, str):
        is_escaped = value.startswith("\\") and value.lstrip("\\") in SPECIAL_TEXT
        found = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value, value)
        return value[1:] if is_escaped else found
    if isinstance(value, dict):
        return {name: named(item) for name, item in value.items()}
    return [named(item) for item in value] if isinstance(value, list) else value


def reference_decode(line: bytes) -> Any:
    return named({name: value for name, value in json.loads(line).items() if name != "crc32"})


ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    ["NaN", "-Infinity", "\x7f", "größe", "\ud83d", "\udc00", "🧪", "\x00\x1f\u2028/"]
)
ANY_FLOAT = (
    st.floats()
    | st.tuples(st.floats(1, 10), st.integers(-320, 308)).map(lambda pair: pair[0] * 10.0 ** pair[1])
    | st.sampled_from(
        [1e-4, math.nextafter(1e-4, 0), 1e16, math.nextafter(1e16, 0), -1e-5, 2.0**63, -(2.0**64), 0.0, -0.0]
    )
    | st.sampled_from([1125899906842624.25, 1125899906842624.75, 5e-324, 1.7976931348623157e308])
    | st.floats().map(np.float64)
)
ANY_INT = st.integers() | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400])
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | ANY_INT | ANY_FLOAT | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(ANY_TEXT | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(ANY_TEXT, ANY_FLOAT | ANY_INT | st.booleans()) | st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=5)
)
def test_the_bytes_are_those_of_the_standard_librarys_encoder(values: dict[str, Any]) -> None:
    entry = {**UNITS, **values}
    line = encode_line(entry)
    assert line == reference_encode(entry)
    if "crc32" not in values:
        assert same(decode_line(line), reference_decode(line))


@given(st.lists(ANY_FLOAT, min_size=100, max_size=1000))
def test_so_are_those_of_many_numbers(values: list[float]) -> None:
    entry = {f"key{at}": value for at, value in enumerate(values)}
    assert encode_line(entry) == reference_encode(entry)


def test_so_are_those_of_every_power_of_ten_and_of_two() -> None:
    for power in [
        *(10.0**exponent for exponent in range(-323, 309)),
        *(2.0**exponent for exponent in range(-1074, 1024)),
    ]:
        for value in (power, math.nextafter(power, 0), math.nextafter(power, math.inf)):
            for entry in ({"a": value}, {"a": -value}):
                assert encode_line(entry) == reference_encode(entry)


class Name(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another"


@pytest.mark.parametrize(
    "value", [object(), b"bytes", {1}, np.zeros(2), uuid.uuid4(), datetime.now(UTC), Point(0, 1, 2, 3)]
)
def test_what_json_refuses_is_refused_alone_and_nested(value: Any) -> None:
    for entry in ({"a": value}, {"a": [value]}):
        with pytest.raises(TypeError):
            encode_line(entry)
    assert encode_line({Name("a"): 1}) == reference_encode({Name("a"): 1})


@pytest.mark.parametrize(
    "text", ["-0", "1e400", "18446744073709551616", "[-9223372036854775809, 1e30]", "[NaN]", '"\\ud800"']
)
def test_what_others_write_is_read_as_the_standard_library_does(text: str) -> None:
    body = f'{{"update":1,"v":{text}'.encode()
    line = b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))
    assert same(decode_line(line), reference_decode(line))


# ------------------------------------------------------------------ lines and files


class Lines(NamedTuple):
    entries: list[dict[str, Any]]
    problems: list[str]


def read_lines(path: Path) -> Lines:
    problems: list[str] = []
    return Lines(list(iter_lines(path, problems)), problems)


def same(a: Any, b: Any) -> bool:
    """Compare type and bits; -0.0 is not 0.0, and every NaN is NaN."""
    if isinstance(a, float):
        return type(b) is float and (
            (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(st.dictionaries(KEYS, SCALARS))
def test_an_entry_comes_back_as_it_was(values: dict[str, Any]) -> None:
    entry = {**UNITS, **values}
    assert same(decode_line(encode_line(entry)), entry)


@given(
    st.recursive(
        SCALARS | st.text().filter(lambda text: text not in SPECIAL_TEXT),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
)
def test_a_nested_value_comes_back_as_it_was(value: Any) -> None:
    entry = {**UNITS, "value": value}
    assert same(decode_line(encode_line(entry)), entry)


@pytest.mark.parametrize("leaf", [1.5, 7, []])
def test_a_value_in_so_many_lists_is_read_and_in_more_refused(leaf: Any) -> None:
    value = leaf
    for _ in range(MOST_DEPTH):
        value = [value]
    assert decode_line(reference_encode({**UNITS, "value": value})) == {**UNITS, "value": value}
    with pytest.raises(RunFormatError, match=f"nested more than {MOST_DEPTH} deep"):
        decode_line(reference_encode({**UNITS, "value": [value]}))


@pytest.mark.parametrize("others", [{}, {"other": 1.5}, {"text": "NaN"}, {"nothing": None}, {"list": [0.5, "NaN"]}])
@pytest.mark.parametrize("value", [2**63, 2**64 + 1, -(2**63) - 1, 1e300, -1e19, True, None, [2**64 + 1, 1e19]])
def test_a_large_number_comes_back_whatever_is_beside_it(value: Any, others: dict[str, Any]) -> None:
    entry = {**others, **UNITS, "value": value}
    found = decode_line(reference_encode(entry))
    assert same(found["value"], value)
    assert list(found) == list(entry)


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


@given(st.dictionaries(KEYS, SCALARS))
def test_a_line_is_one_line_of_strict_ascii_json(values: dict[str, Any]) -> None:
    line = encode_line({**UNITS, **values})
    assert line.isascii()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    document = json.loads(line, parse_constant=_refuse)
    assert list(document) == [*UNITS, *values, "crc32"]


@pytest.mark.parametrize(
    ("value", "written"), [(math.nan, '"NaN"'), (math.inf, '"Infinity"'), (-math.inf, '"-Infinity"'), (-0.0, "-0.0")]
)
def test_a_value_that_json_lacks_is_written_as_its_name(value: float, written: str) -> None:
    line = encode_line({**UNITS, "loss/U1": value})
    assert f'"loss/U1":{written},' in line.decode()
    assert same(decode_line(line)["loss/U1"], value)


def test_every_flip_of_one_bit_is_detected() -> None:
    line = encode_line({**UNITS, "loss/U1": 0.1, "größe": math.nan, 'quo"te': -7, "done": True})
    for bit in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RunFormatError, match="CRC-32"):
            decode_line(bytes(damaged))


def test_a_flipped_bit_in_a_file_never_gives_a_wrong_entry(tmp_path: Path) -> None:
    entries = [{**UNITS, "update": update, "loss/U1": update / 3} for update in range(3)]
    lines = [encode_line(entry) for entry in entries]
    data, path = b"".join(lines), tmp_path / "1.jsonl"
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = read_lines(path)
        assert found.problems
        assert [entry for entry in entries if entry in found.entries] == found.entries
        assert len(found.entries) == 2  # the end of a line is hit too


def test_a_line_cut_at_any_byte_is_left_out_and_named_with_its_offset(tmp_path: Path) -> None:
    first, second = ({**UNITS, "update": update, "loss/U1": 0.5} for update in (1, 2))
    whole, cut, path = encode_line(first), encode_line(second), tmp_path / "1.jsonl"
    for end in range(1, len(cut)):
        path.write_bytes(whole + cut[:end])
        found = read_lines(path)
        assert found.entries == [first]
        assert len(found.problems) == 1
        assert str(path) in found.problems[0]
        assert f"byte {len(whole)}:" in found.problems[0]


def test_a_damaged_line_leaves_its_neighbours(tmp_path: Path) -> None:
    entries = [{**UNITS, "update": update} for update in range(5)]
    lines = [encode_line(entry) for entry in entries]
    path = tmp_path / "1.jsonl"
    path.write_bytes(lines[0] + b"not ours\n" + lines[1] + lines[2][:10] + b"\n" + b"\x00\xff\n" + lines[3] + lines[4])
    found = read_lines(path)
    assert found.entries == [entries[0], entries[1], entries[3], entries[4]]
    offsets = [len(lines[0]), len(lines[0]) + 9 + len(lines[1]), len(lines[0]) + 9 + len(lines[1]) + 11]
    assert [problem.split(", byte ")[1].split(":")[0] for problem in found.problems] == [str(at) for at in offsets]


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(b"\r\n\0-M\x0b")), max_size=6))
def test_damage_costs_the_lines_that_it_is_in_whatever_it_does_to_their_ends(
    tmp_path_factory: Any, damage: list[Any]
) -> None:
    entries = [{**UNITS, "update": update, "loss": -update / 3} for update in range(6)]
    whole = [encode_line(entry) for entry in entries]
    before = bytearray(b"".join(whole))
    data = bytearray(before)
    for at, byte in damage:
        data[at % len(data)] = byte
    path = tmp_path_factory.mktemp("damage") / "1.jsonl"
    path.write_bytes(data)
    begins = [sum(map(len, whole[:at])) for at in range(7)]
    hit = {at for at in range(6) if data[begins[at] : begins[at + 1]] != before[begins[at] : begins[at + 1]]}
    found = read_lines(path)
    assert found.entries == [entry for at, entry in enumerate(entries) if at not in hit]
    offsets = [int(problem.split(", byte ")[1].split(":")[0]) for problem in found.problems]
    assert offsets == sorted(set(offsets))
    assert all(any(begins[at] <= offset < begins[at + 1] for offset in offsets) for at in hit - {at + 1 for at in hit})
    assert all(any(begins[at] <= offset < begins[at + 1] for at in hit) for offset in offsets)


def test_an_empty_file_has_neither_entries_nor_problems(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.touch()
    assert read_lines(path) == ([], [])


def test_lines_are_in_the_file_at_once(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "metrics")
    assert not (tmp_path / "metrics").exists()
    for update in range(3):
        file.append({**UNITS, "update": update})
        assert file.path is not None
        assert [entry["update"] for entry in read_lines(file.path).entries] == list(range(update + 1))
    file.close()
    file.close()


def test_what_an_fsync_lost_is_written_again_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an fsync that failed, Linux no longer knows that the pages are to be written."""
    lines = LineFile(tmp_path)
    own, real_write, real_fsync = lines.open(), os.write, os.fsync
    on_disk = bytearray()
    dirty: list[tuple[int, bytes]] = []
    fails = False

    def write(descriptor: int, data: Any) -> int:
        at = os.fstat(own).st_size if descriptor == own else os.lseek(descriptor, 0, os.SEEK_CUR)
        written = real_write(descriptor, data)
        dirty.append((at, bytes(data)[:written]))
        return written

    def fsync(descriptor: int) -> None:
        pages = list(dirty)
        dirty.clear()
        if fails:
            raise OSError(errno.EIO, "injected")
        for at, data in pages:
            on_disk[len(on_disk) : at] = b"?" * (at - len(on_disk))
            on_disk[at : at + len(data)] = data
        real_fsync(descriptor)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", fsync)
    for update in range(8):
        lines.append({"update": update})
        fails = update in (2, 3, 6)
        with contextlib.suppress(OSError):
            lines.sync()
    assert lines.path is not None
    assert on_disk == lines.path.read_bytes()
    assert len(on_disk.splitlines()) == 8
    lines.close()


def test_each_start_gets_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "7.jsonl").touch()
    (tmp_path / "notes.jsonl").touch()
    files = [LineFile(tmp_path) for _ in range(4)]
    for file in files:
        file.append(UNITS)
        file.append(UNITS)
    assert [file.path.name for file in files if file.path] == ["8.jsonl", "9.jsonl", "10.jsonl", "11.jsonl"]
    assert all(file.path and len(read_lines(file.path).entries) == 2 for file in files)
    for file in files:
        file.close()


def _append(directory: Path, process: int) -> None:
    file = LineFile(directory)
    for update in range(20):
        file.append({**UNITS, "update": update, "process": process})
    file.close()


def test_processes_that_start_together_share_no_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{number}.jsonl" for number in range(1, 5)}
    writers = [{entry["process"] for entry in read_lines(path).entries} for path in tmp_path.iterdir()]
    assert sorted(map(sorted, writers)) == [[0], [1], [2], [3]]
