"""Read arrays of a safetensors file one at a time, or some rows of one, so that files larger than memory can be read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from noether_core.emit.array_header import DTYPES, Place, array_crc
from noether_core.emit.arrays import ArrayHeader, checked_header, opened, parts_of, read_bytes
from noether_core.emit.escapes import name_of
from noether_core.errors import RunFormatError

Array = np.ndarray[Any, Any]


class ArrayReader:
    """Read a file that we wrote; what it holds is read at the first look, and kept.

    What its header says is believed only as far as the file has the bytes for it.

    Args:
        path: the file.
        root: the run directory, below which no link is followed; None: the file may be anywhere.

    Raises (from every method):
        RunFormatError: for a file that is not one, or is damaged.
        OSError: if it cannot be read.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self._root = path, root

    @cached_property
    def _header(self) -> tuple[Mapping[str, Place], frozenset[str] | None]:
        with opened(self.path, self._root) as file:
            header, checksums = checked_header(file)
        known = None if checksums is None else frozenset(checksums)
        return {name_of(place.name): place for place in header.places}, known

    @cached_property
    def headers(self) -> Mapping[str, ArrayHeader]:
        """Return the arrays' dtypes and shapes by name."""
        found = {name: ArrayHeader(DTYPES[place.dtype], place.shape) for name, place in self._header[0].items()}
        return MappingProxyType(found)

    def begin(self, name: str) -> int:
        """Return at which byte of the file an array begins; raises `KeyError` if there is none of that name."""
        return self._header[0][name].begin

    def read(self, name: str) -> Array:
        """Return an array, and compare its checksum; raises `KeyError` if there is none of that name."""
        place = self._header[0][name]
        with opened(self.path, self._root) as file:
            data = read_bytes(file, place.begin, place.end)
            self._compare(place, array_crc(place.name, place.dtype, place.shape, [data]))
            return data.view(DTYPES[place.dtype]).reshape(place.shape)

    def check(self, name: str) -> None:
        """Compare an array's checksum, a part of the array at a time; raises `KeyError` if there is none of that name."""
        place = self._header[0][name]
        with opened(self.path, self._root) as file:
            self._compare(place, array_crc(place.name, place.dtype, place.shape, parts_of(file, place)))

    def _compare(self, place: Place, crc: str) -> None:
        checksums = self._header[1]
        if checksums is not None and crc not in checksums:
            what = f"the array {place.name!r:.200} is damaged: its CRC-32 does not match"
            raise RunFormatError(f"{self.path}, byte {place.begin}: {what}; restore it from a copy")

    def rows(self, name: str, first: int, last: int) -> Array:
        """Return what an array has from one place of its first axis to before another, without a look at its checksum."""
        place = self._header[0][name]
        dtype, (length, *shape) = DTYPES[place.dtype], place.shape
        size = (place.end - place.begin) // max(1, length)
        with opened(self.path, self._root) as file:
            data = read_bytes(file, place.begin + first * size, place.begin + last * size)
            return data.view(dtype).reshape(last - first, *shape)
