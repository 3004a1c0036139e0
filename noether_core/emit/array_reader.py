"""Read arrays of a safetensors file one at a time, or some rows of one, so that files larger than memory can be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from noether_core.emit.array_header import DTYPES, MOST_HEADER, Header, Place, array_crc, header_crc, read_header
from noether_core.emit.arrays import ArrayHeader
from noether_core.emit.escapes import name_of
from noether_core.errors import RunFormatError
from noether_core.regular_files import open_regular

Array = np.ndarray[Any, Any]


class ArrayReader:
    """Read a file that we wrote; what it holds is read at the first look, and kept.

    Args:
        path: the file.
        root: the run directory, below which no link is followed; None: the file may be anywhere.

    Raises (from every method):
        RunFormatError: for a file that is not one, or is damaged.
        OSError: if it cannot be read.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self._root = path, root

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with open_regular(self.path, self._root) as file:
                yield file
        except (ValueError, MemoryError) as error:
            if isinstance(error, RunFormatError):
                raise
            raise RunFormatError(
                f"{self.path} is not a readable safetensors file ({error!s:.300}); restore it from a copy"
            ) from error

    @cached_property
    def _header(self) -> tuple[Mapping[str, Place], frozenset[str] | None]:
        with self._opened() as file:
            header: Header = read_header(file, MOST_HEADER)
            checksums = header.checksums
            if checksums is not None and checksums[0] != header_crc(place[:3] for place in header.places):
                raise ValueError("byte 8: its header is damaged: its CRC-32 does not match")
        known = None if checksums is None else frozenset(checksums[1:])
        return {name_of(place.name): place for place in header.places}, known

    @property
    def headers(self) -> dict[str, ArrayHeader]:
        """Return the arrays' dtypes and shapes by name."""
        return {name: ArrayHeader(DTYPES[place.dtype], place.shape) for name, place in self._header[0].items()}

    def read(self, name: str) -> Array:
        """Return an array, and compare its checksum; raises `KeyError` if there is none of that name."""
        places, checksums = self._header
        place = places[name]
        data = self._bytes(place.begin, place.end - place.begin)
        if checksums is not None and array_crc(place.name, place.dtype, place.shape, [data]) not in checksums:
            what = f"the array {place.name!r:.200} is damaged: its CRC-32 does not match"
            raise RunFormatError(f"{self.path}, byte {place.begin}: {what}; restore it from a copy")
        return data.view(DTYPES[place.dtype]).reshape(place.shape)

    def rows(self, name: str, first: int, last: int) -> Array:
        """Return what an array has from one place of its first axis to before another, without a look at its checksum."""
        place = self._header[0][name]
        dtype, (length, *shape) = DTYPES[place.dtype], place.shape
        size = (place.end - place.begin) // max(1, length)
        return self._bytes(place.begin + first * size, (last - first) * size).view(dtype).reshape(last - first, *shape)

    def _bytes(self, begin: int, count: int) -> Array:
        data = np.empty(count, np.uint8)
        with self._opened() as file:
            file.seek(begin)
            if file.readinto(data) != count:  # type: ignore[attr-defined]
                raise ValueError(f"it ends before byte {begin + count}")
        return data
