"""Record the update outputs of a training run, bit by bit, and replay them through any front-end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noether_core.backend import Backend
from noether_core.callbacks.base import CallbackBase
from noether_core.config_base import CallbackBaseConfig
from noether_core.emit.arrays import read_arrays, write_arrays
from noether_core.emit.log_writer import ScalarWriter
from noether_core.errors import RunFormatError
from noether_core.schedule import Counter
from noether_core.select import flatten

if TYPE_CHECKING:
    from noether_core.run import Run

_COUNT = "accumulation_steps"


class OutputRecorder(CallbackBase):
    """Write every accumulation step's update outputs to one safetensors file when training ends.

    Each step waits for the device, and the copies are held in host memory until the end: this is for comparing, not for
    long trainings.

    Args:
        path: the file.
        backend: the front-end's.
        log_writer: the run's.
    """

    def __init__(self, path: str | Path, *, backend: Backend, log_writer: ScalarWriter) -> None:
        super().__init__(CallbackBaseConfig(kind="OutputRecorder"), log_writer=log_writer)
        self._path = Path(path)
        self._backend = backend
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._steps = 0

    def track_after_accumulation_step(self, *, update_counter: Counter, update_outputs: Any = None, **_: Any) -> None:
        """Copy this step's outputs to the host."""
        outputs = flatten(update_outputs or {})
        own = [key for key, value in outputs.items() if self._backend.inspect(key, value) is not None]
        hosted = dict(zip(own, self._backend.to_numpy([outputs[key] for key in own]), strict=True))
        for position, (key, value) in enumerate(outputs.items()):
            kind = "p" if isinstance(value, bool | int | float) and not isinstance(value, np.generic) else "a"
            array = hosted[key] if key in hosted else np.array(value)
            self._arrays[f"{self._steps:08d}/{position:04d}{kind}/{key}"] = array
        self._steps += 1

    def undo_accumulation_step(self) -> None:
        """Forget the last step."""
        self._steps -= 1
        prefix = f"{self._steps:08d}/"
        self._arrays = {name: array for name, array in self._arrays.items() if not name.startswith(prefix)}

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Write the file."""
        write_arrays(self._path, {**self._arrays, _COUNT: np.array(self._steps)})


def read_recording(path: str | Path) -> Iterator[dict[str, Any] | None]:
    """Yield each accumulation step's flattened outputs, NumPy arrays and Python numbers; None where there were none.

    Raises:
        RunFormatError: if the file is no recording.
    """
    arrays = read_arrays(Path(path))
    if _COUNT not in arrays:
        raise RunFormatError(
            f"{str(path)!r} is no recording of update outputs; give a file that Run(..., record=...) wrote"
        )
    steps: list[dict[str, Any]] = [{} for _ in range(int(arrays.pop(_COUNT)))]
    for name, array in sorted(arrays.items()):
        number, kind, key = name.split("/", 2)
        steps[int(number)][key] = array.item() if kind.endswith("p") else array
    for step in steps:
        yield step or None


def replay(path: str | Path, run: Run) -> None:
    """Feed a recording through a run's front-end, as arrays of its framework."""
    with run:
        for outputs in read_recording(path):
            converted = outputs and {
                key: run.backend.from_numpy(value) if isinstance(value, np.ndarray) else value
                for key, value in outputs.items()
            }
            run.step(update_outputs=converted)
