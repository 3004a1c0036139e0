"""Read back what each tool stored, with the tool's own reader: {run: {key: [(update, value)]}}."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Series = dict[str, list[tuple[int, Any]]]

TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
runs = SQLiteStorage.get_run_records(sys.argv[1])
print(json.dumps({run["name"]: SQLiteStorage.get_logs(sys.argv[1], run["name"], run_id=run["id"]) for run in runs}))
"""

MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri="sqlite:///" + sys.argv[1])
found = {}
for experiment in client.search_experiments(filter_string=f"name = 'noether'"):
    for run in client.search_runs([experiment.experiment_id]):
        histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        found[run.info.run_name] = {
            "status": run.info.status,
            "tags": run.data.tags,
            "metrics": {key: [(m.step, m.value) for m in history] for key, history in histories.items()},
        }
print(json.dumps(found))
"""


def _python(script: str, *arguments: str, **environment: str) -> Any:
    """Run a tool's reader in a process of its own: trackio has one store a process, and MLflow reports its use."""
    variables = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def tensorboard_series(directory: Path) -> Series:
    """Return the curves that TensorBoard shows: {tag: [(update, value)]}, what a restart took the place of left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def trackio_runs(directory: Path, project: str = "noether") -> dict[str, Series]:
    found = _python(TRACKIO, project, TRACKIO_DIR=str(directory))
    return {name: _by_key(rows, "step", {"timestamp"}) for name, rows in found.items()}


def mlflow_runs(directory: Path) -> dict[str, Any]:
    found = _python(MLFLOW, str(directory / "mlflow.db"))
    for run in found.values():
        run["metrics"] = {
            key: [(step, value) for step, value in sorted(points, key=lambda point: point[0])]
            for key, points in run["metrics"].items()
        }
    return found


def wandb_runs(directory: Path) -> dict[str, list[Series]]:
    """Return each run id's directories in the order of time: a run that was gone on with has several."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[Series]] = {}
    for file in sorted((directory / "wandb").glob("offline-run-*/*.wandb")):
        rows = []
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {
                    "/".join(item.nested_key) or item.key: _number(item.value_json) for item in record.history.item
                }
                assert items["_step"] == record.history.step.num
                rows.append(items)
        found.setdefault(file.stem.removeprefix("run-"), []).append(_by_key(rows, "_step", {"_runtime", "_timestamp"}))
    return found


def _number(text: str) -> Any:
    return -0.0 if text == "-0" else json.loads(text)


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Return the records of a .wandb file: LevelDB's log format behind a header of 7 bytes, with checked CRC-32s.

    https://github.com/google/leveldb/blob/main/doc/log_format.md; wandb 0.31 ships no Python reader for it.
    """
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part = data[at + 7 : at + 7 + length]
        assert checksum == zlib.crc32(bytes([kind]) + part)
        whole += part
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield whole
            whole = b""


def _by_key(rows: list[dict[str, Any]], step: str, without: set[str]) -> Series:
    series: Series = {}
    for row in rows:
        for key, value in row.items():
            if key != step and key not in without:
                series.setdefault(key, []).append((row[step], value))
    return series
