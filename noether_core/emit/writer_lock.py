"""Let one process at a time write to a run directory.

The lock is the operating system's, `flock` on `writer.lock`: it goes with the process that holds it, however that ends. Where a
filesystem has none, a file `writer.pid` that names its holder takes its place; one whose holder is known to be gone is taken
over. A forked child does not hold it, and its parent goes on to: such a lock goes with the open file, of which the child closes
its copy.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import time
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noether_core.emit.files import make_directory, write_all, write_whole
from noether_core.emit.holders import about_this_process, is_gone, is_here, named_in, open_to_write
from noether_core.errors import RunLockedError
from noether_core.forks import in_children

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HAS_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_ADVICE = (
    "Wait for its end, or end it; or give this run another directory. Processes of one training are one writer if they know of"
    " each other when the run is made: initialize torch.distributed or jax.distributed before it, or give `processes`"
)
_TRIES = 100
_WAIT = 0.02  # seconds, between looks at who holds what
_PATIENCE = 2.0  # seconds, for what was dropped; a look at all there is may take as long


def is_written_now(directory: Path) -> bool:
    """Tell whether a process of this machine is known to write to a run directory; it is not disturbed."""
    return any(is_here(named_in(directory / name)) for name in ("writer.lock", "writer.pid"))


class WriterLock:
    """Hold a run directory for this process, or nothing.

    It is let go of by `release`, when nobody has this object any more, and with the process.

    Args:
        directory: the run directory; it is made when it is first held.

    Attributes:
        is_forked: whether this is a copy in a child of the process that had it.
        give_way: releases this lock, if it gives way to another one in this process.
        owner: whom it is held for; None: nobody in particular. What is still to be written keeps the lock longer.
    """

    # of the class, for another thread may look at one that is being made
    _held: _Held | None = None
    _release: weakref.finalize[[], WriterLock] | None = None
    is_forked = False
    owner: weakref.ref[object] | None = None
    give_way: weakref.WeakMethod[Callable[[], None]] | None = None

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def is_held(self) -> bool:
        """Tell whether this process holds the directory by this lock."""
        return self._held is not None and not self._held.is_over

    def hold(self) -> None:
        """Hold the directory, if that is not so yet.

        Raises:
            RunLockedError: if another one writes to it.
            OSError: if the directory cannot be written.
        """
        if self.is_held:
            return
        make_directory(self._directory)
        try:
            held = _hold(self._directory)
        except RunLockedError as error:
            if error.holder.get("pid") != os.getpid():
                raise
            gc.collect()  # a run that was dropped without its end, in a notebook say
            self._ask_to_give_way()
            held = self._hold_after_dropped()
        self._held = held
        self._release = weakref.finalize(self, held.release)
        in_children(self, WriterLock._leave_to_parent)

    def renew(self) -> None:
        """Hold the directory again if somebody has removed it, and the lock with it; raises as `hold`."""
        before, release = self._held, self._release
        if before is None or before.is_over or before.is_there():
            return
        make_directory(self._directory)
        held = _hold(self._directory)
        self._held, self._release = held, weakref.finalize(self, held.release)  # at no time is it nobody's
        before.release()
        if release is not None:
            release.detach()

    def release(self) -> None:
        """Let go of the directory. If this is interrupted, it may be called again."""
        if self._held is not None:
            self._held.release()
        if self._release is not None:
            self._release.detach()

    def _hold_after_dropped(self) -> _Held:
        """Return what is held, once all is written of runs that were dropped, if that is soon."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return _hold(self._directory)
            except RunLockedError:
                was_dropped = any(each.owner is not None and each.owner() is None for each in self._others())
                if not was_dropped or time.monotonic() >= until:
                    raise
                time.sleep(_WAIT)
                gc.collect()

    def _ask_to_give_way(self) -> None:
        for each in self._others():
            if each.give_way is not None and (give_way := each.give_way()) is not None:
                give_way()

    def _others(self) -> list[WriterLock]:
        """Return those of this process that hold this directory."""
        # seldom, and so without a list of locks
        held = [each for each in gc.get_objects() if type(each) is WriterLock and each.is_held]
        return [each for each in held if each._directory.resolve() == self._directory.resolve()]

    def _leave_to_parent(self) -> None:
        if self.is_held and self._held is not None:
            self.is_forked = True
            self._held.close()


class _Held:
    """Let go of what is held, in the process that holds it.

    Args:
        path: the file that is gone afterwards.
        descriptor: of that file, which has the lock; None for one that names its holder.

    Attributes:
        is_over: whether it is let go of.
    """

    _descriptor: int | None = None
    is_over = False

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path, self._descriptor, self._process = path, descriptor, os.getpid()
        self._is_by_name = descriptor is None

    def __del__(self) -> None:
        self.close()  # of one that Ctrl-C came before anybody had: the lock goes with the descriptor

    def release(self) -> None:
        if self.is_over or os.getpid() != self._process:
            return
        with contextlib.suppress(OSError):  # gone with the directory, say
            if self.is_there():
                self._path.unlink()
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.close()
        self.is_over = True

    def is_there(self) -> bool:
        """Tell whether the file is still this one's: what was interrupted after that was gone is done again."""
        if self._is_by_name:
            return named_in(self._path).get("pid") == self._process
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._descriptor is not None and os.path.samestat(os.fstat(self._descriptor), self._path.lstat())
        return False

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # it is closed all the same
                os.close(descriptor)


def _hold(directory: Path) -> _Held:
    return _hold_by_the_system(directory / "writer.lock") or _hold_by_name(directory / "writer.pid")


def _hold_by_the_system(path: Path) -> _Held | None:
    """Return the lock of a file, made if need be; None where there are no locks."""
    for _ in range(_TRIES if fcntl is not None else 0):
        descriptor = open_to_write(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(path, descriptor):
                held, descriptor = _Held(path, descriptor), -1
                return held
        except BlockingIOError:
            raise _locked(path) from None
        except OSError as error:
            if error.errno not in _HAS_NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            return None
        finally:
            if descriptor >= 0:
                os.close(descriptor)
    return None


def _is_there(path: Path, descriptor: int) -> bool:
    """Tell whether a locked file is still the one of that path, and say in it who holds it."""
    try:
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            return False  # whoever held it has let go of it, and so removed it, since it was opened
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about_this_process()).encode("ascii"), 0)
    return True


def _hold_by_name(path: Path) -> _Held:
    """Return what lasts while a file names this process, which one that is gone may have left there."""
    for _ in range(_TRIES):
        own = about_this_process()
        if _create(path, own):
            return _Held(path, None)
        holder = named_in(path)
        if not holder or not is_gone(holder):
            raise _locked(path)
        # of all that would take over from this holder, one makes the file of that name
        taking = path.with_name(f"{path.name}.{zlib.crc32(str(holder.get('token')).encode()):08x}")
        if not _create(taking, own):
            raise _locked(taking)
        try:
            if named_in(path).get("token") == holder.get("token"):
                write_whole(path, json.dumps(own).encode("ascii"))
                return _Held(path, None)
        finally:
            taking.unlink(missing_ok=True)
    raise _locked(path)


def _create(path: Path, about: dict[str, Any]) -> bool:
    """Write a file unless there is one; tell whether there was none."""
    try:
        descriptor = open_to_write(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    try:
        write_all(descriptor, json.dumps(about).encode("ascii"), path)
    except BaseException:  # a full disk: a file that names nobody would keep everybody out
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


def _locked(path: Path) -> RunLockedError:
    holder: dict[str, Any] = {}
    for _ in range(_TRIES):  # it is said a moment after it is so
        if holder := named_in(path):
            break
        time.sleep(_WAIT)
    process, since = holder.get("pid"), ""
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError, OSError):
        since = time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    if process == os.getpid():
        who, advice = (
            "a run of this process",
            "Call its finish(), or leave its `with` block; or give this run another directory",
        )
    else:
        who, advice = f"process {process!r:.20} on {holder.get('host')!r:.100}", _ADVICE
    by_name = "" if path.name == "writer.lock" else f" If it is gone, delete {path}."
    return RunLockedError(
        f"{str(path.parent)!r} is being written by {who}{since}, and two writers would overwrite each other.{by_name} {advice}",
        holder,
    )
