"""Of eight processes one writes, and each tracker has one run, with what the JSONL has."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_readers import mlflow_runs, tensorboard_series, trackio_runs, wandb_runs

from noether_core import read_run
from noether_core.emit.trackers.mlflow import metric_name
from parity_tests.processes import Group

TRACKERS = ["tensorboard", "wandb", "trackio", "mlflow"]
UPDATES = 6
TRAIN = """
import os, pathlib
opened = set()
real = os.open
def noting(path, flags, *arguments, **named):
    if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith({path!r}):
        opened.add(str(path))
    return real(path, flags, *arguments, **named)
os.open = noting
config = {{"every_n_updates": 2, "keys": ["x"], "reduce": "sum", "save_output": True}}
with Run({path!r}, [config], trackers={trackers}, time_limit=120.0) as run:
    for update in range({updates}):
        run.step({{"x": 2.0**index}})
os.open = real
value = sorted(path for path in opened if "/unmerged/" not in path)
"""


@pytest.mark.parametrize(
    ("front_end", "count"),
    [
        ("torch", 2),
        pytest.param("torch", 8, marks=pytest.mark.slow),
        pytest.param("jax", 8, marks=pytest.mark.slow),
    ],
)
def test_one_process_writes_and_each_tracker_has_one_run(front_end: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    trackers = TRACKERS if count == 8 else ["tensorboard"]
    with Group(front_end, count) as group:
        answers = group.values(TRAIN.format(path=str(path), trackers=trackers, updates=UPDATES))
    assert answers[0] != []
    assert answers[1:] == [[]] * (count - 1)  # but for what each keeps of an interval, until it is pooled
    total = 2.0 * (2**count - 1)
    points = [(update, total) for update in range(2, UPDATES + 1, 2)]
    read = read_run(path)
    assert read.problems == []
    assert [
        *zip(read.series["x/sum/U2"].update.tolist(), read.series["x/sum/U2"].value.tolist(), strict=True)
    ] == points
    assert [float(file.load()["x"]) for file in read.arrays] == [total] * 3
    assert [file.name for file in path.glob("metrics/*.jsonl") if file.stem.isdigit()] == ["1.jsonl"]
    assert not [*path.glob("unmerged/**/*.safetensors")]
    (directory,) = {file.parent for file in path.rglob("*tfevents*")}
    assert len([*directory.glob("*tfevents*")]) == 1
    assert tensorboard_series(directory)["x/sum/U2"] == points
    if count < 8:
        return
    ((series,),) = wandb_runs(path).values()
    assert series["x/sum/U2"] == points
    (run,) = trackio_runs(path / "trackio").values()
    assert run["x/sum/U2"] == points
    (run,) = mlflow_runs(path / "mlflow").values()
    assert run["metrics"][metric_name("x/sum/U2")] == points
