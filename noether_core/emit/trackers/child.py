"""Run in the child process of a `ProcessTracker`: take options, then entries, as lines of JSON, and hand them to the tool."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from noether_core.emit.trackers import Tracker
from noether_core.text import as_float


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
    continuation = _Continuation(Path(options.pop("memory")))
    tool: Tracker | None = None
    try:
        for line in sys.stdin.buffer:
            if not line.endswith(b"\n"):
                break  # torn: the training was killed
            entry = json.loads(line)
            if entry is None:
                break
            if tool is None:
                tool = continuation.open_tool(entry["update"], **options)
            continuation.note(entry["update"])
            tool.log({key: _storable(value) for key, value in entry.items()})
    finally:
        if tool is not None:
            tool.close()


def _storable(value: Any) -> Any:
    """Return a value with an int beyond 64 bits as binary64; anything else as it is."""
    is_wide = isinstance(value, int) and not -(2**63) <= value < 2**63
    return as_float(value) if is_wide else value


class _Continuation:
    """Keep the id of a tool's run and the last update it was given, in a file beside the tool's own.

    A start whose updates follow on the last one goes on with that run. One that begins at an earlier update (training was
    taken up from an older checkpoint) gets a run of its own, so that no curve has two values for an update.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._id: str | None = None
        self._number = 0
        self._update = -1
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self._id, self._number, self._update = str(found["id"]), int(found["number"]), int(found["update"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # none yet, or one that a crash of the machine left torn: a new run, and nothing is mixed up

    def open_tool(self, update: int, kind: str, name: str, **options: Any) -> Tracker:
        """Return what takes the entries from an update on: `Tool` of the kind's module."""
        if self._id is None or update <= self._update:
            self._id = None
            self._number += 1
        name = name if self._number == 1 else f"{name}-{self._number}"
        module = importlib.import_module(f"noether_core.emit.trackers.{kind}")
        tool = module.Tool(name=name, run_id=self._id, **options)
        self._id = tool.id
        return tool  # type: ignore[no-any-return]

    def note(self, update: int) -> None:
        """Note the last update given."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"id": self._id, "number": self._number, "update": update}), encoding="utf-8")
        temporary.replace(self._path)  # without fsync: what is lost with the machine costs a second run, no number


if __name__ == "__main__":
    main()
