"""A run directory from a stranger: nothing in it hangs, takes memory, is read elsewhere, or reaches the terminal."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import socket
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_runs import make_run, write_log

from noether_core import NoetherError, RunFormatError, read_run
from noether_core.cli import main
from noether_core.emit import columns
from noether_core.emit.array_header import MOST_HEADER
from noether_core.emit.arrays import encode_arrays, read_arrays, read_headers, write_arrays
from noether_core.emit.export import export_run
from noether_core.emit.jsonl import encode_line
from noether_core.emit.lines import MOST_DEPTH, MOST_LINE, iter_lines
from noether_core.emit.record_file import decode_record, encode_record
from noether_core.emit.state_file import read_state, write_state
from noether_core.emit.unmerged import find_unmerged
from noether_core.errors import listing, suggest
from noether_core.parity.check import check_run
from noether_core.parity.merge import merge_run
from noether_torch import Run

UNITS = {"epoch": 0, "update": 4, "sample": 4}
ESCAPES = "\x1b]0;owned\x07\x1b[31m\r\x9b\u202e\x00"
MEMORY = 3 * 2**30  # bytes of address space that reading may take here, most of them NumPy's libraries


def line(body: str | bytes) -> bytes:
    """Return a line with a right CRC, whatever it says."""
    body = body.encode() if isinstance(body, str) else body
    return b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def limited(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with bounded memory and time."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )


# ------------------------------------------------------------------ what is no regular file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # a socket's path is short
        server.bind(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def elsewhere(path: Path) -> None:
    secret = path.parents[2] / f"secret{path.suffix}"
    secret.write_bytes(encode_line({**UNITS, "secret": 42}) if path.suffix == ".jsonl" else encode_arrays({}))
    path.symlink_to(secret)


def directory(path: Path) -> None:
    path.mkdir()


PLACES = [
    "metrics/1.jsonl",
    "metrics/7.jsonl",
    "metrics/1.time.jsonl",
    "metrics/1.merged.jsonl",
    "starts/1.json",
    "update_outputs/U2/E0_U2_S2.safetensors",
    "update_outputs/U2/E0_U99_S99.safetensors",
    "unmerged/0-of-2.safetensors",
    "config.yaml",
]


@pytest.mark.sweep(20)
@pytest.mark.parametrize("make", [fifo, listening, device, elsewhere, directory])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_regular_file_is_said_not_read_and_costs_no_other(
    make: Callable[[Path], None], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    make_run(path)
    whole = read_run(path)
    (path / place).unlink(missing_ok=True)
    make(path / place)
    run = read_run(path)
    assert "secret" not in run.series
    assert len(run.entries) >= len(whole.entries) - (8 if place == "metrics/1.jsonl" else 0)
    for file in (*run.arrays, *run.superseded_arrays):
        file.load()
        file.headers()
    assert len(run.arrays) >= len(whole.arrays) - 1
    if not (make is directory and place.endswith(("99.safetensors", "U2_S2.safetensors", "of-2.safetensors"))):
        assert any(place in problem for problem in check_run(path).problems)
    merge_run_quietly(path)


def merge_run_quietly(path: Path) -> None:
    with contextlib.suppress(NoetherError):  # without a config
        merge_run(path)


@pytest.mark.parametrize("part", ["metrics", "starts", "update_outputs", "superseded", "unmerged"])
def test_a_directory_that_is_a_link_is_refused(part: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    make_run(path)
    (path / part).rename(tmp_path / "other")
    (path / part).symlink_to(tmp_path / "other")
    for read in (read_run, merge_run):
        with pytest.raises(RunFormatError, match=f"{part} is a symbolic link"):
            read(path)
    assert any(f"{part} is a symbolic link" in problem for problem in check_run(path).problems)


def test_a_link_deeper_in_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    make_run(path)
    for place in ("update_outputs/linked", "unmerged/linked"):
        (tmp_path / place).mkdir(parents=True)
        write_arrays(tmp_path / place / "E0_U1_S1.safetensors", {"secret": np.zeros(3)})
        (path / place).symlink_to(tmp_path / place)
    run = read_run(path)
    assert not any("linked" in file.interval for file in run.arrays)
    assert any("linked" in problem for problem in run.problems)
    assert len(find_unmerged(path)) == 1


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "update_outputs/../../x", "x", "update_outputs/a/\x1b[31m", 3]
)
def test_a_name_in_a_line_leads_nowhere(name: Any, tmp_path: Path) -> None:
    write_log(tmp_path / "run", {"loss": 1.0})
    with (tmp_path / "run" / "metrics" / "1.time.jsonl").open("ab") as file:
        file.write(encode_line({"arrays": name}))
    run = read_run(tmp_path / "run")
    assert (run.arrays, run.superseded_arrays) == ([], [])
    assert not check_run(tmp_path / "run").is_clean


# ------------------------------------------------------------------ lines with a right CRC that say something else


BODIES: list[Any] = [
    '{"a":1',
    '{"epoch":0,"sample":4,"loss":1',
    '{"epoch":0,"update":"4","sample":4',
    '{"epoch":0,"update":4.0,"sample":4',
    '{"epoch":0,"update":true,"sample":4',
    '{"epoch":0,"update":-4,"sample":4',
    '{"epoch":0,"update":null,"sample":4',
    '{"epoch":0,"update":[4],"sample":4',
    '{"epoch":0,"update":9223372036854775808,"sample":4',
    f'{{"epoch":0,"update":{"9" * 4000},"sample":4',
    f'{{"epoch":0,"update":4,"sample":4,"v":{"9" * 10_000}',
    f'{{"epoch":0,"update":4,"sample":4,"v":-{"9" * 10_000}.5',
    f'{{"epoch":0,"update":4,"sample":4,"v":{"[" * 900}{"]" * 900}',
    f'{{"epoch":0,"update":4,"sample":4,"v":{"[" * (MOST_DEPTH + 2)}{"]" * (MOST_DEPTH + 2)}',
    f'{{"epoch":0,"update":4,"sample":4,"v":{"[" * 100_000}{"]" * 100_000}',
    '{"epoch":0,"update":4,"sample":4,"v":' + '{"a":' * 20_000 + "1" + "}" * 20_000,
    '{"epoch":0,"update":4,"sample":4,"v":nul',
    b'{"epoch":0,"update":4,"sample":4,"v":"\xff"',
    "[1",
    "",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{body!s:.50}")
def test_it_costs_that_line_alone(body: str | bytes, tmp_path: Path) -> None:
    write_log(tmp_path, {"loss": 1.0})
    for name in ("1.jsonl", "1.time.jsonl", "1.merged.jsonl"):
        with (tmp_path / "metrics" / name).open("ab") as file:
            file.write(line(body))
            if name == "1.jsonl":
                file.write(encode_line({**UNITS, "loss": 2.0}))
    run = read_run(tmp_path)
    assert [point.value for point in run.series["loss"]] == [1.0, 1.0, 1.0, 2.0]
    assert all(name in " ".join(run.problems) for name in ("1.merged.jsonl",))
    assert not check_run(tmp_path).is_clean
    assert all(len(problem) < 1100 for problem in run.problems)


@pytest.mark.parametrize("depth", [MOST_DEPTH, MOST_DEPTH + 1, 500, 5000])
@pytest.mark.parametrize("kind", [list, dict, tuple])
def test_what_can_be_logged_can_be_read(depth: int, kind: Any, tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if kind is dict else kind([value])
    try:
        write_log(tmp_path, {"v": value, "loss": 1.0} if kind is not tuple else {"v": [value], "loss": 1.0}, 1)
    except NoetherError:
        assert depth >= MOST_DEPTH
        return
    assert (len(read_run(tmp_path).series), read_run(tmp_path).problems) == (2, [])


@pytest.mark.parametrize(
    "times", [3, [3], [[1]], [["a", 1]], [[1, "a"]], [[1, 10**400]], [[10**400, 1.0]], [[1, None]], {}]
)
def test_times_that_are_none_cost_no_entry(times: Any, tmp_path: Path) -> None:
    write_log(tmp_path, {"loss": 1.0})
    with (tmp_path / "metrics" / "1.time.jsonl").open("ab") as file:
        file.write(encode_line({"times": times}))
    assert len(read_run(tmp_path).series["loss"]) == 3


# ------------------------------------------------------------------ sizes


def test_a_sparse_line_of_64_gb_costs_itself(tmp_path: Path) -> None:
    write_log(tmp_path, {"loss": 1.0})
    path = tmp_path / "metrics" / "1.jsonl"
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size + 64 * 2**30)
        file.write(b"\n" + encode_line({**UNITS, "loss": 2.0}))
    code = "import sys; from noether_core import read_run; run = read_run(sys.argv[1]); print(run.problems, len(run.entries))"
    done = limited(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"byte {size}: the line has more than {MOST_LINE:,} bytes" in done.stdout
    assert done.stdout.strip().endswith("4")


def test_millions_of_empty_lines_are_one_problem(tmp_path: Path) -> None:
    write_log(tmp_path, {"loss": 1.0})
    with (tmp_path / "metrics" / "1.jsonl").open("ab") as file:
        file.write(b"\n" * 5_000_000 + encode_line({**UNITS, "loss": 2.0}))
    code = "import sys; from noether_core import read_run; run = read_run(sys.argv[1])"
    code += "; print(len(run.problems), len(run.entries))"
    done = limited(code, tmp_path)
    problems, entries = map(int, done.stdout.split())
    assert entries == 4
    assert problems <= 100


def test_of_many_damaged_lines_a_thousand_are_told(tmp_path: Path) -> None:
    write_log(tmp_path, {"loss": 1.0})
    with (tmp_path / "metrics" / "1.jsonl").open("ab") as file:
        file.write(b"x\n" * 50_000)
    run = read_run(tmp_path)
    assert len(run.problems) == 1000
    assert run.problems[-1] == "49,001 more problems are not told here"


def test_many_flushes_of_one_update_with_a_key_each_are_read_at_once(tmp_path: Path) -> None:
    write_log(tmp_path, {"loss": 1.0})
    with (tmp_path / "metrics" / "1.jsonl").open("ab") as file:
        file.writelines(encode_line({**UNITS, f"key{number}": 1.0}) for number in range(30_000))
    run = read_run(tmp_path)
    assert (len(run.entries), len(run.series)) == (4, 30_001)


def test_more_keys_than_columns_can_be_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_KEYS", 100)
    write_log(tmp_path, {f"key{number}": 1.0 for number in range(200)}, 300)
    with pytest.raises(RunFormatError, match="more than 100 keys"):
        read_run(tmp_path)
    assert not check_run(tmp_path).is_clean


def header(length: int, data: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + data


HEADERS = {
    "giant": header(2**40, b"{}"),
    "negative": header(2**64 - 1, b"{}"),
    "as long as is said": header(MOST_HEADER + 8, b"{" + b" " * (MOST_HEADER + 6) + b"}"),
    "deep": header(100_008, b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"  }"),
    "no object": header(2, b"[]"),
    "of numbers": header(7, b'{"a":3}'),
}
ENTRIES = {
    "a hole": '{"dtype":"F32","shape":[1],"data_offsets":[4,8]}',
    "an overlap": '{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',
    "beyond the file": '{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}',
    "a negative shape": '{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}',
    "a wide shape": '{"dtype":"F32","shape":[4294967296,4294967296,4294967296,0],"data_offsets":[0,8]}',
    "many dimensions": f'{{"dtype":"U8","shape":[{",".join("1" * 70)}],"data_offsets":[0,8]}}',
    "a fraction": '{"dtype":"F32","shape":[1.5],"data_offsets":[0,6]}',
    "a huge number": f'{{"dtype":"F32","shape":[{"9" * 5000}],"data_offsets":[0,8]}}',
    "no dtype": '{"shape":[2],"data_offsets":[0,8]}',
    "another dtype": '{"dtype":"C64","shape":[1],"data_offsets":[0,8]}',
    "a dtype that is a list": '{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}',
    "offsets that are text": '{"dtype":"F32","shape":[2],"data_offsets":"08"}',
}  # fmt: skip


def with_entry(entry: str) -> bytes:
    document = b'{"a":%s}' % entry.encode()
    return header(len(document), document + bytes(8))


@pytest.mark.parametrize(
    "data",
    [*HEADERS.values(), *map(with_entry, ENTRIES.values())],
    ids=[*HEADERS, *ENTRIES],
)
def test_a_header_is_refused_before_anything_is_made_of_it(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run" / "update_outputs" / "U1" / "E0_U1_S1.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    for read in (read_arrays, read_headers, read_state):
        with pytest.raises(RunFormatError, match="E0_U1_S1"):
            read(path)  # type: ignore[operator]
    assert len(str(check_run(tmp_path / "run").problems)) < 2000
    assert not check_run(tmp_path / "run").is_clean


def test_a_sparse_array_is_an_error_where_there_is_no_memory_for_it(tmp_path: Path) -> None:
    document = b'{"a":{"dtype":"U8","shape":[10000000000],"data_offsets":[0,10000000000]}}'
    (tmp_path / "a").write_bytes(header(len(document), document))
    os.truncate(tmp_path / "a", 8 + len(document) + 10**10)
    code = """import sys
from pathlib import Path
from noether_core.emit.arrays import read_arrays, read_headers
print(read_headers(Path(sys.argv[1])))
try:
    read_arrays(Path(sys.argv[1]))
except ValueError as error:
    print(type(error).__name__)
"""
    done = limited(code, tmp_path / "a")
    assert done.stdout.strip().endswith("RunFormatError"), done.stderr


# ------------------------------------------------------------------ the terminal


def hostile_run(path: Path) -> None:
    make_run(path)
    write_log(path, {f"key{ESCAPES}": 1.0, "text": ESCAPES, "=1+1": "=cmd|x", "../x": [ESCAPES]})
    write_arrays(path / "update_outputs" / f"U1{ESCAPES[:-1]}" / "E0_U1_S1.safetensors", {f"a{ESCAPES}": np.zeros(2)})
    (path / "metrics" / "9.jsonl").write_bytes(line(json.dumps({"update": ESCAPES})[:-1]) + ESCAPES.encode() + b"\n")
    (path / "starts" / "9.json").write_text(
        json.dumps({"id": 3, "parent": ESCAPES, "iteration": ESCAPES, "host": ESCAPES})
    )
    (path / "starts" / "8.json").write_text(
        json.dumps({"id": ESCAPES, "parent": ESCAPES, "iteration": None, "host": ESCAPES})
    )
    (path / "metrics" / "8.jsonl").touch()
    (path / "update_outputs" / f"link{ESCAPES[:-1]}").symlink_to("/etc")
    state = {"iteration": ESCAPES, "index": ESCAPES, "count": 1}
    write_state(path / "unmerged" / "0-of-1.safetensors", state)
    config = f'callbacks: [{{every_n_updates: 1, keys: [loss], "{json.dumps(ESCAPES)[1:-1]}": 1}}]'
    (path / "config.yaml").write_text(config, encoding="utf-8")


COMMANDS = [
    "show",
    "check",
    "merge",
    "explain",
    "export --to csv",
    "export --to parquet",
    "check --json",
    "show --svg x.svg",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_escape_of_a_file_reaches_the_terminal(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile_run(tmp_path / "run")
    name, *options = command.split()
    given = [str(tmp_path / "run")]
    if name == "explain":
        given = [str(tmp_path / "run" / "config.yaml"), str(tmp_path / "outputs.yaml")]
        (tmp_path / "outputs.yaml").write_text(f'"{json.dumps(ESCAPES)[1:-1]}": "{json.dumps(ESCAPES)[1:-1]}"')
    monkeypatch.setattr(sys, "argv", ["noether-parity", name, *given, *options])
    monkeypatch.setenv("FORCE_COLOR", "")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        main()
    for text in capsys.readouterr():
        assert [char for char in text if not char.isprintable() and char != "\n"] == []
        assert "Traceback" not in text


def test_an_error_s_text_is_inert_and_short(tmp_path: Path) -> None:
    error = NoetherError(f"the file says {ESCAPES}{'x' * 10**6}\nand more")
    assert "\x1b" not in str(error)
    assert len(str(error)) < 11_000
    assert len(listing(["x" * 10**6] * 100)) < 20_000
    assert suggest("x" * 10**6, ["x" * 10**6]) == ""
    hostile_run(tmp_path / "run")
    for problem in read_run(tmp_path / "run").problems:
        assert problem.isprintable()


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize("tool", ["csv", "parquet", "tensorboard"])
@pytest.mark.parametrize("is_deep", [False, True])
def test_an_export_goes_through_no_link(tool: str, is_deep: bool, tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_log(path, {"loss": 1.0})
    (tmp_path / "home").mkdir()
    name = tool if tool == "tensorboard" else f"metrics.{tool}"
    if is_deep:
        (path / "exports").mkdir()
        (path / "exports" / name).symlink_to(tmp_path / "home" / "file")
    else:
        (path / "exports").symlink_to(tmp_path / "home")
    with pytest.raises(RunFormatError, match="is a symbolic link"):
        export_run(path, tool)
    assert list((tmp_path / "home").iterdir()) == []


def test_a_link_under_a_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("mine")
    for number in range(3):
        (tmp_path / f".a.{os.getpid() + number - 1}.tmp").symlink_to(tmp_path / "home")
    write_arrays(tmp_path / "a", {})
    assert (tmp_path / "home").read_text() == "mine"
    assert read_arrays(tmp_path / "a") == {}


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        *((f"{sign}1+1", f"'{sign}1+1") for sign in "=+-@\t\r＝＋－＠"),
        ("'quoted'", "''quoted'"),
        ("nan", "nan"),
        ("1.5", "1.5"),
        ("", ""),
        ("a,b", "a,b"),
    ],
)
def test_no_text_in_a_csv_is_a_formula_or_a_number(text: str, cell: str, tmp_path: Path) -> None:
    write_log(tmp_path, {f"{text}key": text, "number": -1.5}, 1)
    data = export_run(tmp_path, "csv").path.read_bytes().decode()
    head, row = (
        csv.reader(data.splitlines(keepends=True)) if "\r" not in text else csv.reader([*data.split("\r\n")[:-1]])
    )
    assert head[3] == (f"'{text}key" if cell.startswith("'") else f"{text}key")
    assert row[3:] == [cell, "-1.5"]
    assert f'"{cell}",-1.5\r\n' in data  # text is in quotes, a number is not


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_no_reader_of_a_csv_finds_a_formula_in_a_key_whatever_it_splits_at(separator: str, tmp_path: Path) -> None:
    write_log(tmp_path, {f"a{separator}=HYPERLINK(1)": 1.5, "b": 2.5}, 1)
    data = export_run(tmp_path, "csv").path.read_bytes().decode()
    cells = [cell for row in csv.reader(data.splitlines(), delimiter=separator) for cell in row]
    assert not any(cell.startswith("=") for cell in cells)


def test_no_name_of_a_file_forges_a_line_of_the_check(tmp_path: Path) -> None:
    write_log(tmp_path, {"loss": 1.5}, 1)
    (tmp_path / "update_outputs" / "U1").mkdir(parents=True)
    (tmp_path / "update_outputs" / "U1" / "x\nnothing is damaged or missing\n.safetensors").symlink_to("/dev/null")
    report = check_run(tmp_path)
    assert not report.is_clean
    assert "nothing is damaged or missing" not in "\n".join(report.lines()).splitlines()


@pytest.mark.parametrize(
    "key", ["../x", "/etc/x", "..", "nul\0", "x" * 300, "\x1b[31m", "\ud800", "<script>", "=1+1", "a/b"]
)
def test_a_hostile_key_stays_in_the_directory_in_every_export(key: str, tmp_path: Path) -> None:
    write_log(tmp_path / "run", {key: 1.5})
    assert list(read_run(tmp_path / "run").series) == [key]
    for tool in ("csv", "parquet", "tensorboard"):
        export_run(tmp_path / "run", tool)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics", "exports"}


def test_a_line_reader_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encode_line(UNITS))
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(RunFormatError, match="is a symbolic link"):
        list(iter_lines(tmp_path / "b", []))


@pytest.mark.parametrize("part", ["metrics", "starts", "update_outputs", "superseded", "unmerged", "capsules"])
def test_a_run_writes_through_no_link(part: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".a.1.tmp").touch()
    os.utime(tmp_path / "elsewhere" / ".a.1.tmp", (0, 0))
    (tmp_path / "run" / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFormatError, match="is a symbolic link; a run's files are in its directory"):
        Run(tmp_path / "run", [{"every_n_updates": 1, "keys": ["a"]}], processes=1).start()
    assert [file.name for file in (tmp_path / "elsewhere").iterdir()] == [".a.1.tmp"]


@pytest.mark.parametrize("name", [f"U1/E0_U{10**19}_S1", f"U1/E{10**30}_U{10**19}_S{10**19}"])
def test_an_array_file_of_no_update_that_there_can_be_is_none(name: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    file = tmp_path / "run" / "metrics" / "1.time.jsonl"
    file.write_bytes(file.read_bytes() + encode_line({"arrays": f"update_outputs/{name}.safetensors"}))
    assert read_run(tmp_path / "run").entries
    check_run(tmp_path / "run")


@pytest.mark.parametrize("callbacks", [5, None, {"a": 1}, "abc", [5], []])
def test_a_run_goes_on_from_a_start_whose_record_says_anything_of_its_callbacks(callbacks: Any, tmp_path: Path) -> None:
    configs = [{"every_n_updates": 1, "keys": ["a"]}]
    with Run(tmp_path, configs, processes=1) as run:
        run.step({"a": 1.0})
    file = tmp_path / "starts" / "1.json"
    file.write_bytes(encode_record(decode_record(file.read_bytes(), file, []) | {"callbacks": callbacks}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Run(tmp_path, configs, start={"update": 1}, processes=1) as run:
            run.step({"a": 2.0})
    assert read_run(tmp_path).series["a/U1"].value.tolist() == [1.0, 2.0]
