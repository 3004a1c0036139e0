"""Make a run directory with every kind of file, and say what of it is still right after damage."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import noether_torch
from noether_core import LogWriter, RunFormatError, TrainingIteration, UpdateCounter, read_run
from noether_core.config.load import load_callbacks
from noether_core.emit.capsule import read_capsule
from noether_core.emit.disk import Disk
from noether_core.emit.reader import RunReader
from noether_core.emit.state_file import read_state
from noether_core.emit.unmerged import Unmerged, UnmergedFiles, read_unmerged
from noether_core.errors import ConfigFileError
from noether_core.parity.replay import read_recording

CAPSULE = "capsules/E0_U16_S16-0.capsule"
TRACKED = {"every_n_updates": 2, "keys": ["loss"], "patterns": ["grad"], "reduce": ["mean", "std"], "save_output": True}


def train(run: Any, until: int, attempt: int) -> None:
    while run.counter.update < until:
        at = 100.0 * attempt + run.counter.update
        run.step({"loss": at, "grad": {"a": np.full((2, 3), at / 3), "b": np.float32(at)}})


def make_run(path: Path) -> None:
    """Give a run directory that has every kind of file; a state and a recording lie beside."""
    shutil.copytree(_original() / "run", path)
    for name in ("state", "recording"):
        shutil.copy(_original() / name, path.parent / name)


@functools.cache
def _original() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="damaged_runs_"))
    atexit.register(shutil.rmtree, directory)
    _train_to(directory / "run")
    return directory


def _train_to(path: Path) -> None:
    """Train, go back twice, and leave what a process had of an interval."""
    with noether_torch.Run(path.parent / "other", [TRACKED], record=path.parent / "recording") as run:
        train(run, 3, 0)
    shutil.rmtree(path.parent / "other")
    with noether_torch.Run(path, [TRACKED]) as run:
        train(run, 8, 0)
        state = run.state_dict()
        run.log({"text": "fine", "nested": {"a": [1, 2.5, None], "ß": "NaN?"}, "large": 10**30})
        train(run, 14, 0)
    with contextlib.suppress(RuntimeError), noether_torch.Run(path, [TRACKED]) as run:
        run.load_state_dict(state)
        train(run, 16, 1)
        raise RuntimeError("the training failed")
    (capsule,) = (path / "capsules").iterdir()
    capsule.rename(path / CAPSULE)
    with noether_torch.Run(path, [TRACKED]) as run:
        run.load_state_dict(state)
        train(run, 13, 2)
        run.save_state(path.parent / "state")
        partials = {0: next(iter(run.state_dict()["callbacks"].values()))}
    disk = Disk()
    UnmergedFiles(path, 0, 2, disk).save(Unmerged(TrainingIteration(0, 13, 13), 0, 2, partials, {0: 2}, "abc", 3))
    disk.close()


def content(run: RunReader) -> tuple[dict[int, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return a run's entries by update, and its arrays by the name and the bytes of their file."""
    entries = {entry["update"]: entry for entry in run.entries}
    arrays = {f"{file.interval}/{file.iteration}": shown(file.load([])) for file in run.arrays}
    return entries, arrays


def shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shown(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    return (str(value.dtype), value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)


class Expected:
    """Hold what the files beside each other give when nothing is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries, self.arrays = content(read_run(path))
        self.times = {key: series.time for key, series in read_run(path).series.items()}
        self.config = load_callbacks(path / "config.yaml")
        self.state = shown(read_state(path.parent / "state"))
        self.recording = shown(list(read_recording(path.parent / "recording")))
        (unmerged,) = (path / "unmerged").glob("*.safetensors")
        self.unmerged = shown(vars(read_unmerged(unmerged)))
        self.capsule = read_capsule(path / CAPSULE)

    def reports(self, file: Path) -> list[str]:
        """Read what a file is read by, require that nothing is wrong, and return what was said about damage."""
        if file.name == "config.yaml":
            return self._alone(lambda: load_callbacks(file), self.config)
        if file.name == "state":
            return self._alone(lambda: shown(read_state(file)), self.state)
        if file.name == "recording":
            return self._alone(lambda: shown(list(read_recording(file))), self.recording)
        if "unmerged" in file.parts:
            return self._alone(lambda: shown(vars(read_unmerged(file))), self.unmerged)
        if file.suffix == ".capsule":
            return self._capsule(file)
        run = read_run(self.path)
        problems = list(run.problems)
        for entry in run.entries:
            whole = self.entries[entry["update"]]  # of which a part may have been a line of its own
            assert all(shown(whole[name]) == shown(value) for name, value in entry.items()), entry
        assert len(run.entries) >= len(self.entries) - 1
        lost = 0
        for each in (*run.arrays, *run.superseded_arrays):
            try:
                arrays = shown(each.load(problems))
            except RunFormatError as error:
                problems.append(str(error))
                lost += 1
                continue
            if each in run.arrays:
                name = f"{each.interval}/{each.iteration}"
                assert arrays.items() <= self.arrays[name].items(), name
                lost += len(arrays) < len(self.arrays[name])
        assert len(run.arrays) >= len(self.arrays) - 1
        assert lost <= 1
        return problems

    def _capsule(self, file: Path) -> list[str]:
        try:
            found = read_capsule(file)
        except RunFormatError as error:
            return [str(error)]
        assert found.about in ({}, self.capsule.about)
        whole = {each.key: each for each in self.capsule.values}
        assert all(
            each.values == whole[each.key].values and each.steps == whole[each.key].steps for each in found.values
        )
        return found.problems

    def _alone(self, read: Any, expected: Any) -> list[str]:
        try:
            found = read()
        except (RunFormatError, ConfigFileError) as error:
            return [str(error)]
        assert found == expected
        return []


def write_log(path: Path, values: dict[str, Any], updates: int = 3) -> None:
    counter = UpdateCounter()
    writer = LogWriter(path, update_counter=counter)
    for _ in range(updates):
        counter.next_update()
        for key, value in values.items():
            (writer.add_nonscalar if isinstance(value, str | list | dict) else writer.add_scalar)(key, value)
        writer.flush()
    writer.close()
