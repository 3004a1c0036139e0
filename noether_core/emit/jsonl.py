"""Write and read lines of strict JSON (RFC 8259), each with its CRC-32.

A line is one JSON object whose last member is `crc32`, the CRC-32 (RFC 1952) of the bytes before that member's comma.
NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity"; a text that is one of these is written
otherwise (`noether_core.emit.escapes`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import zlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from noether_core.emit.escapes import escaped_text
from noether_core.emit.files import make_directory, sync_directory, write_all
from noether_core.emit.lines import MOST_DEPTH, MOST_LINE
from noether_core.emit.lines import decode_line as decode_line  # what is written here is read there
from noether_core.emit.lines import iter_lines as iter_lines
from noether_core.schedule import UNITS

_ALIKE = frozenset({int, bool, type(None)})  # types that orjson writes as `json` does, if at all
_CHUNK = 2**20  # bytes
NUMBER = re.compile("0|[1-9][0-9]{0,17}")  # of a start, as we write it


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


def encode_entry(entry: Mapping[str, Any], within: str | None = None) -> bytes:
    """Return an entry of the log as one line; as several of its update where one would be longer than is read.

    Args:
        entry: the entry.
        within: the name of the member that each line has it as; None: they are its members.
    """
    line = encode_line(entry if within is None else {within: entry})
    if len(line) <= MOST_LINE:
        return line
    counts: dict[str, Any] = {unit: entry[unit] for unit in UNITS}
    values = [each for each in entry.items() if each[0] not in counts]
    if len(values) < 2:
        return line
    half = len(values) // 2
    return b"".join(encode_entry({**counts, **dict(part)}, within) for part in (values[:half], values[half:]))


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
    found = [path for path in directory.glob("*.jsonl") if NUMBER.fullmatch(path.stem)]
    return sorted(found, key=lambda path: int(path.stem))


def start_numbers(directory: Path) -> list[int]:
    """Return the numbers of the process starts that have files in a directory: `<n>.jsonl`, or what lies beside that."""
    stems = {path.name.partition(".")[0] for path in directory.glob("*.jsonl")}
    return sorted(int(stem) for stem in stems if NUMBER.fullmatch(stem))


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

    _descriptor: int | None = None

    def __init__(self, directory: Path, suffix: str = ".jsonl") -> None:
        self._directory = directory
        self._suffix = suffix
        self._size = 0  # what we know to be in the file
        self._begun = 0  # so many bytes of `_line` are at its end
        self._line = b""
        self._may_be_longer = False
        self._is_torn = False
        self._is_listed = False  # in the directory, for good
        self._synced = 0  # so many bytes are on the disk
        self._is_unsure = False  # whether what follows these is still in the operating system's memory
        self.path: Path | None = None
        self.torn = 0

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry; raises as `write`."""
        self.write(deque([encode_line(entry)]))

    def write(self, lines: deque[bytes]) -> None:
        """Write lines, and take out of these what is in the file.

        Raises:
            OSError: if they are not written whole. What is left may be given again, and goes on where the file ends; another
                line then starts a line of its own.
        """
        if not lines:
            return
        descriptor = self.open()
        self._require_there(descriptor)
        if self._begun and lines[0] != self._line:
            self._is_torn = True
        self._end_torn_line(descriptor)
        rest = memoryview(b"".join(lines))[self._begun :]
        while rest:
            try:
                written = os.write(descriptor, rest)
            except OSError:
                self._may_be_longer = True
                raise
            if not written:
                raise OSError(errno.ENOSPC, f"wrote none of {len(rest)} bytes: is the disk full?", str(self.path))
            self._size += written
            rest = rest[written:]
            written += self._begun
            while lines and written >= len(lines[0]):
                written -= len(lines.popleft())
            self._begun, self._line = written, lines[0] if lines else b""

    def _end_torn_line(self, descriptor: int) -> None:
        """End a line of which nobody knows how much is there, or of which the rest will not come."""
        if self._may_be_longer:
            size = os.fstat(descriptor).st_size
            self._is_torn |= size != self._size
            self._size, self._may_be_longer = size, False
        if self._is_torn:
            self._may_be_longer = True
            self._size += os.write(descriptor, b"\n")
            self.torn += 1
            self._begun, self._is_torn, self._may_be_longer = 0, False, False

    def open(self) -> int:
        """Make the file, if that was not done yet; return its descriptor."""
        if self._descriptor is None:
            self._descriptor = self._create(self.path) if self.path else self._create_next()
        return self._descriptor

    def _create_next(self) -> int:
        make_directory(self._directory)
        number = max(start_numbers(self._directory), default=0) + 1
        path = self._directory / f"{number}{self._suffix}"
        try:
            descriptor = self._create(path)
        except FileExistsError:  # another process took the number
            return self._create_next()
        self.path = path
        return descriptor

    @staticmethod
    def _create(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    @property
    def is_gone(self) -> bool:
        """Tell whether the file was removed for good: it is in no directory any more, and none is in its place."""
        if self._descriptor is None or self.path is None:
            return False
        return os.fstat(self._descriptor).st_nlink == 0 and not os.path.lexists(self.path)

    def forget(self) -> None:
        """Close the file without more ado, for it is gone."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def sync(self) -> None:
        """Make the lines durable; of a file that is gone there is nothing to make so.

        After an fsync that failed, Linux takes what it could not write as written, so that the next one would succeed with
        nothing on the disk (https://wiki.postgresql.org/wiki/Fsync_Errors): those bytes are first written again.
        """
        if self._descriptor is None or self.path is None or self.is_gone:
            return
        self._require_there(self._descriptor)
        if self._is_unsure:
            self._write_again(self.path)
        self._is_unsure = True
        os.fsync(self._descriptor)
        self._synced, self._is_unsure = self._size, False
        if not self._is_listed:
            sync_directory(self.path.parent)
            self._is_listed = True

    def _require_there(self, descriptor: int) -> None:
        """Raise an OSError where what is written would be lost: the file, or a directory that it is in, was taken away."""
        assert self.path is not None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                return
        raise FileNotFoundError(errno.ENOENT, "removed or replaced while it was written; put it back", str(self.path))

    def _write_again(self, path: Path) -> None:
        with path.open("r+b", buffering=0) as file:
            file.seek(self._synced)
            while data := file.read(_CHUNK):
                file.seek(-len(data), os.SEEK_CUR)
                write_all(file.fileno(), data, path)

    def __del__(self) -> None:
        if self._descriptor is not None:  # of a run that nobody ended
            with contextlib.suppress(OSError):
                os.close(self._descriptor)

    def close(self) -> None:
        """Make the lines durable and close the file."""
        self.sync()
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)
