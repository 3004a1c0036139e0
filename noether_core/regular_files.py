"""Open the files that a stranger may have put there: regular ones only, in a run directory none that a link leads to.

Nothing here waits for a FIFO's writer, touches a device, or leaves the run directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from noether_core.errors import RunFormatError

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PARTS = ("metrics", "starts", "update_outputs", "superseded", "unmerged", "capsules")
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
}


def open_regular(path: Path, root: Path | None = None) -> BinaryIO:
    """Open a regular file to read.

    Args:
        path: the file.
        root: the run directory that it must be in, with no link below that; None: wherever the user says it is, through links
            too.

    Raises:
        RunFormatError: for anything but a regular file.
        OSError: if it cannot be opened.
    """
    if root is None:
        _require(path, path.stat().st_mode, stat.S_IFREG)
        descriptor = os.open(path, _FLAGS)
    else:
        descriptor = _open_below(root, path)
    try:
        _require(path, os.fstat(descriptor).st_mode, stat.S_IFREG)  # once more, for it may have been exchanged
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _open_below(root: Path, path: Path) -> int:
    parts = path.relative_to(root).parts
    if not parts or ".." in parts:
        raise RunFormatError(f"{path} is not inside of the run directory {root}; only what is in there is read")
    directory = os.open(root, _FLAGS | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            outer = directory
            directory = _open_part(path, part, directory, stat.S_IFDIR)
            os.close(outer)
        return _open_part(path, parts[-1], directory, stat.S_IFREG)
    finally:
        os.close(directory)


def _open_part(path: Path, part: str, directory: int, kind: int) -> int:
    _require(path, os.stat(part, dir_fd=directory, follow_symlinks=False).st_mode, kind)
    try:
        return os.open(part, _FLAGS | os.O_NOFOLLOW, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # exchanged since
            raise RunFormatError(f"{path} is no regular file; a run directory has no others") from error
        raise


def _require(path: Path, mode: int, wanted: int) -> None:
    found = stat.S_IFMT(mode)
    if found != wanted:
        what = f"{path} is {_KINDS.get(found, 'no regular file')}"
        if wanted == stat.S_IFDIR:
            what = f"{path} is reached through {_KINDS.get(found, 'a file')}"
        raise RunFormatError(f"{what}; only regular files are read, in a run directory none through a link")


def read_regular(path: Path, most: int, root: Path | None = None) -> bytes:
    """Return what a regular file holds.

    Raises:
        RunFormatError: for anything but a regular file of at most so many bytes.
        OSError: if it cannot be read.
    """
    with open_regular(path, root) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise RunFormatError(f"{path} has more than {most:,} bytes, the most that is read of such a file")
    return data


def files_below(root: Path, name: str, problems: list[str] | None = None) -> Iterator[Path]:
    """Yield the regular files in a directory of a run and those below it; no link is followed.

    Args:
        root: the run directory.
        name: of the directory in it.
        problems: gets a sentence for what is neither a regular file nor a directory, and for what cannot be listed.
    """
    waiting = [root / name]
    if waiting[0].is_symlink():
        _note(waiting.pop(), problems)
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if problems is not None:
                problems.append(f"{directory} cannot be listed: {error}")
            continue
        for entry in found:
            if entry.is_file(follow_symlinks=False):
                yield directory / entry.name
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(directory / entry.name)
            else:
                _note(directory / entry.name, problems)


def _note(path: Path, problems: list[str] | None) -> None:
    if problems is not None:
        problems.append(f"{path} is no regular file (a link, perhaps), and is not read")


def require_own_parts(root: Path) -> None:
    """Check that the directories in a run directory are its own, and no links to elsewhere.

    Raises:
        RunFormatError: if one is.
    """
    for part in _PARTS:
        if (root / part).is_symlink():
            raise RunFormatError(
                f"{root / part} is a symbolic link; a run's files are in its directory: copy them there"
            )


def require_no_links(root: Path, path: Path) -> None:
    """Check, before writing in a run directory, that nothing on the way from it to a file is a link to elsewhere.

    Raises:
        RunFormatError: if something is.
    """
    for part in (path, *path.parents):
        if part == root:
            return
        if part.is_symlink():
            raise RunFormatError(f"{part} is a symbolic link; nothing is written through it: take it away")
