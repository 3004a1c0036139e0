"""Write entries as Weights & Biases runs: https://docs.wandb.ai/. Offline by default; `wandb sync` uploads what it wrote."""

from __future__ import annotations

import ast
import importlib.util
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from noether_core.dependencies import require
from noether_core.emit.trackers.process import ProcessTracker
from noether_core.errors import NoetherError, suggest
from noether_core.schedule import UNITS

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
    """Log to a W&B run; `update`, `epoch` and `sample` are further axes.

    A restart that continues the run (see `ProcessTracker`) is offline a second directory, which `wandb sync` appends.

    Args:
        directory: in which W&B makes its `wandb/`; the run directory.
        project: the W&B project.
        name: the run's name; by default the directory's.
        mode: `offline`, or `online`: then the entries leave this machine.
        settings: of `wandb.Settings`, over ours, which record nothing of the machine, the code and the terminal.
        **arguments: further ones of `wandb.init`, such as `entity`, `tags`, `group`, `config`; plain data.

    Raises:
        MissingDependencyError: if wandb is not installed.
        NoetherError: for another mode, an argument or setting that W&B does not have, or one that is not plain data.
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
        require("the wandb tracker", "wandb")
        _refuse_unknown("argument", arguments, ("wandb_init.py", "init"))
        _refuse_unknown("setting", settings or {}, ("wandb_settings.py", "Settings"))
        arguments |= {"project": project, "mode": mode}
        options = {"settings": {**_PRIVATE, **(settings or {})}, "arguments": arguments}
        super().__init__(directory, name, options, memory="wandb/noether.json")


def _refuse_unknown(what: str, given: Iterable[str], source: tuple[str, str]) -> None:
    """Raise for a name that a function or class of W&B does not take, read from its source: to import it takes a second."""
    spec = importlib.util.find_spec("wandb")
    file = Path(spec.origin if spec and spec.origin else "").parent / "sdk" / source[0]
    found = (
        [node for node in ast.parse(file.read_bytes()).body if getattr(node, "name", "") == source[1]]
        if file.exists()
        else []
    )
    for node in found:
        if isinstance(node, ast.FunctionDef):
            known = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        else:
            fields = (field for field in getattr(node, "body", ()) if isinstance(field, ast.AnnAssign))
            known = [field.target.id for field in fields if isinstance(field.target, ast.Name)]
        for name in given:
            if name not in known:
                raise NoetherError(
                    f"the wandb tracker got the {what} {name!r}, which wandb does not take.{suggest(name, known)}"
                )


class Tool:
    """Take the entries, in the child process."""

    def __init__(self, directory: str, name: str, run_id: str | None, settings: Any, arguments: Any) -> None:
        import wandb

        self.id = run_id or uuid.uuid4().hex[:16]
        self._run = wandb.init(
            dir=directory, id=self.id, name=name, resume="allow", settings=wandb.Settings(**settings), **arguments
        )
        for axis in UNITS:
            self._run.define_metric(axis, hidden=True)
        self._run.define_metric("*", step_metric="update")

    def log(self, entry: Mapping[str, Any]) -> None:
        """Take one entry."""
        self._run.log(dict(entry), step=entry["update"])

    def close(self) -> None:
        """Finish."""
        self._run.finish()
