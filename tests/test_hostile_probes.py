"""Whatever a file of probes claims, reading it costs no more than its size, and says what is wrong and where."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzed_probes import ARRAYS, STATISTICS, compare_and_draw, drawn_probes, make_probed, read_probes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noether_core.emit.array_reader import ArrayReader
from noether_core.emit.arrays import encode_arrays, read_arrays, write_arrays
from noether_core.errors import RunFormatError
from noether_core.probes import read_training
from noether_core.probes.block import ABOUT, COUNTS, FINGERPRINTS, MOST_ABOUT, UPDATES, VALUES

MOST_MEMORY = 2**23  # bytes, for files of a few kilobytes


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile_probes") / "run"
    make_probed(path)
    return path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


@contextmanager
def bounded(memory: int = MOST_MEMORY, seconds: float = 5.0) -> Iterator[None]:
    """Let nothing be allocated beyond some bytes at a time, and nothing take long."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < memory
        assert time.perf_counter() - began < seconds
    finally:
        tracemalloc.stop()


def rewrite(path: Path, told: dict[str, Any] | bytes, arrays: dict[str, Any]) -> None:
    """Change what a file says of itself, and arrays of it; None takes one out. Its checksums are right."""
    found = read_arrays(path)
    about = told if isinstance(told, bytes) else json.dumps(json.loads(found[ABOUT].tobytes()) | told).encode()
    found[ABOUT] = np.frombuffer(about, np.uint8)
    found |= arrays
    path.write_bytes(encode_arrays({name: array for name, array in found.items() if array is not None}))


STATISTICS_CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no JSON": (b'{"probes":1,"keys":[}', {}, "it holds no probes, or damaged ones (no JSON"),
    "deep": (b"[" * 100_000, {}, "it holds no probes"),
    "a list": (b"[1]", {}, "it is not of version 1"),
    "another version": ({"probes": 2}, {}, "it is not of version 1"),
    "a number of 4,301 digits": (b'{"probes":1,"limit":' + b"9" * 4301 + b"}", {}, "it holds no probes"),
    "much": (b" " * (MOST_ABOUT + 1), {}, "expected at most 16,777,216 bytes"),
    "keys that are no texts": ({"keys": [1]}, {}, "its keys are no list"),
    "a key twice": ({"keys": ["loss/a", "loss/a"]}, {}, "its keys are no list"),
    "no stage": ({"keys": ["elsewhere/a"]}, {}, "its keys are no list"),
    "a key too many": ({"keys": ["loss/a"]}, {}, "it lacks the statistics ['counts']"),
    "another framework": ({"framework": "\x1b[31m"}, {}, "the framework '\\x1b[31m'"),
    "a start that is no text": ({"start": [[]]}, {}, "it is of the start [[]]"),
    "no updates": ({}, {UPDATES: None}, "it lacks the statistics"),
    "updates that go back": ({}, {UPDATES: np.array([3, 2, 1, 4])}, "its updates do not increase"),
    "an update twice": ({}, {UPDATES: np.array([1, 1, 2, 3])}, "its updates do not increase"),
    "an update before the first": ({}, {UPDATES: np.array([-5, 1, 2, 3])}, "its updates do not increase"),
    "another dtype": ({}, {COUNTS: np.zeros((4, 4), np.int32)}, "it lacks the statistics ['counts']"),
    "a flat table": ({}, {FINGERPRINTS: np.zeros(16, np.uint64)}, "it lacks the statistics ['fingerprints']"),
}  # fmt: skip

ARRAY_CASES: dict[str, tuple[Any, str]] = {
    "a limit for a giant sample": ({"limit": 2**50, "shapes": [[2**62], [5, 12]]}, "it would be (281474976710656,)"),
    "a limit that is none": ({"limit": -1}, "its limit is -1"),
    "a limit beyond 64 bits": ({"limit": 10**30}, "its limit is 1000000000000000000000000000000"),
    "shapes beyond 64 bits": ({"shapes": [[10**4000]] * 4}, "'data/total' has the shape [1000"),
    "a shape of many axes": ({"shapes": [[1] * 70] * 4}, "has the shape [1, 1, 1"),
    "a shape of fractions": ({"shapes": [[1.5]] * 4}, "has the shape [1.5]"),
    "a shape of other sizes": ({"shapes": [[4], [5, 12], [], [5, 12]]}, "'data/total' is kept in the shape (3,), and of (4,)"),
    "another number of axes": ({"shapes": [[3], [60], [], [5, 12]]}, "'param/weight' has the shape [60]"),
    "more shapes than keys": ({"shapes": [[]] * 9}, "its shapes are no list"),
    "shapes that are no lists": ({"shapes": "abcd"}, "its shapes are no list"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATISTICS_CASES)
def test_statistics_that_cannot_be_are_told_with_their_place(name: str, run: Path) -> None:
    told, arrays, message = STATISTICS_CASES[name]
    rewrite(run / STATISTICS, told, arrays)
    with bounded(2**27 if name == "much" else MOST_MEMORY):
        training = read_probes(run)
    assert len(training.problems) == 1
    assert f"{run / STATISTICS}, byte " in training.problems[0]
    assert message.encode("unicode_escape").decode() in training.problems[0].encode("unicode_escape").decode()
    assert training.updates() == [1, 2]  # of the arrays


@pytest.mark.parametrize("name", ARRAY_CASES)
def test_arrays_that_cannot_be_are_told_with_their_place(name: str, run: Path) -> None:
    told, message = ARRAY_CASES[name]
    rewrite(run / ARRAYS, told, {})
    with bounded():
        training = read_probes(run)
    assert len(training.problems) == 1
    assert f"{run / ARRAYS}, byte " in training.problems[0]
    assert message in training.problems[0]
    assert training.array_updates() == [2]


def test_no_shape_but_a_true_one_is_given_for_what_was_sampled(original: Path) -> None:
    training = read_training(original)
    places = training.places(1, "param/weight")
    assert places is not None
    assert training.shape(1, "param/weight") == (5, 12)
    array = training.array(1, "param/weight")
    assert array is not None
    np.testing.assert_array_equal(array, np.arange(60.0).reshape(5, 12)[np.ix_(*places)])


@pytest.mark.parametrize("shape", [(2**62, 0), (2**40, 2**40, 0), (0, 2**64 - 1)])
def test_an_empty_array_of_a_shape_that_none_can_have_is_an_error(shape: tuple[int, ...], tmp_path: Path) -> None:
    document = json.dumps({"a": {"dtype": "F64", "shape": shape, "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(document).to_bytes(8, "little") + document)
    for read in (read_arrays, lambda path: ArrayReader(path).read("a")):
        with pytest.raises(RunFormatError, match=r"a\.safetensors .*byte 8: 'a'"):
            read(path)


def test_what_memory_has_no_room_for_is_an_error(run: Path) -> None:
    """A file with a hole is as long as it says, and has no bytes."""
    path, size = run / ARRAYS, 2**33
    document = json.dumps({ABOUT: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(document).to_bytes(8, "little") + document)
    os.truncate(path, 8 + len(document) + size)
    with bounded():
        assert "expected at most 16,777,216 bytes" in read_training(run).problems[0]
    most, reader = resource.getrlimit(resource.RLIMIT_AS), ArrayReader(path)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + size // 2, most[1]))
    try:
        with pytest.raises(RunFormatError, match="is not a readable safetensors file"):
            reader.read(ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, most)
    os.truncate(path, 2**34 + 1)
    with pytest.raises(RunFormatError, match="at most 17,179,869,184 are read"):
        ArrayReader(path).read(ABOUT)


def many_keys(count: int) -> dict[str, Any]:
    return {"probes": 1, "keys": [f"loss/{at}" for at in range(count)]}


def test_time_grows_with_a_file_and_not_with_its_square(run: Path) -> None:
    """Many keys, many updates and many names: each is looked up once, whatever the number of the others."""
    about = np.frombuffer(json.dumps(many_keys(4_000)).encode(), np.uint8)
    shape = (4_000, 1)
    for update in (1, 5):
        table = {
            COUNTS: np.ones(shape, np.int64),
            VALUES: np.ones((*shape, 5)),
            FINGERPRINTS: np.ones(shape, np.uint64),
        }
        write_arrays(run / STATISTICS.replace("U1", f"U{update}"), {ABOUT: about, UPDATES: np.array([update]), **table})
    rows = np.arange(10, 700_010)
    empty = {
        COUNTS: np.ones((0, len(rows)), np.int64),
        VALUES: np.ones((0, len(rows), 5)),
        FINGERPRINTS: np.ones((0, len(rows)), np.uint64),
    }
    none = np.frombuffer(json.dumps(many_keys(0)).encode(), np.uint8)
    write_arrays(run / STATISTICS.replace("U1", "U10"), {ABOUT: none, UPDATES: rows, **empty})
    told = np.frombuffer(json.dumps(many_keys(4_000) | {"shapes": [[0]] * 4_000, "limit": 64}).encode(), np.uint8)
    nothing = {f"loss/{at}": np.zeros(0, np.float32) for at in range(4_000)}
    write_arrays(run / ARRAYS, {ABOUT: told, **nothing})
    began = time.perf_counter()
    training = read_training(run)
    assert all("no start says that it saved this file" in problem for problem in training.problems)
    for key in training.all_keys:
        training.statistics_columns(key)
        assert training.array(1, key) is None or training.shape(1, key) in ((0,), (5, 12), (), (3,))
        assert time.perf_counter() - began < 20
    for update in range(10, 10_010):
        assert training.keys(update) == []
    assert time.perf_counter() - began < 20


def read_drawn(run: Path, name: str, data: bytes, page: Path, original: Path) -> None:
    (run / name).write_bytes(data)
    with bounded():
        training = read_probes(run)
    for problem in training.problems:
        assert problem.isprintable()
        assert str(run) in problem
    for text in compare_and_draw(run, original, page):
        assert text.isprintable()


@pytest.mark.parametrize("name", [STATISTICS, ARRAYS], ids=["statistics", "arrays"])
def test_drawn_files_are_read_compared_and_drawn(
    name: str, run: Path, original: Path, tmp_path: Path, full: bool
) -> None:
    drawn: Callable[..., Any] = given(drawn_probes(read_arrays(original / name)))
    limits = settings(
        max_examples=2000 if full else 40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )

    @limits
    @drawn
    def one(data: bytes) -> None:
        read_drawn(run, name, data, tmp_path / "page.html", original)

    one()


def test_every_flipped_bit_is_told(run: Path, original: Path) -> None:
    wanted = read_training(original).keys(1)

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([STATISTICS, ARRAYS]), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def one(name: str, place: float, bit: int) -> None:
        for each in (STATISTICS, ARRAYS):
            shutil.copy(original / each, run / each)
        data = bytearray((original / name).read_bytes())
        data[int(place * len(data))] ^= 1 << bit
        (run / name).write_bytes(data)
        with bounded():
            training = read_probes(run)
        is_told = any(name in problem for problem in training.problems)
        assert is_told or (name == ARRAYS and any(_is_damaged(training, key) for key in wanted))

    one()


def _is_damaged(training: Any, key: str) -> bool:
    try:
        training.array(1, key)
    except RunFormatError as error:
        return "is damaged: its CRC-32 does not match" in str(error)
    return False
