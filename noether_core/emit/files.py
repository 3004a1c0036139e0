"""Write files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def _opener(name: str, flags: int) -> int:
    return os.open(name, flags | _NO_LINK, 0o666)


def write_whole(path: Path, data: bytes | Iterable[bytes], *, is_durable: bool = True) -> None:
    """Write a file, at once or in parts, by way of a temporary one: write, fsync, rename. The directory is made if need be.

    A file that is not `is_durable` is whole too when this process is killed, but not when the machine is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.{os.getpid()}.tmp")  # nobody can have put it there
    try:
        with open(temporary, "xb", opener=_opener) as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if not is_durable:
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # makes the rename itself durable
    finally:
        os.close(directory)
