"""Run in the child process of a `ProcessTracker`: take options, then entries, as lines of JSON, and hand them to the tool."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import traceback

from noether_core.emit.trackers import Tracker


def main() -> None:
    """Read until the line `null`, or until the training process is gone. What fails is the last line of standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _take_entries()
    except Exception as error:
        traceback.print_exc()
        print(type(error).__name__ + ":", *str(error).split(), file=sys.stderr)  # noqa: T201 -- read by the parent
        sys.exit(1)


def _take_entries() -> None:
    options = json.loads(sys.stdin.buffer.readline())
    tool: Tracker = importlib.import_module(f"noether_core.emit.trackers.{options.pop('kind')}").open_tool(**options)
    try:
        for line in sys.stdin.buffer:
            if not line.endswith(b"\n"):
                break  # torn: the training was killed
            entry = json.loads(line)
            if entry is None:
                break
            tool.log(entry)
    finally:
        tool.close()


if __name__ == "__main__":
    main()
