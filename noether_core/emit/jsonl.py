"""Write and read lines of strict JSON (RFC 8259), each with its CRC-32.

A line is one JSON object whose last member is `crc32`, the CRC-32 (RFC 1952) of the bytes before that member's comma.
NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from noether_core.errors import RunFormatError

_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode_line(entry: Mapping[str, Any]) -> bytes:
    r"""Return an entry as one line.

    >>> encode_line({"update": 3, "loss/U1": float("inf")})
    b'{"update":3,"loss/U1":"Infinity","crc32":"e842e18a"}\n'
    """
    body = json.dumps(_strict(entry), ensure_ascii=True, allow_nan=False, separators=(",", ":"))[:-1].encode("ascii")
    return b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(name): _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def decode_line(line: bytes) -> dict[str, Any]:
    """Return the entry of a line, without its CRC.

    Raises:
        RunFormatError: if the line is torn or changed.
    """
    body, found, tail = line.rpartition(b',"crc32":"')
    if not found or tail != b'%08x"}\n' % zlib.crc32(body):
        raise RunFormatError("the line is torn or damaged: its CRC-32 does not match")
    entry: dict[str, Any] = json.loads(body + b"}")
    return {name: _named(value) for name, value in entry.items()}


def _named(value: Any) -> Any:
    if isinstance(value, str):
        return _NAMES.get(value, value)
    if isinstance(value, dict):
        return {name: _named(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    return value


class Lines(NamedTuple):
    """Hold the whole lines of a file, and a sentence for each that is damaged."""

    entries: list[dict[str, Any]]
    problems: list[str]


def read_lines(path: Path) -> Lines:
    """Read every intact line of a file; a torn or damaged one is named with its offset and left out."""
    lines = Lines([], [])
    offset = 0
    try:
        content = path.read_bytes()
    except OSError as error:
        lines.problems.append(f"{path}: {error}")
        return lines
    for line in content.splitlines(keepends=True):
        try:
            lines.entries.append(decode_line(line))
        except RunFormatError as error:
            lines.problems.append(f"{path}, byte {offset}: {error}")
        offset += len(line)
    return lines


class LineFile:
    """Append lines to a new file; each is handed to the operating system whole, so a killed process loses none.

    The file is made at the first line: the next free number, so that no two process starts share one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor: int | None = None
        self._is_torn = False
        self.path: Path | None = None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry.

        Raises:
            OSError: if it is not written whole; the next entry then starts a line of its own, so it may be given again.
        """
        line = encode_line(entry)
        if self._descriptor is None:
            self._descriptor = self._open()
        if self._is_torn:
            line = b"\n" + line
        written = os.write(self._descriptor, line)
        self._is_torn = written < len(line)
        if self._is_torn:
            raise OSError(f"wrote {written} of {len(line)} bytes to {self.path}: is the disk full?")

    def _open(self) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in self._directory.glob("*.jsonl") if path.stem.isdecimal()), default=0)
        while True:
            number += 1
            self.path = self._directory / f"{number}.jsonl"
            try:
                return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            except FileExistsError:
                continue  # another process took the number

    def close(self) -> None:
        """Make the lines durable and close the file."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
