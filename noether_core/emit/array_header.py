"""Read what a safetensors file says of its arrays, before anything is made of it: https://github.com/huggingface/safetensors.

What other than a file's own bytes could cost memory or time is refused here: a giant header, arrays that overlap, that leave
gaps, or that are larger than the file.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import orjson

MOST_HEADER = 2**25  # bytes
FORMAT_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_KEY, _MARK = "noether", "crc32"  # in the metadata: {"noether": "crc32 <of the header> <of each array> ..."}
_MOST_DIMENSIONS, _MOST_EXTENT = 64, 2**63  # of a NumPy array; bytes, also of an empty one without its axes of size 0


class Place(NamedTuple):
    """Say what an array is, and where its bytes are in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """Hold what a file says of its arrays, by name, and its metadata."""

    places: list[Place]
    metadata: Mapping[str, str]

    @property
    def checksums(self) -> list[str] | None:
        """Return the CRC-32 of the header, and those of the arrays; None if the file was written without.

        Raises:
            ValueError: if they are damaged.
        """
        text = self.metadata.get(_KEY)
        if text is None and not any(value.startswith(_MARK) for value in self.metadata.values()):
            return None
        mark, *found = (text or "").split(" ")
        if mark != _MARK or not found:
            raise ValueError("its checksums are damaged")
        return found


def read_header(file: BinaryIO, most: int = MOST_HEADER) -> Header:
    """Read the header of a file.

    Raises:
        ValueError: for one that is damaged, is of something else, or has more bytes than `most`.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise ValueError(f"it has {size} bytes, and its header should have {length}")
    if length > most:
        raise ValueError(f"its header has {length:,} bytes; at most {most:,} are read")
    try:
        document = orjson.loads(file.read(length))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"byte {8 + error.pos}: its header is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("byte 8: its header is no JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("byte 8: its metadata is not of strings")
    places = [_place(name, entry, 8 + length) for name, entry in document.items()]
    at = 8 + length
    for place in sorted(places, key=lambda place: (place.begin, place.end)):
        if place.begin != at:
            raise ValueError(f"byte {at}: {place.name!r:.80} begins at byte {place.begin}")
        at = place.end
    if at != size:
        raise ValueError(f"it has {size} bytes, and its arrays should end at byte {at}")
    return Header(sorted(places), metadata)


def _place(name: str, entry: Any, origin: int) -> Place:
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"byte 8: of {name!r:.80} its header says {entry!r:.80}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (_are_sizes(shape) and len(shape) <= _MOST_DIMENSIONS and _are_sizes(offsets) and len(offsets) == 2):
        raise ValueError(f"byte 8: {name!r:.80} has the shape {shape!r:.80} and the place {offsets!r:.80}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"byte 8: it holds {name!r:.80} with dtype {dtype!r:.40}; known here: {', '.join(DTYPES)}")
    if prod(size for size in shape if size) * DTYPES[dtype].itemsize >= _MOST_EXTENT:
        raise ValueError(f"byte 8: {name!r:.80} is {dtype} of shape {shape!r:.200}, which no array can have")
    if prod(shape) * DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
        raise ValueError(f"byte 8: {name!r:.80} is {dtype} of shape {shape!r:.200}, in {offsets[1] - offsets[0]} bytes")
    return Place(name, dtype, tuple(shape), origin + offsets[0], origin + offsets[1])


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def header_crc(arrays: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
    """Return the CRC-32 of what arrays are: their names, dtypes and shapes."""
    return f"{_crc([[name, dtype, list(shape)] for name, dtype, shape in sorted(arrays)]):08x}"


def array_crc(name: str, dtype: str, shape: tuple[int, ...], data: Iterable[np.ndarray[Any, Any]]) -> str:
    """Return the CRC-32 of an array: of what it is, and of its bytes, which come in parts."""
    crc = _crc([name, dtype, list(shape)])
    for part in data:
        crc = zlib.crc32(part.data, crc)
    return f"{crc:08x}"


def _crc(value: Any) -> int:
    return zlib.crc32(json.dumps(value, separators=(",", ":")).encode("ascii"))


def checksums_of(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, str]:
    """Return the metadata that holds the CRC-32s of arrays, in C order and of dtypes that the format has."""
    about = [(name, NAMES[array.dtype], array.shape) for name, array in sorted(arrays.items())]
    crcs = [array_crc(*each, [arrays[each[0]].reshape(-1).view(np.uint8)]) for each in about]
    return {_KEY: " ".join((_MARK, header_crc(about), *crcs))}
