"""Write entries as TensorBoard event files, by tensorboardX."""

from __future__ import annotations

import contextlib
import importlib.abc
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from noether_core.dependencies import require
from noether_core.schedule import UNITS
from noether_core.text import as_float


@contextlib.contextmanager
def _torch_left_out() -> Iterator[None]:
    """Keep an import in this thread from loading torch, unless it is loaded already.

    tensorboardX loads it for one annotation, wherever it is installed: a second, and hundreds of megabytes, of every JAX
    training. Without it the annotation is NumPy's, and nothing else is different.
    """
    thread = threading.get_ident()

    class TorchRefused(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            if fullname == "torch" and threading.get_ident() == thread:
                raise ModuleNotFoundError("torch is left out here", name=fullname)

    finder = TorchRefused()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class TensorBoardTracker:
    """Write each number as a scalar with the update as its step, and any other value as text.

    TensorBoard keeps scalars as float32. A restart has a file of its own, and takes the place of what an earlier one wrote from
    its first update on.

    Args:
        directory: where the event files go.

    Raises:
        MissingDependencyError: if tensorboardX is not installed.
    """

    kind: ClassVar[str] = "tensorboard"

    def __init__(self, directory: str | Path) -> None:
        require("the tensorboard tracker", "tensorboardX")
        with _torch_left_out():
            import tensorboardX

        self._tool = tensorboardX
        self._directory = Path(directory)
        self._writer: Any = None

    def __repr__(self) -> str:
        return f"TensorBoardTracker({str(self._directory)!r})"

    def _open(self, update: int) -> Any:
        # TensorBoard reads files in the order of their names, which tensorboardX makes from the second: a number orders
        # those of one second, and what follows keeps two processes from writing to one file.
        number = sum(1 for _ in self._directory.glob("events.*"))
        suffix = f".{number:05d}.{uuid.uuid4().hex[:8]}"
        return self._tool.SummaryWriter(str(self._directory), filename_suffix=suffix, purge_step=update)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Write one entry, and flush it to the file."""
        self.log_at(entry, None)

    def log_at(self, entry: Mapping[str, Any], time: float | None) -> None:
        """Write one entry as of a time, in seconds since 1970 (None: now), and flush it to the file."""
        from tensorboardX.proto.summary_pb2 import Summary

        if self._writer is None:
            self._writer = self._open(entry["update"])
        for key, value in entry.items():
            if key in UNITS:
                continue
            if isinstance(value, int | float):
                # add_scalar would write `_` for many characters in a tag, and so make one curve of two keys
                summary = Summary(value=[Summary.Value(tag=key, simple_value=as_float(value))])
                self._writer.file_writer.add_summary(summary, entry["update"], walltime=time)
            else:
                self._writer.add_text(key, str(value), global_step=entry["update"], walltime=time)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
