"""Remember which of a tool's runs a run directory has, so that a second process start goes on with it."""

from __future__ import annotations

import json
from pathlib import Path


class Continuation:
    """Keep a tool's run id and the last update it was given, in a file beside the tool's own.

    A start whose updates follow on the last one goes on with that run. One that begins at an earlier update (training was
    taken up from an older checkpoint) gets a run of its own, so that no curve has two values for an update.

    Args:
        path: the file; it and its directory are made at the first `note`.

    Attributes:
        id: the run to go on with, or None.
        number: how many runs there have been.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.id: str | None = None
        self.number = 0
        self._update = -1
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.id, self.number, self._update = str(found["id"]), int(found["number"]), int(found["update"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # none yet, or one that a crash of the machine left torn: a new run, and nothing is mixed up

    def follows(self, update: int) -> bool:
        """Tell whether a start that begins at `update` goes on with the run."""
        return self.id is not None and update > self._update

    def begin(self, run_id: str) -> None:
        """Note a new run."""
        self.id = run_id
        self.number += 1

    def note(self, update: int) -> None:
        """Note the last update given."""
        self._update = update
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"id": self.id, "number": self.number, "update": update}), encoding="utf-8")
        temporary.replace(self._path)  # without fsync: what is lost with the machine costs a second run, no number
