"""A disk that fails, tears or stalls: it wraps the calls of the operating system that go to one directory."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "close", "replace", "mkdir", "unlink", "fstat", "scandir")
KINDS = (
    "EIO",
    "ENOSPC",
    "half",
    "torn",
)  # `half`: a write that says that it wrote half; `torn`: one that does, and fails


class FaultyDisk:
    """Count the calls, and let some of them fail.

    Args:
        directory: whose files it has.
        kind: how a call fails: an errno by its name, or one of `KINDS`.
        fails: tells whether one does, by its number, from 0 on, and its name.

    Attributes:
        calls: the names of those so far.
        paths: what files they were on.
        opened: is waited for in each write and fsync.
    """

    def __init__(
        self, directory: Path, kind: str = "EIO", fails: Callable[[int, str], bool] = lambda *_: False
    ) -> None:
        self.calls: list[str] = []
        self.paths: list[str] = []
        self._fails = fails
        self.opened = threading.Event()
        self.opened.set()
        self._directory = os.fspath(directory)
        self._kind = kind
        self._descriptors: dict[int, str] = {}
        self._real = {name: getattr(os, name) for name in CALLS}
        self._lock = threading.Lock()

    def _is_meant(self, target: Any) -> bool:
        if isinstance(target, int):
            return target in self._descriptors
        return os.fspath(target).startswith(self._directory)

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        real = self._real[name]
        if not self._is_meant(arguments[0]):
            return real(*arguments, **named)
        with self._lock:
            number = len(self.calls)
            self.calls.append(name)
            self.paths.append(self._descriptors.get(arguments[0], str(arguments[0])))
        if name in ("write", "fsync"):
            self.opened.wait()
        fails = self._fails(number, name)
        if fails and name == "write" and self._kind in ("half", "torn"):
            written = real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if self._kind == "half" and written:
                return written
        elif fails and name == "close":
            real(*arguments)
            self._descriptors.pop(arguments[0], None)
        if fails:
            code = getattr(errno, self._kind, errno.EIO)
            raise OSError(code, f"injected into call {number}, {name}", os.fspath(self._directory))
        result = real(*arguments, **named)
        if name == "open":
            self._descriptors[result] = str(arguments[0])
        elif name == "close":
            self._descriptors.pop(arguments[0], None)
        return result

    @contextmanager
    def installed(self) -> Iterator[FaultyDisk]:
        """Have all of this process's calls go through here."""
        for name in CALLS:
            setattr(os, name, lambda *arguments, _name=name, **named: self._call(_name, *arguments, **named))
        try:
            yield self
        finally:
            self.opened.set()
            for name, real in self._real.items():
                setattr(os, name, real)
