"""Save and load named arrays as safetensors: https://github.com/huggingface/safetensors (no code in the file, no pickle)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors.numpy

from noether_core.emit.array_header import (
    DTYPES,
    MOST_HEADER,
    NAMES,
    Header,
    Place,
    array_crc,
    checksums_of,
    header_crc,
    read_header,
)
from noether_core.emit.escapes import escaped_name, name_of
from noether_core.emit.files import write_whole
from noether_core.errors import NoetherError, RunFormatError, listing
from noether_core.regular_files import open_regular

MOST_BYTES = 2**34  # of a file
_CHUNK = 2**24


def encode_arrays(arrays: Mapping[str, np.ndarray[Any, Any]], most_header: int = MOST_HEADER) -> bytes:
    """Return arrays as the bytes of a safetensors file with checksums; equal arrays give equal bytes.

    For names see `escaped_name`; those of all arrays, with their dtypes and shapes, take at most `most_header` bytes.

    Raises:
        NoetherError: for a dtype that the format cannot hold, or too many long names.
    """
    try:
        plain = {escaped_name(name): _plain(array) for name, array in sorted(arrays.items())}
        data = safetensors.numpy.save(plain, metadata=checksums_of(plain))
        if (length := int.from_bytes(data[:8], "little")) > most_header:
            raise ValueError(f"the names of {len(arrays)} arrays take {length} bytes, of at most {most_header}")
        return data
    except Exception as error:
        dtypes = listing(f"{name:.200}: {array.dtype}" for name, array in arrays.items())
        raise NoetherError(f"cannot save the arrays {dtypes} as safetensors: {error}; convert them first") from error


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array in C order, its numbers little-endian; raises `TypeError` for a dtype that the format lacks."""
    dtype = array.dtype.newbyteorder("<")
    if dtype not in NAMES:
        raise TypeError(f"the format has no dtype {dtype}")
    return np.asarray(array, dtype, order="C")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], most_header: int = MOST_HEADER) -> None:
    """Write arrays to a safetensors file that appears whole or not at all."""
    write_whole(path, encode_arrays(arrays, most_header))


def encode_savable(arrays: Mapping[str, np.ndarray[Any, Any]]) -> tuple[bytes, NoetherError | None]:
    """Return the bytes of a file of all arrays that the format can hold, and the error of the first that it cannot."""
    try:
        return encode_arrays(arrays), None
    except NoetherError:
        errors: dict[str, NoetherError] = {}
        for name, array in arrays.items():
            try:
                encode_arrays({name: array})
            except NoetherError as error:
                errors[name] = error
        savable = {name: array for name, array in arrays.items() if name not in errors}
        return encode_arrays(savable), next(iter(errors.values()), None)


def write_savable(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> NoetherError | None:
    """Write all arrays that the format can hold; return the error of the first that it cannot."""
    data, error = encode_savable(arrays)
    write_whole(path, data)
    return error


def read_arrays(
    path: Path, problems: list[str] | None = None, *, root: Path | None = None, most_header: int = MOST_HEADER
) -> dict[str, np.ndarray[Any, Any]]:
    """Read every array of a safetensors file that we wrote.

    Args:
        path: the file.
        problems: gets a sentence for each array that is damaged, and the others are returned; None: damage is raised.
        root: the run directory, below which no link is followed; None: the file may be anywhere.
        most_header: how many bytes its header may have.

    Raises:
        RunFormatError: for a file that is not one, holds a dtype unknown here, or is damaged.
        OSError: if it cannot be read.
    """
    found: list[str] = []
    with opened(path, root) as file:
        header = read_header(file, most_header)
        data = {place.name: read_bytes(file, place.begin, place.end) for place in header.places}
        intact = _intact(path, header, {name: [each] for name, each in data.items()}, found)
    if found and problems is None:
        raise RunFormatError(
            f"{found[0]}{f' (and {len(found) - 1} more problems)' * (len(found) > 1)}; restore it from a copy"
        )
    if problems is not None:
        problems += found
    return {name_of(place.name): data[place.name].view(DTYPES[place.dtype]).reshape(place.shape) for place in intact}


def check_arrays(path: Path, root: Path | None = None) -> tuple[list[str], bool]:
    """Read a file as `read_arrays` does, a part at a time; return its problems, and whether it has checksums."""
    problems: list[str] = []
    with opened(path, root) as file:
        header = read_header(file)
        _intact(path, header, {place.name: parts_of(file, place) for place in header.places}, problems)
        return problems, bool(problems) or header.checksums is not None


def _intact(
    path: Path, header: Header, data: Mapping[str, Iterable[np.ndarray[Any, Any]]], problems: list[str]
) -> list[Place]:
    """Return the arrays that are as they were written; of the others there are sentences."""
    try:
        checksums = header.checksums
    except ValueError as error:
        checksums = [""]
        problems.append(f"{path}: {error}")
    if checksums is None:
        return header.places
    known = set(checksums[1:])
    intact = []
    for place in header.places:
        if array_crc(place.name, place.dtype, place.shape, data[place.name]) in known:
            intact.append(place)
        else:
            what = f"the array {place.name!r:.200} is damaged: its CRC-32 does not match"
            problems.append(f"{path}, byte {place.begin}: {what}")
    if not problems and (len(header.places) != len(checksums) - 1 or checksums[0] != _header_crc(header)):
        problems.append(f"{path}, byte 8: its header is damaged, or arrays are missing: its CRC-32 does not match")
    return intact


def _header_crc(header: Header) -> str:
    return header_crc(place[:3] for place in header.places)


def read_bytes(file: BinaryIO, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Return a stretch of a file, uint8; raises `ValueError` where it has ended."""
    data = np.empty(end - begin, np.uint8)
    file.seek(begin)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise ValueError(f"it ends before byte {end}")
    return data


def parts_of(file: BinaryIO, place: Place) -> Iterator[np.ndarray[Any, Any]]:
    """Yield an array's bytes, a part at a time, so that no memory is needed for the whole."""
    for begin in range(place.begin, place.end, _CHUNK):
        yield read_bytes(file, begin, min(begin + _CHUNK, place.end))


class ArrayHeader(NamedTuple):
    """Say what an array in a file is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return how many bytes it has."""
        return prod(self.shape) * self.dtype.itemsize


def read_headers(path: Path, root: Path | None = None) -> dict[str, ArrayHeader]:
    """Read what the arrays of a safetensors file are, but not the arrays; raises what `read_arrays` does."""
    with opened(path, root) as file:
        header, _ = checked_header(file)
    return {name_of(place.name): ArrayHeader(DTYPES[place.dtype], place.shape) for place in header.places}


def checked_header(file: BinaryIO) -> tuple[Header, list[str] | None]:
    """Return a file's header, compared with its checksum, and the checksums of its arrays, if it has any.

    Raises:
        ValueError: for one that is damaged.
    """
    header = read_header(file)
    checksums = header.checksums
    if checksums is not None and checksums[0] != _header_crc(header):
        raise ValueError("byte 8: its header is damaged: its CRC-32 does not match")
    return header, None if checksums is None else checksums[1:]


@contextlib.contextmanager
def opened(path: Path, root: Path | None) -> Iterator[BinaryIO]:
    """Open a file of arrays; what is then found wrong with it, a `ValueError`, or no memory for it, names it."""
    try:
        with open_regular(path, root) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise ValueError(f"it has {size:,} bytes; at most {MOST_BYTES:,} are read")
            yield file
    except (ValueError, MemoryError) as error:
        if isinstance(error, RunFormatError):
            raise
        raise RunFormatError(
            f"{path} is not a readable safetensors file ({error!s:.300}); restore it from a copy"
        ) from error
