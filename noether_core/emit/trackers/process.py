"""Drive a tracking tool in a process of its own.

The tools patch the process they are in: they hook `sys.exit`, keep one store or one run per process, read environment
variables at import, start threads and report usage. In a child process none of that touches the training, its interpreter
lock, or another run. The child outlives a killed training, and writes what it was given.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from noether_core.errors import NoetherError

# What each tool must not do unless asked to: phone home, upload, or fail on its own deprecation warnings.
_SETTINGS = {
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
_UNSET = ("PYTHONWARNINGS", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID")


class ProcessTracker:
    """Send entries to a child process, in which `noether_core.emit.trackers.<kind>.Tool` takes them.

    Args:
        directory: where the tool has its files; made at the first entry.
        name: the run's name; by default the directory's.
        options: further ones of the `Tool`; plain data that JSON can hold.
        memory: the file in which the tool's run is noted, for a restart to go on with it.

    Raises:
        NoetherError: if an option is not plain data.
    """

    kind: ClassVar[str]

    def __init__(
        self, directory: str | Path, name: str | None, options: Mapping[str, Any], *, memory: str = "noether.json"
    ) -> None:
        self._directory = Path(directory)
        place = self._directory.absolute()
        given = {"kind": self.kind, "directory": str(place), "name": name or place.resolve().name}
        try:
            self._options = json.dumps({**given, "memory": str(place / memory), **options})
        except (TypeError, ValueError) as error:
            raise NoetherError(
                f"the {self.kind} tracker's options {dict(options)!r:.200} cannot be sent to its process: {error};"
                " give strings, numbers, lists and dicts"
            ) from error
        self._child: _Child | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._directory)!r})"

    def log(self, entry: Mapping[str, Any]) -> None:
        """Send one entry, and start the process if this is the first.

        Raises:
            NoetherError: if the process has ended; with its last words.
        """
        if self._child is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._child = _Child(repr(self))
            self._child.send(self._options)
        self._child.send(json.dumps(entry))

    def close(self) -> None:
        """Tell the process to end, and wait until it has written everything.

        Raises:
            NoetherError: if it failed; with its last words.
        """
        if self._child is not None:
            child, self._child = self._child, None
            child.end()


class _Child:
    """Hold a running child process, the pipe to it, and what it writes to standard error."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by end()
        environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
        path = [str(Path(__file__).parents[3]), *filter(None, sys.path)]  # what is importable here is there
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "noether_core.emit.trackers.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._complaints,
            env={**environment, **_SETTINGS, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,  # Ctrl-C is for the training; the child ends when it is told to
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin

    def send(self, line: str) -> None:
        try:
            self._pipe.write(line.encode("ascii") + b"\n")
            self._pipe.flush()
        except OSError as error:
            raise self._failure() from error

    def end(self) -> None:
        try:
            if self._process.poll() is None:
                self.send("null")  # the end; a process forked from this one may hold the pipe open
            if self._process.wait() != 0:
                raise self._failure()
        finally:
            with contextlib.suppress(OSError):  # what is buffered for a process that has ended
                self._pipe.close()
            self._complaints.close()

    def _failure(self) -> NoetherError:
        code = self._process.wait()
        self._complaints.seek(0)
        words = self._complaints.read().decode("utf-8", "replace").strip().splitlines()
        return NoetherError(
            f"the process of {self._owner} ended with code {code}: {words[-1] if words else 'it said nothing'}"
        )
