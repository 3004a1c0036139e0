"""Run in the child process of a `ProcessTracker`: take options, then entries, as lines of JSON, and hand them to the tool."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from noether_core.emit.files import write_whole
from noether_core.regular_files import read_regular
from noether_core.text import as_float

_MOST_BYTES = 2**20  # of what is noted of a tool's run


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
    memory = Path(options.pop("memory"))
    tool: Any = None
    number = 0
    try:
        for line in sys.stdin.buffer:
            if not line.endswith(b"\n") or (entry := json.loads(line)) is None:
                break  # torn, for the training was killed; or its end
            if tool is None:
                tool, number = _open_tool(memory, entry["update"], **options)
            _note(memory, {"id": tool.id, "number": number, "update": entry["update"]})
            tool.log({key: _storable(value) for key, value in entry.items()})
    finally:
        if tool is not None:
            tool.close()


def _storable(value: Any) -> Any:
    """Return a value with an int beyond 64 bits as binary64; anything else as it is."""
    is_wide = isinstance(value, int) and not -(2**63) <= value < 2**63
    return as_float(value) if is_wide else value


def _open_tool(memory: Path, update: int, kind: str, name: str, **options: Any) -> tuple[Any, int]:
    """Return what takes the entries from an update on, `Tool` of the kind's module, and which of the tool's runs it is.

    A start whose updates follow on the last one noted goes on with that run. One that begins at an earlier update (training
    was taken up from an older checkpoint) gets a run of its own, so that no curve has two values for an update.
    """
    try:
        found = json.loads(read_regular(memory, _MOST_BYTES))
        run_id, number, last = str(found["id"]), int(found["number"]), int(found["update"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that a crash of the machine left torn
        run_id, number, last = None, 0, update
    if update <= last:
        run_id, number = None, number + 1
    module = importlib.import_module(f"noether_core.emit.trackers.{kind}")
    return module.Tool(name=name if number == 1 else f"{name}-{number}", run_id=run_id, **options), number


def _note(memory: Path, state: dict[str, Any]) -> None:
    """Note the tool's run and the last update it was given, in a file beside the tool's own."""
    write_whole(memory, json.dumps(state).encode("utf-8"), is_durable=False)  # its loss costs a second run, no number


if __name__ == "__main__":
    main()
