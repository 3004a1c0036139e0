"""Write files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import stat
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

from noether_core.errors import NoetherError

# which machine a temporary file is of: the numbers of processes say nothing elsewhere
_HOST = f"{zlib.crc32(os.fsencode(platform.node())):08x}"
_TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)\.tmp", re.DOTALL)
_OLD = 24 * 3600.0  # seconds, after which no process of another machine still writes a file
_PLACES = ("", "metrics/", "starts/", "update_outputs/**/", "unmerged/**/", "exports/")
# of an fsync of a directory: Windows and some file systems have none, and one that may be written need not be readable
_NOT_FOR_DIRECTORIES = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def checked_path(path: object, owner: str) -> Path:
    """Return the path of a run directory.

    Args:
        path: a string or a `Path`.
        owner: who was given it.

    Raises:
        NoetherError: for anything else, and an empty string.

    >>> checked_path("runs/mine", "Run")
    PosixPath('runs/mine')
    """
    found = os.fspath(path) if isinstance(path, os.PathLike) else path
    if isinstance(found, str) and found and "\0" not in found:
        return Path(found)
    hint = (
        ": an empty string, of a variable that is not set perhaps; '.' is the current directory" if path == "" else ""
    )
    raise NoetherError(f"{owner} got path={path!r:.200}; expected the directory to write to, such as 'runs/mine'{hint}")


def write_whole(path: Path, data: bytes | Iterable[bytes | memoryview], *, is_durable: bool = True) -> None:
    """Write a file, at once or in parts, by way of a temporary one: write, fsync, rename. The directory is made if need be.

    A file that is not `is_durable` is whole too when this process is killed, but not when the machine is.
    """
    make_directory(path.parent, is_durable=is_durable)
    # nobody can have put it there
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.{_HOST}-{os.getpid()}.tmp")
    descriptor = -1
    try:  # one, for no handler has the line on which another one begins
        descriptor = os.open(temporary, _NEW, 0o666)
        for part in [data] if isinstance(data, bytes) else data:
            write_all(descriptor, part, temporary)
        if is_durable:
            os.fsync(descriptor)
        written, descriptor = descriptor, -1
        os.close(written)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            if descriptor >= 0:
                os.close(descriptor)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if is_durable:
        sync_directory(path.parent)  # makes the rename itself durable


def require_replaceable(path: Path) -> None:
    """Refuse to put a new file in the place of what is none, such as a directory, a pipe, or `/dev/null`.

    Raises:
        NoetherError: if something is there that is no regular file, nor a link to one or to nowhere.
    """
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError:  # nothing is there, or what writing will say
        return
    if not is_file:
        what = "a directory" if path.is_dir() else "no regular file: a device, a pipe or a socket"
        raise NoetherError(f"{str(path)!r} is {what}, which a new file would replace; give another name for the file")


def make_directory(directory: Path, *, is_durable: bool = True) -> None:
    """Make a directory, and those it is in; each that is new outlives the machine if they are to be durable."""
    if directory.is_dir():
        return
    new = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for each in reversed(new) if is_durable else ():
        sync_directory(each.parent)


def write_all(descriptor: int, data: bytes | memoryview, path: Path) -> None:
    """Write all of the data, in as many calls as that takes."""
    rest = memoryview(data)
    while rest:
        if not (written := os.write(descriptor, rest)):
            raise OSError(errno.ENOSPC, f"wrote none of {len(rest)} bytes: is the disk full?", str(path))
        rest = rest[written:]


def sync_directory(directory: Path) -> None:
    """Make durable which files a directory has, where the system can do that."""
    descriptor = -1
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_DIRECTORIES:
            raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def remove_temporaries(directory: Path) -> None:
    """Remove from a run directory what `write_whole` left there in processes that were killed."""
    for place in _PLACES:
        for path in directory.glob(f"{place}.*.tmp"):
            with contextlib.suppress(OSError):
                if (found := _TEMPORARY.fullmatch(path.name)) and _is_stale(path, found[1], int(found[2])):
                    path.unlink()


def _is_stale(path: Path, host: str | None, process: int) -> bool:
    """Tell whether the process that wrote a temporary file is gone; this one has none when it opens a run."""
    if host != _HOST:
        return time.time() - path.lstat().st_mtime > _OLD
    if process != os.getpid():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
    return process == os.getpid()
