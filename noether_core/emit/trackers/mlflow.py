"""Write entries to a local MLflow store, one SQLite file: https://mlflow.org/docs/latest/. Nothing leaves this machine."""

from __future__ import annotations

import hashlib
import posixpath
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from noether_core.dependencies import require
from noether_core.emit.trackers.process import ProcessTracker
from noether_core.text import as_float

_MOST_METRICS = 1000  # a batch
_LONGEST_NAME = 250
_LONGEST_TAG = 5000


class MlflowTracker(ProcessTracker):
    """Log to an MLflow run in `<directory>/mlflow.db`; `epoch` and `sample` are metrics too.

    `mlflow ui --backend-store-uri sqlite:///<directory>/mlflow.db` shows it. MLflow's SQLite store keeps an infinity as the
    largest finite number of its sign, and allows fewer characters in a name: see `metric_name`. A value that is no number is
    a tag, the newest one staying. See `ProcessTracker` for restarts.

    Raises:
        MissingDependencyError: if MLflow or what its SQLite store needs is not installed.
    """

    kind: ClassVar[str] = "mlflow"

    def __init__(self, directory: str | Path, *, experiment: str = "noether", name: str | None = None) -> None:
        require("the mlflow tracker", "mlflow", "alembic", "sqlalchemy")
        super().__init__(directory, name, {"experiment": experiment})


def metric_name(key: str) -> str:
    """Return a key as a name that MLflow takes; keys that differ give names that differ.

    What it does not take is written as the character's number between colons, and of a name beyond 250 characters a digest
    stands for the end.

    >>> metric_name("grad/norm/U10"), metric_name("head[0]/U1"), metric_name("../x")
    ('grad/norm/U10', 'head:5b:0:5d:/U1', ':2e::2e::2f:x')
    """
    name = re.sub(r"[^\w./ :-]|:(?=[0-9a-f]+:)", _numbered, key)
    if posixpath.normpath(name) != name or name.startswith(("/", "..")):
        name = re.sub(r"[./]", _numbered, name)
    if len(name) > _LONGEST_NAME or not name:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        name = f"{name[: _LONGEST_NAME - 33]}-{digest}"
    return name


def _numbered(match: re.Match[str]) -> str:
    return f":{ord(match[0]):x}:"


class Tool:
    """Take the entries, in the child process."""

    def __init__(self, directory: str, name: str, run_id: str | None, experiment: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import RunStatus

        store = f"sqlite:///{directory}/mlflow.db"
        self._client = MlflowClient(tracking_uri=store, registry_uri=store)
        if run_id is not None:
            self.id = run_id
            self._client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            return
        found = self._client.get_experiment_by_name(experiment)
        artifacts = (Path(directory) / "artifacts").as_uri()
        number = found.experiment_id if found else self._client.create_experiment(experiment, artifacts)
        self.id = self._client.create_run(number, run_name=name).info.run_id

    def log(self, entry: Mapping[str, Any]) -> None:
        """Take one entry."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [
            Metric(metric_name(key), as_float(value), now, entry["update"])
            for key, value in entry.items()
            if isinstance(value, int | float) and key != "update"
        ]
        for at in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self.id, metrics=metrics[at : at + _MOST_METRICS])
        for key, value in entry.items():
            if not isinstance(value, int | float):
                self._client.set_tag(self.id, metric_name(key), str(value)[:_LONGEST_TAG])

    def close(self) -> None:
        """Finish."""
        self._client.set_terminated(self.id)
