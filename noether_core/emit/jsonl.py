"""Write and read lines of strict JSON (RFC 8259), each with its CRC-32.

A line is one JSON object whose last member is `crc32`, the CRC-32 (RFC 1952) of the bytes before that member's comma.
NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity"; a text that is one of these is written
otherwise (`noether_core.emit.escapes`).
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from noether_core.emit.escapes import escaped_text
from noether_core.emit.lines import MOST_DEPTH, MOST_LINE
from noether_core.emit.lines import decode_line as decode_line  # what is written here is read there
from noether_core.emit.lines import iter_lines as iter_lines
from noether_core.schedule import UNITS

_ALIKE = frozenset({int, bool, type(None)})  # types that orjson writes as `json` does, if at all
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")  # of a start, as we write it


def encode_line(entry: Mapping[str, Any]) -> bytes:
    r"""Return an entry as one line: the bytes of Python's `json`, in ASCII, without spaces.

    `orjson` writes a float between 1e-4 and 1e16 as Python does; what it writes otherwise, or not at all, `json` does.

    >>> encode_line({"update": 3, "loss/U1": float("inf")})
    b'{"update":3,"loss/U1":"Infinity","crc32":"e842e18a"}\n'
    """
    others = {
        key: orjson.Fragment(_exact(value))
        for key, value in entry.items()
        if (not 1e-4 <= abs(value) < 1e16 if type(value) is float else type(value) not in _ALIKE)
    }
    try:
        body = orjson.dumps({**entry, **others})[:-1]
        is_exact = body.isascii() and b"\x7f" not in body
    except orjson.JSONEncodeError:  # an int beyond 64 bits, half of a surrogate pair
        is_exact = False
    if not is_exact:
        body = _exact(entry, -1)[:-1].encode("ascii")
    return b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def encode_entry(entry: Mapping[str, Any]) -> bytes:
    """Return an entry of the log as one line; as several of its update where one would be longer than is read."""
    line = encode_line(entry)
    if len(line) <= MOST_LINE:
        return line
    counts: dict[str, Any] = {unit: entry[unit] for unit in UNITS}
    values = [each for each in entry.items() if each[0] not in counts]
    if len(values) < 2:
        return line
    half = len(values) // 2
    return b"".join(encode_entry({**counts, **dict(part)}) for part in (values[:half], values[half:]))


def _exact(value: Any, depth: int = 0) -> str:
    if type(value) is float and math.isfinite(value):
        return repr(value)  # as `json` does, only faster
    return json.dumps(plain(value, depth), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as strict JSON can hold it; raises `ValueError` for one that is nested too deep."""
    if depth >= MOST_DEPTH and isinstance(value, Mapping | list | tuple):
        raise ValueError(f"lists and dicts are nested more than {MOST_DEPTH} deep")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return escaped_text(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    return value


def numbered_files(directory: Path) -> list[Path]:
    """Return a directory's files `<n>.jsonl`, by number."""
    found = [path for path in directory.glob("*.jsonl") if _NUMBER.fullmatch(path.stem)]
    return sorted(found, key=lambda path: int(path.stem))


def start_numbers(directory: Path) -> list[int]:
    """Return the numbers of the process starts that have files in a directory: `<n>.jsonl`, or what lies beside that."""
    stems = {path.name.partition(".")[0] for path in directory.glob("*.jsonl")}
    return sorted(int(stem) for stem in stems if _NUMBER.fullmatch(stem))


class LineFile:
    """Append lines to a new file; each is handed to the operating system whole, so a killed process loses none.

    The file is made at the first line: the next free number, so that no two process starts share one.

    Args:
        directory: where the file goes.
        suffix: what follows its number.

    Attributes:
        path: the file; None before the first line, or to be the name of the file that is then made.
        torn: how many of its lines were not written whole, and so are damaged.
    """

    def __init__(self, directory: Path, suffix: str = ".jsonl") -> None:
        self._directory = directory
        self._suffix = suffix
        self._descriptor: int | None = None
        self._newest = b""  # the line that was written last
        self._is_torn = False
        self.path: Path | None = None
        self.torn = 0

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry.

        Raises:
            OSError: if it is not written whole; the next entry then starts a line of its own, so it may be given again.
        """
        self._write(encode_entry(entry))

    def append_once(self, entry: Mapping[str, Any]) -> None:
        """Write one entry, unless it was the last to be written: a caller who was interrupted cannot know that."""
        line = encode_entry(entry)
        if self._newest != line:
            self._write(line)

    def _write(self, line: bytes) -> None:
        descriptor = self.open()
        before = b"\n" if self._is_torn else b""
        written, self._newest = os.write(descriptor, before + line) - len(before), line
        self._is_torn = written < len(line)
        if self._is_torn:
            self._newest = b""
            self.torn += 1
            raise OSError(f"wrote {written} of {len(line)} bytes to {self.path}: is the disk full?")

    def open(self) -> int:
        """Make the file, if that was not done yet; return its descriptor."""
        if self._descriptor is None:
            self._descriptor = self._create(self.path) if self.path else self._create_next()
        return self._descriptor

    def _create_next(self) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        number = max(start_numbers(self._directory), default=0) + 1
        self.path = self._directory / f"{number}{self._suffix}"
        try:
            return self._create(self.path)
        except FileExistsError:  # another process took the number
            return self._create_next()

    @staticmethod
    def _create(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def close(self) -> None:
        """Make the lines durable and close the file."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
