"""Write entries as Weights & Biases runs: https://docs.wandb.ai/. Offline by default; `wandb sync` uploads what it wrote."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from noether_core.emit.trackers import require
from noether_core.emit.trackers.continuation import Continuation
from noether_core.emit.trackers.process import ProcessTracker
from noether_core.emit.trackers.values import storable
from noether_core.errors import NoetherError

# Nothing of the machine, the code or the terminal is recorded: only what is logged.
_PRIVATE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandbTracker(ProcessTracker):
    """Log to a W&B run: the update is its step; `update`, `epoch` and `sample` are further axes.

    A restart that goes on where the run stopped continues it (same id, `resume="allow"`); offline that is a second directory,
    which `wandb sync` appends. One that begins earlier is a second run. Numbers are kept as binary64;
    an int beyond 64 bits is rounded to that.

    Args:
        directory: in which W&B makes its `wandb/`; the run directory.
        project: the W&B project.
        name: the run's name; by default the directory's.
        mode: `offline`, or `online`: then the entries leave this machine.
        settings: of `wandb.Settings`, over ours, which record nothing of the machine, the code and the terminal.
        **arguments: further ones of `wandb.init`, such as `entity`, `tags`, `group`, `config`; plain data.

    Raises:
        MissingDependencyError: if wandb is not installed.
        NoetherError: for another mode, or an argument that is not plain data.
    """

    kind: ClassVar[str] = "wandb"

    def __init__(
        self,
        directory: str | Path,
        *,
        project: str = "noether",
        name: str | None = None,
        mode: str = "offline",
        settings: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if mode not in {"offline", "online"}:
            raise NoetherError(f"the wandb tracker got mode={mode!r}; expected 'offline' or 'online'")
        taken = sorted({"dir", "id", "resume", "reinit"} & set(arguments))
        if taken:
            raise NoetherError(f"the wandb tracker got {taken}, which it sets itself: leave them out")
        require("wandb", "wandb")
        arguments |= {"project": project, "name": name or Path(directory).resolve().name, "mode": mode}
        super().__init__(directory, {"settings": {**_PRIVATE, **(settings or {})}, "arguments": arguments})


def open_tool(directory: str, settings: dict[str, Any], arguments: dict[str, Any]) -> _Tool:
    """Return what takes the entries; for the child process."""
    return _Tool(Path(directory), settings, arguments)


class _Tool:
    def __init__(self, directory: Path, settings: dict[str, Any], arguments: dict[str, Any]) -> None:
        self._directory = directory
        self._settings = settings
        self._arguments = arguments
        self._continuation = Continuation(directory / "wandb" / "noether.json")
        self._run: Any = None

    def _open(self, update: int) -> Any:
        import wandb

        if not self._continuation.follows(update):
            self._continuation.begin(uuid.uuid4().hex[:16])
            if self._continuation.number > 1:
                self._arguments["name"] += f"-{self._continuation.number}"
        run = wandb.init(
            dir=self._directory,
            id=self._continuation.id,
            resume="allow",
            settings=wandb.Settings(**self._settings),
            **self._arguments,
        )
        for axis in ("update", "epoch", "sample"):
            run.define_metric(axis, hidden=True)
        run.define_metric("*", step_metric="update")
        return run

    def log(self, entry: Mapping[str, Any]) -> None:
        update = entry["update"]
        if self._run is None:
            self._run = self._open(update)
        self._continuation.note(update)
        self._run.log({key: storable(value) for key, value in entry.items()}, step=update)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
