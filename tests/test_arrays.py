from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from noether_core import NoetherError, RunFormatError
from noether_core.emit.arrays import check_arrays, encode_arrays, read_arrays, read_headers, write_arrays
from noether_core.emit.files import write_whole

DTYPES = [
    *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]
HOSTILE = [
    *("../x", "/etc/x", "..", "a/../../b", "nul\0byte", "x" * 300, "🧪/größe", "<script>alert(1)</script>", ""),
    *('quo"te\\', "line\nbreak", "\x1b[31mred", "con", "update", "~/x", "$(touch x)", "%s{0}", "\u202eabc"),
]


def bits(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array of random bits; NaN payloads and denormals are among them."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(size).integers(0, 2 if dtype is np.bool_ else 256, size, np.uint8).tobytes()
    return np.frombuffer(data, dtype).reshape(shape)


def assert_same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_an_array_comes_back_bit_by_bit(tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    array = bits(shape, dtype)
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"a": array})
    back = read_arrays(path)
    assert list(back) == ["a"]
    assert_same(back["a"], array)
    assert back["a"].flags.writeable
    assert read_headers(path) == {"a": (array.dtype, shape)}


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.T,
        lambda array: array[::2, ::-1],
        lambda array: array[:, 1],
        lambda array: np.asfortranarray(array),
        lambda array: np.broadcast_to(array[0], (3, *array[0].shape)),
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        lambda array: array.astype(array.dtype.newbyteorder(">")).T,
    ],
    ids=["transposed", "strided", "column", "fortran", "broadcast", "big-endian", "big-endian transposed"],
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_the_memory_layout_changes_no_byte(tmp_path: Path, dtype: Any, view: Any) -> None:
    array = view(np.arange(12).reshape(3, 4).astype(dtype))
    plain = np.array(array.tolist(), dtype)
    assert encode_arrays({"a": array}) == encode_arrays({"a": plain})
    write_arrays(tmp_path / "a.safetensors", {"a": array})
    assert_same(read_arrays(tmp_path / "a.safetensors")["a"], plain)


def test_equal_arrays_give_equal_bytes_in_any_order() -> None:
    arrays = {name: bits((2, 3), dtype) for name, dtype in zip("qwertyuiopasdfg", DTYPES, strict=True)}
    turned = {name: arrays[name].copy() for name in reversed(arrays)}
    assert encode_arrays(arrays) == encode_arrays(turned)


def test_no_arrays_are_a_file_too(tmp_path: Path) -> None:
    write_arrays(tmp_path / "none.safetensors", {})
    assert read_arrays(tmp_path / "none.safetensors") == {}


def test_hostile_names_come_back_and_write_nothing_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.safetensors"
    arrays = {name: np.float32(number).reshape(()) for number, name in enumerate(HOSTILE)}
    write_arrays(path, arrays)
    assert {name: float(array) for name, array in read_arrays(path).items()} == {
        name: float(number) for number, name in enumerate(HOSTILE)
    }
    assert [found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*") if found.is_file()] == [
        "in/a.safetensors"
    ]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros(1, np.complex128)}, "complex128"),
        ({"text": np.array(["a"])}, "<U1"),
        ({"object": np.array([object()])}, "object"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_writes_nothing(
    tmp_path: Path, arrays: dict[str, np.ndarray[Any, Any]], message: str
) -> None:
    with pytest.raises(NoetherError, match=message):
        write_arrays(tmp_path / "a.safetensors", arrays)
    assert list(tmp_path.iterdir()) == []


def _hole() -> bytes:
    header = b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    return struct.pack("<Q", len(header)) + header


def _unknown() -> bytes:
    header = b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}'
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"a": [1.0]}),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 200_000_000) + b"{}",
        b"",
        b"{}",
        _hole(),
        _unknown(),
        encode_arrays({"a": np.arange(100.0)})[:-1],
        encode_arrays({"a": np.arange(100.0)}) + b"x",
    ],
    ids=["pickle", "huge header", "large header", "empty", "short", "hole", "unknown dtype", "torn", "trailing"],
)
def test_what_is_no_whole_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(RunFormatError, match=r"a\.safetensors"):
        read_arrays(path)


def damaged(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


@pytest.mark.parametrize("is_small", [True, False])
def test_every_flip_of_one_bit_is_named_and_costs_no_more_than_the_array_it_is_in(
    tmp_path: Path, is_small: bool, full: bool
) -> None:
    shape = () if is_small else (2, 3)
    arrays = {name: bits(shape, dtype) for name, dtype in zip(("a/b", "ü", "loss", "c"), DTYPES[-9:], strict=False)}
    path, data = tmp_path / "a.safetensors", encode_arrays(arrays)
    begin = 8 + int.from_bytes(data[:8], "little")
    for bit in range(0, 8 * len(data), 1 if full else 13):
        path.write_bytes(damaged(data, bit))
        with pytest.raises(RunFormatError, match=r"a\.safetensors"):
            read_arrays(path)
        problems: list[str] = []
        try:
            found = read_arrays(path, problems)
        except RunFormatError:
            assert bit < 8 * begin  # of the header, without which nothing is known of the arrays
            continue
        assert problems
        for name, array in found.items():
            assert_same(array, arrays[name])
        if bit >= 8 * begin:
            (problem,) = problems
            (lost,) = arrays.keys() - found.keys()
            assert f"the array {lost!r} is damaged" in problem
            assert int(problem.split(", byte ")[1].split(":")[0]) <= bit // 8
        with contextlib.suppress(RunFormatError):
            assert read_headers(path) == {name: (array.dtype, array.shape) for name, array in arrays.items()}


def test_a_file_without_checksums_is_still_read(tmp_path: Path) -> None:
    arrays = {"b": bits((2, 3), np.float32), "a": bits((4,), np.bool_)}
    (tmp_path / "a").write_bytes(safetensors.numpy.save(arrays))
    assert read_headers(tmp_path / "a").keys() == arrays.keys()
    for name, array in read_arrays(tmp_path / "a").items():
        assert_same(array, arrays[name])
    (tmp_path / "b").write_bytes(safetensors.numpy.save(arrays, metadata={"format": "pt"}))
    assert read_arrays(tmp_path / "b").keys() == arrays.keys()


def test_the_checksums_are_metadata_and_any_reader_of_the_format_reads_the_file(tmp_path: Path) -> None:
    arrays = {"b": bits((2, 3), np.float32), "a": bits((4,), np.int16)}
    write_arrays(tmp_path / "a", arrays)
    plain = safetensors.numpy.load_file(tmp_path / "a")
    for name, array in arrays.items():
        assert_same(plain[name], array)
    assert check_arrays(tmp_path / "a") == ([], True)


def test_arrays_that_were_exchanged_or_taken_away_are_missed(tmp_path: Path) -> None:
    arrays = {"b": bits((2,), np.float32), "a": bits((2,), np.float32) + 1}
    with safetensors.safe_open(_written(tmp_path, arrays), "np") as file:
        metadata = file.metadata()
    for others in ({"a": arrays["b"], "b": arrays["a"]}, {"a": arrays["a"]}):
        (tmp_path / "a").write_bytes(safetensors.numpy.save(others, metadata=metadata))
        with pytest.raises(RunFormatError, match="CRC-32 does not match"):
            read_arrays(tmp_path / "a")


def _written(directory: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    write_arrays(directory / "a", arrays)
    return str(directory / "a")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunFormatError):
        read_arrays(path)
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors"):
        read_arrays(tmp_path / "a.safetensors")


def test_a_whole_file_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from noether_core.emit.files import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for path in map(Path, sys.argv[1:]):
    try:
        write_whole(path, b"new" * 100_000)
    except OSError as error:
        print(error.errno)
"""


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    old, absent = tmp_path / "old", tmp_path / "absent"
    old.write_bytes(b"before")
    command = [sys.executable, "-c", FULL_DISK, str(old), str(absent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 2, done.stdout + done.stderr
    assert old.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [old]
