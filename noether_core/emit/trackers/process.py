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
    """Send entries to a child process, in which `noether_core.emit.trackers.<kind>.Tool` takes them.

    The update is each tool's step. A restart that goes on where the run stopped continues the tool's run; one that begins
    earlier is a second run, `<name>-2`. Numbers are kept as binary64; an int beyond 64 bits is rounded to that.

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
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._directory)!r})"

    def log(self, entry: Mapping[str, Any]) -> None:
        """Send one entry, and start the process if this is the first.

        Raises:
            NoetherError: if the process has ended; with its last words.
        """
        if self._process is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
            self._process = _started(self._complaints)
            self._send(self._process, self._options)
        self._send(self._process, json.dumps(entry))

    def close(self) -> None:
        """Tell the process to end, and wait until it has written everything; raises as `log` does."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            if process.poll() is None:
                self._send(process, "null")  # the end; a process forked from this one may hold the pipe open
            if process.wait() != 0:
                raise self._failure(process)
        finally:
            with contextlib.suppress(OSError):  # what is buffered for a process that has ended
                _pipe(process).close()
            self._complaints.close()

    def _send(self, process: subprocess.Popen[bytes], line: str) -> None:
        try:
            _pipe(process).write(line.encode("ascii") + b"\n")
            _pipe(process).flush()
        except OSError as error:
            raise self._failure(process) from error

    def _failure(self, process: subprocess.Popen[bytes]) -> NoetherError:
        code = process.wait()
        self._complaints.seek(0)
        words = self._complaints.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        return NoetherError(f"the process of {self!r} ended with code {code}: {words[-1]}")


def _started(complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
    path = [str(Path(__file__).parents[3]), *filter(None, sys.path)]  # what is importable here is there
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "noether_core.emit.trackers.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=complaints,
        env={**environment, **_SETTINGS, "PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,  # Ctrl-C is for the training; the child ends when it is told to
    )


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
