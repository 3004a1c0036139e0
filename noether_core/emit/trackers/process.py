"""Drive a tracking tool in a process of its own.

The tools patch the process they are in: they hook `sys.exit`, keep one store or one run per process, read environment
variables at import, start threads and report usage. In a child process none of that touches the training, its interpreter
lock, or another run. The child outlives a killed training, and writes what it was given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

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
    """Send entries to a child process, in which `noether_core.emit.trackers.<kind>.open_tool` takes them.

    Args:
        directory: where the tool has its files; made at the first entry.
        options: handed to `open_tool`; plain data that JSON can hold.

    Raises:
        NoetherError: if an option is not plain data.
    """

    kind: ClassVar[str]

    def __init__(self, directory: str | Path, options: Mapping[str, Any]) -> None:
        self._directory = Path(directory)
        try:
            self._options = json.dumps({"kind": self.kind, "directory": str(self._directory.absolute()), **options})
        except (TypeError, ValueError) as error:
            raise NoetherError(
                f"the {self.kind} tracker's options {dict(options)!r:.200} cannot be sent to its process: {error};"
                " give strings, numbers, lists and dicts"
            ) from error
        self._child: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._directory)!r})"

    def log(self, entry: Mapping[str, Any]) -> None:
        """Send one entry, and start the process if this is the first.

        Raises:
            NoetherError: if the process has ended; with its last words.
        """
        if self._child is None:
            self._start()
        self._send(json.dumps(entry))

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._complaints = tempfile.TemporaryFile()
        environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
        path = [
            str(Path(__file__).parents[3]),
            *(each for each in sys.path if each),
        ]  # what is importable here is there
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "noether_core.emit.trackers.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._complaints,
            env={**environment, **_SETTINGS, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,  # Ctrl-C is for the training; the child ends when it is told to
        )
        self._send(self._options)

    def _send(self, line: str) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line.encode("ascii") + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise self._failure() from error

    def _failure(self) -> NoetherError:
        assert self._child is not None
        assert self._complaints is not None
        self._child.wait()
        self._complaints.seek(0)
        words = self._complaints.read().decode("utf-8", "replace").strip().splitlines()
        return NoetherError(
            f"the process of {self!r} ended with code {self._child.returncode}: {words[-1] if words else 'it said nothing'}"
        )

    def close(self) -> None:
        """Tell the process to end, and wait until it has written everything.

        Raises:
            NoetherError: if it failed; with its last words.
        """
        if self._child is None:
            return
        assert self._child.stdin is not None
        assert self._complaints is not None
        try:
            if self._child.poll() is None:
                self._send("null")  # the end; a process forked from this one may hold the pipe open
            if self._child.wait() != 0:
                raise self._failure()
        finally:
            try:
                self._child.stdin.close()
            except OSError:
                pass  # what was buffered for a process that has ended; said above
            self._complaints.close()
            self._child = None
