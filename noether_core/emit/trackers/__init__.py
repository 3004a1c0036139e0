"""Trackers: views of a run's entries elsewhere. The run directory's JSONL is the truth; a tracker never changes it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from noether_core.errors import NoetherError, listing, suggest

_CLASSES = {
    "console": "ConsoleTracker",
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandbTracker",
    "trackio": "TrackioTracker",
    "mlflow": "MlflowTracker",
}
TOOLS = tuple(kind for kind in _CLASSES if kind != "console")


class Tracker(Protocol):
    """Take log entries: dicts with `epoch`, `update` and `sample`, then the values.

    Both methods are called on one thread, which is not the one that made the tracker; an attribute `inline = True` has them
    called by the training itself, and `in_every_process = True` in each process, not in the main one alone.
    """

    def log(self, entry: Mapping[str, Any]) -> None:
        """Take one entry."""

    def close(self) -> None:
        """Write what is still held."""


def make_trackers(trackers: Sequence[Tracker | str | Mapping[str, Any]], run_path: Path) -> list[Tracker]:
    """Return trackers, those given by name made for the run, in whose directory each tool has its files.

    Args:
        trackers: each is `"console"`, `"tensorboard"`, `"wandb"`, `"trackio"` or `"mlflow"`; or one of these with the class's
            arguments, `{"kind": "wandb", "project": "airfoil", "mode": "online"}`; or an object with `log` and `close`.
        run_path: the run directory.

    Raises:
        NoetherError: for an unknown name or option, or an object without `log` and `close`.
        MissingDependencyError: if a tool is not installed.
    """
    if isinstance(trackers, str | Mapping):
        given = f"the string {trackers!r}" if isinstance(trackers, str) else f"a mapping, {trackers!r:.80}"
        raise NoetherError(f"trackers is {given}; write a list: trackers=[{trackers!r}]")
    return [_make(tracker, run_path) for tracker in trackers]


def in_every_process(trackers: Sequence[Tracker | str | Mapping[str, Any]]) -> list[Tracker]:
    """Return those trackers that want to be called in each process."""
    return [
        each for each in trackers if not isinstance(each, str | Mapping) and getattr(each, "in_every_process", False)
    ]


def _make(tracker: Tracker | str | Mapping[str, Any], run_path: Path) -> Tracker:
    if isinstance(tracker, str):
        tracker = {"kind": tracker}
    if isinstance(tracker, Mapping):
        options = dict(tracker)
        kind = options.pop("kind", None)
        if not isinstance(kind, str):
            raise NoetherError(
                f"the tracker {tracker!r} has no kind; write {{'kind': 'wandb', ...}} with the tool's name"
            )
        directory = run_path if kind == "wandb" else run_path / kind  # W&B makes a wandb/ in the one it is given
        return make_tracker(kind, directory, run_path.resolve().name, options)
    if not (callable(getattr(tracker, "log", None)) and callable(getattr(tracker, "close", None))):
        raise NoetherError(f"tracker {tracker!r} has no log and close methods; give a name or an object with both")
    return tracker


def make_tracker(kind: str, directory: Path, name: str, options: Mapping[str, Any]) -> Tracker:
    """Return the tracker of that kind, with its files in a directory, and its run under a name if the tool has names.

    Raises:
        NoetherError: for an unknown kind or option.
        MissingDependencyError: if the tool is not installed.
    """
    if kind not in _CLASSES:
        raise NoetherError(f"unknown tracker {kind!r}; known are {listing(_CLASSES)}.{suggest(kind, _CLASSES)}")
    made: type[Any] = getattr(importlib.import_module(f"noether_core.emit.trackers.{kind}"), _CLASSES[kind])
    parameters = inspect.signature(made).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    known = [option for option in parameters if option != "directory"]  # in a run each tool has its place
    unknown = [option for option in options if option == "directory" or not (option in known or takes_any)]
    if unknown:
        raise NoetherError(
            f"the {kind} tracker got {listing(unknown)}, which it does not take; its options are {listing(known)}"
        )
    given = {"directory": directory, "name": name, **options}
    return made(**{option: given[option] for option in given if option in options or option in parameters})  # type: ignore[no-any-return]
