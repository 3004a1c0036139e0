"""Start the command `noether-parity`. This is apart from what it needs, so that Ctrl-C can end it while that is imported.

`noether_core.cli` has the command itself.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["main"]

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended: 128 + SIGINT


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, with exit code 130, from the first import on."""
    is_answered = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a script's background job ignores it
    if is_answered:
        signal.signal(signal.SIGINT, _end)
    from noether_core.cli import main as run
    from noether_core.ctrl_c import run_command

    if is_answered:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command(run)


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: nothing is begun during imports, and what is raised in one may be printed, or taken for something else."""
    os._exit(INTERRUPTED)
