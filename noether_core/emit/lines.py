"""Read lines of JSON with their CRCs, as `noether_core.emit.jsonl` writes them, from a file that anything may have happened to.

Nothing here takes more memory than the longest line that is read, or more time than the file's length asks for.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from noether_core.emit.escapes import text_or_float
from noether_core.errors import RunFormatError
from noether_core.regular_files import open_regular
from noether_core.schedule import UNITS

_WIDE = 2.0**63  # from here on orjson may have made a float of an int
MOST_LINE = 2**22  # bytes of a line that is read
MOST_DEPTH = 100  # lists and dicts around a value
MOST_DIGITS = 4300  # of an int, as Python reads them
_CHUNK = 2**16
_MOST_TRIES = 4
_MOST_COUNT = 2**63
_MOST_NAME = 1024  # characters of a file's name in a run directory
_NO_NAMES = frozenset({"", ".", ".."})  # of what is in a directory
_TORN = "the line is torn or damaged: its CRC-32 does not match"
_TAIL = re.compile(rb',"crc32":"[0-9a-f]{8}"\}')
_OBJECT = re.compile(rb'(?<![:,\[])\{"')
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (MOST_DIGITS + 1))


def decode_line(line: bytes) -> dict[str, Any]:
    """Return the entry of a line, without its CRC.

    Raises:
        RunFormatError: if the line is torn or changed, or holds what no writer of ours writes.
    """
    found = _decoded(line[:-1]) if line.endswith(b"\n") else _TORN
    if isinstance(found, str):
        raise RunFormatError(found)
    return found


def _decoded(line: bytes) -> dict[str, Any] | str:
    """Return the entry of a line without its end, or what is wrong with it."""
    body, found, tail = line.rpartition(b',"crc32":"')
    if not found or tail != b'%08x"}' % zlib.crc32(body):
        return _TORN
    try:
        entry: dict[str, Any] = orjson.loads(body + b"}")
        if _is_plain(entry):
            return entry
        return {
            name: value
            if type(value) is int or (type(value) is float and -_WIDE < value < _WIDE)
            else _named(value, _WIDE)
            for name, value in entry.items()
        }
    except (orjson.JSONDecodeError, OverflowError, RecursionError):
        return _decoded_exactly(body + b"}")


def _is_plain(entry: dict[str, Any]) -> bool:
    """Say whether an entry has nothing but numbers, none of which is large: none is larger than their Euclidean norm.

    That is one call, for most entries; to look at one value after the other takes longer than to parse them.
    """
    try:
        return math.hypot(*entry.values()) < _WIDE / 2
    except TypeError:  # of another value than a number
        return False


def _decoded_exactly(document: bytes) -> dict[str, Any] | str:
    """Return what the standard library, which knows ints of any size, makes of a document, or what is wrong with it."""
    if _LONG_NUMBER.search(document):
        return f"the line is no entry: it has a number of more than {MOST_DIGITS} digits"
    try:
        return {name: _named(value) for name, value in json.loads(document).items()}
    except RecursionError:
        return f"the line is no entry: it has values nested more than {MOST_DEPTH} deep"
    except ValueError as error:
        return f"the line is no entry: {error!s:.80}"


def _named(value: Any, most: float | None = None, depth: int = 0) -> Any:
    """Return a value with the names of floats made floats; raise for a float from `most` on."""
    if isinstance(value, str):
        return text_or_float(value)
    if depth > MOST_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        return {name: _named(item, most, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        wide = -math.inf if depth == MOST_DEPTH else math.inf if most is None else most
        return [
            item if type(item) in (int, float) and -wide < item < wide else _named(item, most, depth + 1)
            for item in value
        ]
    if most is not None and type(value) is float and abs(value) >= most:
        raise OverflowError("this may have been an int beyond 64 bits")
    return value


Check = Callable[[dict[str, Any]], str | None]


def iter_lines(path: Path, problems: list[str], check: Check | None = None) -> Iterator[dict[str, Any]]:
    """Yield the entry of every intact line of a file; little more than a line is in memory.

    A line that is torn or damaged costs no other, also where its end is gone.

    Args:
        path: the file, which is no link; it may be written meanwhile.
        problems: gets a sentence, with the offset, for each torn or damaged line, which is left out.
        check: says what is wrong with an entry, which is then left out likewise; None if nothing is.

    Raises:
        OSError: if the file cannot be read.
        RunFormatError: if it is no regular file.
    """
    with open_regular(path, path.parent) as file:
        for offset, lines, wrong in _runs(file):
            if wrong:
                problems.append(f"{path}, byte {offset}: {wrong}")
            for line in lines:
                found = _decoded(line)
                begin = offset
                if found is _TORN and (begins := _begins(line)):
                    problems.extend(f"{path}, byte {offset + at}: {_TORN}" for at in (0, *begins[:-1]))
                    begin += begins[-1]
                    found = _decoded(line[begins[-1] :])
                if type(found) is dict:
                    if check is None or (wrong := check(found)) is None:
                        yield found
                    else:
                        found = wrong
                if type(found) is str:
                    problems.append(f"{path}, byte {begin}: {found}")
                offset += len(line) + 1


def lines_there(path: Path, problems: list[str], check: Check) -> Iterator[dict[str, Any]]:
    """Yield as `iter_lines` does, and nothing where there is no such file; one that cannot be read is a problem."""
    try:
        yield from iter_lines(path, problems, check)
    except FileNotFoundError:
        return
    except RunFormatError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{path}: {error}")


def _runs(file: BinaryIO) -> Iterator[tuple[int, list[bytes], str | None]]:
    """Yield the offset of lines in a row and what is before each newline, or nothing and what is wrong there."""
    offset, rest = 0, b""
    while data := file.read(max(_CHUNK, len(rest))):
        *lines, rest = (rest + data).split(b"\n")
        for is_full, group in ((True, lines),) if all(lines) else groupby(lines, bool):
            run = list(group)
            yield (offset, run, None) if is_full else (offset, [], f"{len(run)} empty lines")
            offset += sum(map(len, run)) + len(run)
        if len(rest) > MOST_LINE:
            yield offset, [], f"the line has more than {MOST_LINE:,} bytes"
            _skip_line(file)
            offset, rest = file.tell(), b""
    if rest:
        yield offset, [], _TORN  # the end as it was then: a writer may have gone on since


def _skip_line(file: BinaryIO) -> None:
    """Go to what follows the next newline, over holes in the file too."""
    while data := file.read(2**20):
        _, newline, rest = data.partition(b"\n")
        if newline:
            file.seek(-len(rest), os.SEEK_CUR)
            return
        if not data.strip(b"\0"):
            try:
                file.seek(os.lseek(file.fileno(), file.tell(), os.SEEK_DATA))
            except OSError:  # no data follows
                file.seek(0, os.SEEK_END)


def _begins(stretch: bytes) -> list[int]:
    """Return where other lines begin in a damaged one, the last of which checks if any does; empty if none can.

    One begins a byte, which was a newline, after what ends a line; or where `{"` is no value in a line.
    """
    begins = [found.end() + 1 for found in _TAIL.finditer(stretch)][:-1]
    after = begins[-1] if begins else 0
    if begins and not isinstance(_decoded(stretch[after:]), str):
        return begins
    objects = deque((found.start() for found in _OBJECT.finditer(stretch, after + 1)), _MOST_TRIES)
    whole = next((at for at in objects if not isinstance(_decoded(stretch[at:]), str)), None)
    return begins if whole is None else [*begins, whole]


def entry_problem(entry: Mapping[str, Any]) -> str | None:
    """Say what keeps a line from being an entry of the log; None if nothing does."""
    epoch: Any = entry.get("epoch")
    update: Any = entry.get("update")
    sample: Any = entry.get("sample")
    is_typed = type(epoch) is type(update) is type(sample) is int
    if is_typed and 0 <= epoch < _MOST_COUNT and 0 <= update < _MOST_COUNT and 0 <= sample < _MOST_COUNT:
        return None
    counts = {unit: entry.get(unit) for unit in UNITS}
    return f"its counts are {counts!r:.120}; expected three ints of at least 0 and at most 64 bits"


def merged_problem(line: Mapping[str, Any]) -> str | None:
    """Say what keeps a line from being one of a merged log: an entry, or the name of an array file."""
    if "arrays" in line:
        return beside_problem(line)
    inner = line.get("provisional")
    return entry_problem(inner if isinstance(inner, dict) and "update" not in line else line)


def beside_problem(line: Mapping[str, Any]) -> str | None:
    """Say what keeps a line from being one that lies beside entries: when these were written, or an array file's name."""
    name = line.get("arrays", "update_outputs/file")
    if (
        not isinstance(name, str)
        or not name.startswith("update_outputs/")
        or not _NO_NAMES.isdisjoint(name.split("/"))
        or len(name) > _MOST_NAME
    ):
        return f"it names the array file {name!r:.80}; expected one in update_outputs"
    times = line.get("times", [])
    if not isinstance(times, list) or not all(map(_is_time, times)):
        return f"its times are {times!r:.80}; expected pairs of an update and seconds"
    if type(line.get("since", 0)) is not int:
        return f"its `since` is {line['since']!r:.40}; expected an int"
    return None


def _is_time(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and type(pair[1]) in (int, float)
