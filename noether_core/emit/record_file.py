"""Write a record of named values as JSON that says when it is damaged, and that holds itself once more for then."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noether_core.emit.jsonl import decode_line, encode_line
from noether_core.errors import RunFormatError

_COPY = re.compile(rb'\{"[^\n]*"crc32":"[0-9a-f]{8}"\}')
_MARKS = (b"crc32", b'"copy"')  # of which damage leaves one


def encode_record(record: Mapping[str, Any]) -> bytes:
    r"""Return the file of a record: its values, under `copy` all of them again as a line of a log, and the CRC-32 of all that.

    >>> print(encode_record({"id": "a", "parent": None}).decode("ascii"), end="")
    {
     "id": "a",
     "parent": null,
     "copy": {"id":"a","parent":null,"crc32":"7ff420ea"},
     "crc32": "38cc46fe"
    }
    """
    copy = encode_line(record)[:-1]
    body = b'%s,\n "copy": %s' % (json.dumps(record, indent=1).encode("ascii")[:-2], copy)
    return b'%s,\n "crc32": "%08x"\n}\n' % (body, zlib.crc32(body))


def decode_record(data: bytes, path: Path, problems: list[str] | None) -> dict[str, Any]:
    """Return the record in the bytes of a file; one that was written without checksums is taken as it is.

    Args:
        data: the bytes.
        path: the file.
        problems: gets a sentence for one that is damaged, and what its copy says is returned; None: damage is raised.

    Raises:
        RunFormatError: for one that is no record, or damaged beyond its copy.
    """
    body, found, tail = data.rpartition(b',\n "crc32": "')
    is_intact = bool(found) and tail == b'%08x"\n}\n' % zlib.crc32(body)
    if is_intact or not any(mark in data for mark in _MARKS):
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RunFormatError(f"{path}, byte 0: it is no record of a start ({error!s:.200})") from error
        if not isinstance(record, dict):
            raise RunFormatError(f"{path}, byte 0: it is no record of a start but a {type(record).__name__}")
        return record
    damage = f"{path}, byte 0: it is no record of a start, or a damaged one: its CRC-32 does not match"
    copy = _COPY.search(data)
    if copy is None or problems is None:
        raise RunFormatError(damage)
    try:
        record = decode_line(copy[0] + b"\n")
    except RunFormatError:
        raise RunFormatError(f"{damage}, nor that of its copy") from None
    problems.append(f"{damage}; what counts is its copy, which is intact")
    return record
