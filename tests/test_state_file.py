"""States on disk: what comes back is what went in, to the bit, or an error that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from noether_core.emit import state_file
from noether_core.emit.state_file import decode_state, encode_state, read_state, write_state
from noether_core.errors import NoetherError, RunFormatError
from noether_core.reduce.state import pack, unpack

NAMES = [
    "",
    "/",
    "a/b",
    "..",
    "\0",
    "😀",
    "__metadata__",
    "list",
    "array",
    '"',
    "\\",
    "\n",
    "\ud800",
    "x" * 5000,
    "crc32",
    "0",
    "ß\u202e",
]
DTYPES = [
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
]


def drawn(rng: np.random.Generator, depth: int = 3) -> Any:
    kind = rng.integers(9 if depth else 7)
    if kind == 0:
        shape = tuple(rng.integers(0, 4, rng.integers(0, 4)))
        dtype = np.dtype(DTYPES[rng.integers(len(DTYPES))])
        array = np.frombuffer(rng.bytes(int(np.prod(shape, dtype=int)) * dtype.itemsize), dtype).reshape(shape)
        return np.asarray(array.view(np.uint8) > 127) if dtype.kind == "b" else array
    if kind == 1:
        return int(rng.integers(-(2**62), 2**62)) * 2 ** int(rng.choice([0, 100]))
    if kind == 2:
        return float(rng.choice([0.1, -0.0, np.nan, np.inf, -np.inf, 5e-324, rng.normal()]))
    if kind < 7:
        return [None, True, False, NAMES[rng.integers(len(NAMES))]][kind - 3]
    if kind == 7:
        return [drawn(rng, depth - 1) for _ in range(rng.integers(0, 4))]
    return dict_of(rng, depth - 1)


def dict_of(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    return {NAMES[rng.integers(len(NAMES))]: drawn(rng, depth) for _ in range(rng.integers(0, 6))}


def shown(value: Any) -> Any:
    """Return what two values are equal by, to the bit; a dict's order counts."""
    if isinstance(value, dict):
        return [(name, shown(each)) for name, each in value.items()]
    if isinstance(value, list):
        return list(map(shown, value))
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.tobytes()
    return type(value), repr(value)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(10))
def test_any_state_comes_back_to_the_bit(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(30):
        state = dict_of(rng, 4)
        write_state(tmp_path / "a" / "state", state)
        assert shown(read_state(tmp_path / "a" / "state")) == shown(state)
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["state"]


def state_of_all_kinds() -> dict[str, Any]:
    from test_merged_positions import accumulator

    several = accumulator()
    for step in range(3):
        several.add(("a/b", "😀\0"), (np.float32(step / 3), np.asarray([step, 0.1], ml_dtypes.bfloat16)), 1, step)
    callbacks = {"0:x": pack(several.partials()) | {"matched": ["a", ""], "best": None}}
    return {"iteration": {"epoch": 0, "update": 3, "sample": 7}, "accumulated": 1, "start": "", "callbacks": callbacks}


def test_ten_thousand_damages_are_refused_and_none_gives_a_wrong_value(tmp_path: Path) -> None:
    state = state_of_all_kinds()
    data, wanted = encode_state(state), shown(state)
    rng = np.random.default_rng(0)
    intact, messages = 0, []
    for number in range(10_000):
        damaged = bytearray(data)
        if number % 4 == 3:
            del damaged[rng.integers(len(data)) :]
        for _ in range(rng.integers(0, 3) if number % 4 == 3 else 1 + number % 4 * 2):
            if damaged:
                damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        try:
            found = decode_state(bytes(damaged), "here")
        except RunFormatError as error:
            messages.append(str(error))
        else:  # two flips of one bit, or none
            assert shown(found) == wanted
            intact += 1
    assert all(text.startswith("here is no intact state") and "restore it from a copy" in text for text in messages)
    assert intact < 20


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 8, b"\xff" * 100, b"8\0\0\0\0\0\0\0{}", safetensors.numpy.save({"a": np.zeros(2)})]
)
def test_what_is_no_state_is_refused_by_its_path(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(data)
    with pytest.raises(RunFormatError, match=r"state is no intact state .* give another one"):
        read_state(path)


def test_what_cannot_be_read_is_refused_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunFormatError, match=f"{path.name} cannot be read .* give what save_state wrote"):
            read_state(path)
    write_state(tmp_path / "large", {"a": np.zeros(100)})
    monkeypatch.setattr(state_file, "MOST_BYTES", 500)
    with pytest.raises(RunFormatError, match=r"large has .* bytes, a state at most 500"):
        read_state(tmp_path / "large")
    with pytest.raises(NoetherError, match="bytes, more than the 500"):
        write_state(tmp_path / "large", {"a": np.zeros(100)})


def test_a_structure_that_names_no_array_is_refused() -> None:
    for structure in (
        '{"a":["array",0]}',
        '{"a":["other",0]}',
        '{"a":[]}',
        "3",
        '{"a":["array","0"]}',
        '{"a":' * 10_000,
    ):
        about = {"format": "noether state 1", "structure": structure, "crc32": state_file._crc(structure, [])}
        with pytest.raises(RunFormatError, match="is no intact state"):
            decode_state(safetensors.numpy.save({}, metadata=about), "here")


def test_tensors_and_device_arrays_are_copied_to_the_host(tmp_path: Path) -> None:
    held = [
        torch.arange(3, dtype=torch.uint8),
        torch.zeros((), requires_grad=True),
        jnp.arange(2),
        np.float32(0.1),
        np.arange(2, dtype=">i4"),
    ]
    write_state(tmp_path / "state", {"held": held})
    first, second, third, fourth, fifth = read_state(tmp_path / "state")["held"]
    assert (first.dtype, first.tolist()) == (np.uint8, [0, 1, 2])
    assert (second.dtype, second.shape) == (np.float32, ())
    assert (third.tolist(), fourth, fifth.tolist()) == ([0, 1], float(np.float32(0.1)), [0, 1])
    first[0] = 5  # what is read may be written to


DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [{1: 2}, {3}, 1j, np.array(["a"]), np.array([1j]), np.array([None]), b"a", DEEP, 10**5000, np.complex64(1)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_state_is_not_saved(value: Any, tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match=r"cannot save the state .* give what state_dict"):
        write_state(tmp_path / "state", {"a": value})
    assert not list(tmp_path.iterdir())


def test_an_interval_under_way_comes_back_to_the_bit(tmp_path: Path) -> None:
    state = state_of_all_kinds()["callbacks"]["0:x"]
    write_state(tmp_path / "state", state)
    assert shown(pack(unpack(read_state(tmp_path / "state")))) == shown(pack(unpack(state)))
