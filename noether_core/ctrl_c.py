"""Let Ctrl-C end `python -m noether_core` without a traceback, also while its modules are imported.

The package imports this before anything else. `noether_parity` does the same for the command `noether-parity`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended: 128 + SIGINT


def end_imports_of_command() -> None:
    """Let Ctrl-C end the process at once, if that is `python -m noether_core` and does not ignore it."""
    if _is_command(sys.argv, sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def run_command(command: Callable[[], None]) -> None:
    """Run a command whose modules are imported; Ctrl-C ends it without a traceback, with exit code 130.

    Args:
        command: what to run; in it Ctrl-C raises `KeyboardInterrupt`, as always.

    Raises:
        SystemExit: with 130, if that is raised and not caught.
    """
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _is_command(arguments: list[str], given: list[str]) -> bool:
    """Say whether Python is looking for the module of `-m noether_core`: https://docs.python.org/3/library/sys.html#sys.argv.

    >>> _is_command(["-m", "show"], ["python", "-X", "dev", "-m", "noether_core", "show"])
    True
    >>> _is_command(["-m", "noether_core"], ["python", "-m", "training", "noether_core"])
    False
    """
    if arguments[:1] != ["-m"] or len(given) < len(arguments):
        return False
    return re.fullmatch("(-[A-Za-z]*m)?noether_core", given[-len(arguments)]) is not None


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: nothing is begun during imports, and what is raised in one may be printed, or taken for something else."""
    os._exit(INTERRUPTED)
