"""Say in a file which process this is, and of what such a file says whether that process is gone."""

from __future__ import annotations

import json
import os
import platform
import secrets
import stat
import time
from pathlib import Path
from typing import Any

from noether_core.errors import RunFormatError
from noether_core.regular_files import read_regular

_MOST_BYTES = 4096


def about_this_process() -> dict[str, Any]:
    """Return what tells this process from all others, now and later, here and on other machines."""
    process = os.getpid()
    return {
        "pid": process,
        "started": _started(process),
        "host": platform.node(),
        "boot": _text(Path("/proc/sys/kernel/random/boot_id")),
        "namespace": _namespace(),
        "since": time.time(),
        "token": secrets.token_hex(8),
    }


def is_gone(holder: dict[str, Any]) -> bool:
    """Tell whether a process is known to have ended; of one on another machine that is not known."""
    own = about_this_process()
    if holder.get("host") != own["host"]:
        return False
    if holder.get("boot") != own["boot"]:
        return bool(holder.get("boot") and own["boot"])  # the machine was started again
    if holder.get("namespace") != own["namespace"]:
        return False  # in another container, whose processes are not to be seen
    process = holder.get("pid")
    if type(process) is not int or process < 1 or os.name != "posix":  # elsewhere to ask is to kill
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return holder.get("started") != _started(process)  # else the number is another one's now


def is_here(holder: dict[str, Any]) -> bool:
    """Tell whether a process is known to run, here and now."""
    own = about_this_process()
    return all(holder.get(name) == own[name] for name in ("host", "boot", "namespace")) and not is_gone(holder)


def named_in(path: Path) -> dict[str, Any]:
    """Return what a file says of a process; nothing where it does not."""
    try:
        found = json.loads(read_regular(path, _MOST_BYTES, path.parent))
    except (OSError, ValueError, RecursionError, RunFormatError):
        return {}
    return found if isinstance(found, dict) else {}


def open_to_write(path: Path, how: int) -> int:
    """Open a file, made if need be, without following a link or waiting; return its descriptor.

    Raises:
        OSError, RunFormatError: if it is something else.
    """
    descriptor = os.open(path, how | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunFormatError(f"{path} is no regular file; it is to say who writes to the run: take it away")
    return descriptor


def _started(process: int) -> str:
    """Return when a process was started, as the kernel counts; nothing where that is not known."""
    return " ".join(_text(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()[19:20])


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
