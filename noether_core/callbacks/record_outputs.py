"""Record the update outputs of a training run, bit by bit; `noether_core.parity.replay` feeds them to any front-end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.callbacks.base import CallbackBase
from noether_core.config.base import CallbackBaseConfig
from noether_core.emit.array_header import FORMAT_HEADER
from noether_core.emit.arrays import encode_arrays, read_arrays, write_arrays
from noether_core.emit.log_writer import ScalarWriter
from noether_core.errors import NoetherError, RunFormatError, UpdateOutputError
from noether_core.reduce import host
from noether_core.reduce.backend import Backend, ValueType
from noether_core.schedule import Counter
from noether_core.select import flatten

_COUNT = "accumulation_steps"
# step, position, array, list or Python number, key
_NAME = re.compile(r"(\d{1,18})/(\d{1,18})([alp])/(.*)", re.ASCII | re.DOTALL)
_MOST_STEPS = 10**8
_PYTHON_DTYPES = ("bool", "int64", "float64")
_GIVE = "give a file that Run(..., record=...) wrote"


class OutputRecorder(CallbackBase):
    """Write every accumulation step's update outputs to one safetensors file when training ends.

    Each step waits for the device, and the copies are held in host memory until the end: this is for comparing, not for
    long trainings. Every output is recorded, tracked or not. So one that cannot be (text, an object, a complex number, an
    int beyond float64) is refused at its step, before anything is lost, and never left out silently.
    """

    def __init__(self, path: str | Path, *, backend: Backend, log_writer: ScalarWriter) -> None:
        super().__init__(CallbackBaseConfig(kind="OutputRecorder"), log_writer=log_writer)
        self._path = Path(path)
        self._backend = backend
        self._steps: list[tuple[tuple[int, int], dict[str, np.ndarray[Any, Any]]]] = []  # and where each step stood
        self._writable: set[tuple[str, np.dtype[Any]]] = set()

    def track_after_accumulation_step(
        self, *, update_counter: Counter, update_outputs: Any = None, accumulation_step: int = 0, **_: Any
    ) -> None:
        """Copy this step's outputs to the host: of one that is spread over processes, what this process counts of it.

        Raises:
            UpdateOutputError: for an output that cannot be recorded; the message names its key and type.
        """
        outputs = flatten({} if update_outputs is None else update_outputs)
        types = {key: self._inspect(key, value) for key, value in outputs.items()}
        counted = {key: value for key, value in outputs.items() if (of := types[key]) is None or of.is_counted}
        own = {  # the framework's arrays; everything else is on the host
            key: self._backend.local([value])[0] if found.is_global else value
            for key, value in counted.items()
            if (found := types[key]) is not None
        }
        hosted = dict(zip(own, self._backend.to_numpy(list(own.values())), strict=True))
        step = {}
        for position, (key, value) in enumerate(counted.items()):
            array = hosted[key] if key in hosted else host.as_numpy(value)
            self._require_writable(key, array.dtype)
            kind = "p" if type(value) in (bool, int, float) else "l" if type(value) in (list, tuple) else "a"
            step[f"{len(self._steps):08d}/{position:04d}{kind}/{key}"] = array
        self._steps.append(((update_counter.update, accumulation_step), step))

    def _inspect(self, key: str, value: Any) -> ValueType | None:
        """Return the type of one of the framework's arrays; None for what is on the host."""
        try:
            if (found := self._backend.inspect(key, value)) is None:
                host.inspect(key, value, self._backend.name)
        except UpdateOutputError as error:
            raise _not_recorded(error) from error
        return found

    def _require_writable(self, key: str, dtype: np.dtype[Any]) -> None:
        """Raise for a key or dtype that the file cannot hold: at the end it would be too late."""
        if (key, dtype) in self._writable:
            return
        try:
            encode_arrays({f"/{key}": np.empty(0, dtype)})
        except NoetherError as error:
            what = (
                f"update output {key!r:.200} has dtype {dtype}, and a safetensors file cannot hold that dtype or name"
            )
            raise _not_recorded(what) from error
        self._writable.add((key, dtype))

    def undo_accumulation_step(self) -> None:
        """Forget the last step."""
        self._steps.pop()

    def has_tracked(self, update: int, accumulation_step: int) -> bool:
        """Tell whether the last `track_after_accumulation_step` was this step's."""
        return bool(self._steps) and self._steps[-1][0] == (update, accumulation_step)

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Write the file."""
        arrays = {name: array for _, step in self._steps for name, array in step.items()}
        write_arrays(self._path, {**arrays, _COUNT: np.array(len(self._steps))}, FORMAT_HEADER)


def _not_recorded(reason: object) -> UpdateOutputError:
    return UpdateOutputError(
        f"{reason}. A recording holds every update output, tracked or not: leave this one out of update_outputs, or train"
        " without record"
    )


def read_recording(path: str | Path) -> Iterator[dict[str, Any] | None]:
    """Return each accumulation step's flattened outputs, NumPy arrays and Python numbers; None where there were none.

    Raises:
        FileNotFoundError: if there is no such file.
        RunFormatError: if the file is no recording.
    """
    arrays = read_arrays(Path(path), most_header=FORMAT_HEADER)
    if _COUNT not in arrays:
        raise RunFormatError(f"{str(path)!r} is no recording of update outputs; {_GIVE}")
    count = arrays.pop(_COUNT)
    if count.shape != () or count.dtype.kind not in "iu" or not 0 <= count <= _MOST_STEPS:
        what = f"{count.dtype} of shape {count.shape}, {count.tolist()!r:.40}"
        raise _damaged(path, f"its {_COUNT!r} is {what}; expected an int")
    steps = _steps(path, arrays, int(count))
    return (steps.get(number) for number in range(int(count)))


def _steps(path: str | Path, arrays: dict[str, np.ndarray[Any, Any]], count: int) -> dict[int, dict[str, Any]]:
    """Return the outputs of each step that had some, in the order of the training's dict."""
    entries = []
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise _damaged(path, f"it holds {name!r:.80}; expected names like '00000000/0000a/loss'")
        number, position, kind, key = int(match[1]), int(match[2]), match[3], match[4]
        if number >= count:
            raise _damaged(path, f"it holds {name!r:.80}, but counts {count} accumulation steps")
        if kind == "p" and (array.shape != () or array.dtype not in _PYTHON_DTYPES):
            raise _damaged(path, f"its Python number {name!r:.80} is {array.dtype} of shape {array.shape}")
        entries.append((number, position, key, array if kind == "a" else array.tolist()))
    steps: dict[int, dict[str, Any]] = {}
    for number, position, key, value in sorted(entries, key=lambda entry: entry[:2]):  # names have any number of digits
        step = steps.setdefault(number, {})
        if key in step or position != len(step):
            place = f"at position {position}, after {len(step)} other outputs"
            raise _damaged(path, f"step {number} has {key!r:.80} {place}")
        step[key] = value
    return steps


def _damaged(path: str | Path, found: str) -> RunFormatError:
    return RunFormatError(f"{str(path)!r} is no recording, or a damaged one: {found}; {_GIVE}")
