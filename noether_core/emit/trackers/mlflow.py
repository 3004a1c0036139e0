"""Write entries to a local MLflow store, one SQLite file: https://mlflow.org/docs/latest/. Nothing leaves this machine."""

from __future__ import annotations

import hashlib
import posixpath
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from noether_core.emit.trackers import require
from noether_core.emit.trackers.continuation import Continuation
from noether_core.emit.trackers.process import ProcessTracker
from noether_core.emit.trackers.values import as_float, is_number

_MOST_METRICS = 1000  # a batch
_LONGEST_NAME = 250
_LONGEST_TAG = 5000


class MlflowTracker(ProcessTracker):
    """Log to an MLflow run in `<directory>/mlflow.db`: the update is its step; `epoch` and `sample` are metrics too.

    `mlflow ui --backend-store-uri sqlite:///<directory>/mlflow.db` shows it. A restart that goes on where the run stopped
    continues it; one that begins earlier is a second run, `<name>-2`. Numbers are kept as binary64, but MLflow's SQLite store
    keeps an infinity as the largest finite number of its sign. A value that is no number is a tag, the newest one staying.
    MLflow allows fewer characters in a name: see `metric_name`.

    Args:
        directory: where the database and the artifacts go.
        experiment: the MLflow experiment.
        name: the run's name; by default the directory's.

    Raises:
        MissingDependencyError: if MLflow or what its SQLite store needs is not installed.
    """

    kind: ClassVar[str] = "mlflow"

    def __init__(self, directory: str | Path, *, experiment: str = "noether", name: str | None = None) -> None:
        require("mlflow", "mlflow", "alembic", "sqlalchemy")
        super().__init__(directory, {"experiment": experiment, "name": name or Path(directory).resolve().name})


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


def open_tool(directory: str, experiment: str, name: str) -> _Tool:
    """Return what takes the entries; for the child process."""
    return _Tool(Path(directory), experiment, name)


class _Tool:
    def __init__(self, directory: Path, experiment: str, name: str) -> None:
        self._directory = directory
        self._experiment = experiment
        self._name = name
        self._continuation = Continuation(directory / "noether.json")
        self._client: Any = None

    def _open(self, update: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import RunStatus

        store = f"sqlite:///{self._directory / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=store, registry_uri=store)
        if self._continuation.follows(update):
            self._client.update_run(self._continuation.id, RunStatus.to_string(RunStatus.RUNNING))
            return
        found = self._client.get_experiment_by_name(self._experiment)
        artifacts = (self._directory / "artifacts").as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment, artifacts)
        number = self._continuation.number + 1
        run = self._client.create_run(experiment, run_name=self._name if number == 1 else f"{self._name}-{number}")
        self._continuation.begin(run.info.run_id)

    def log(self, entry: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        update = entry["update"]
        if self._client is None:
            self._open(update)
        self._continuation.note(update)
        now = time.time_ns() // 1_000_000
        named = {metric_name(key): value for key, value in entry.items() if key != "update"}
        metrics = [Metric(key, as_float(value), now, update) for key, value in named.items() if is_number(value)]
        tags = [RunTag(key, str(value)[:_LONGEST_TAG]) for key, value in named.items() if not is_number(value)]
        for at in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._continuation.id, metrics=metrics[at : at + _MOST_METRICS])
        for tag in tags:
            self._client.set_tag(self._continuation.id, tag.key, tag.value)

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._continuation.id)
