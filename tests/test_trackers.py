"""Each tool for real, three process starts on one run directory, read back with the tool's own reader."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tool_readers import Series, mlflow_runs, tensorboard_series, trackio_runs, wandb_runs

from noether_core import LogWriter, MissingDependencyError, NoetherError, UpdateCounter, read_run
from noether_core.dependencies import require
from noether_core.emit.trackers import make_trackers
from noether_core.emit.trackers.mlflow import MlflowTracker, metric_name
from noether_core.emit.trackers.trackio import TrackioTracker
from noether_core.emit.trackers.wandb import WandbTracker

TOOLS = ["wandb", "trackio", "mlflow"]
NONFINITE = {3: math.nan, 4: math.inf, 6: -math.inf}
STARTS = [range(1, 6), range(6, 9), range(4, 10)]  # the second goes on, the third begins again at 4


def logged(update: int) -> dict[str, Any]:
    return {
        "loss/U1": update / 3,
        "head[0] größe/U1": 0.1 * update,
        "tiny": 5e-324 * update,
        "odd": NONFINITE.get(update, -1e300),
        "flag": update % 2 == 0,
        "wide": 2**53 + update,
    }


def start(path: Path, updates: range, trackers: list[Any]) -> None:
    counter = UpdateCounter(updates_per_epoch=3, effective_batch_size=8)
    writer = LogWriter(path, update_counter=counter, trackers=make_trackers(trackers, path))
    for update in range(1, updates.stop):
        counter.add_samples(8)
        counter.next_update()
        if counter.is_full_epoch:
            counter.next_epoch()
        if update in updates:
            for key, value in logged(update).items():
                writer.add_scalar(key, value)
            writer.add_nonscalar("note", {"at": [update, "ß"]})
            writer.flush()
    writer.close(time_limit=120)


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trackers") / "airfoil"
    for updates in STARTS:
        start(path, updates, [*TOOLS, "tensorboard"])
    return path


def bits(value: Any) -> Any:
    """Return what tells every two numbers apart: NaN is like NaN, and 0.0 unlike -0.0."""
    return (
        (type(value), struct.pack("<d", math.nan if value != value else value)) if isinstance(value, float) else value
    )


def same(series: Series, key: str, updates: list[int], expected: list[Any]) -> None:
    assert [update for update, _ in series[key]] == updates
    found = [value for _, value in series[key]]
    # W&B's file is JSON in which a whole float looks like an int
    found = [float(value) if isinstance(at, float) else value for value, at in zip(found, expected, strict=True)]
    assert [bits(value) for value in found] == [bits(value) for value in expected]


def holds_everything(series: Series, updates: list[int]) -> None:
    for key in logged(1):
        same(series, key, updates, [logged(update)[key] for update in updates])
    same(series, "epoch", updates, [update // 3 for update in updates])
    same(series, "sample", updates, [update * 8 for update in updates])


def test_the_jsonl_has_every_start(run_path: Path) -> None:
    run = read_run(run_path)
    assert [entry["update"] for entry in run.entries] == list(range(1, 10))
    assert run.superseded == 5


def test_wandb_has_the_numbers_of_the_jsonl(run_path: Path) -> None:
    first, second = sorted(wandb_runs(run_path).values(), key=len, reverse=True)
    holds_everything(first[0], [*STARTS[0]])
    holds_everything(first[1], [*STARTS[1]])
    (only,) = second
    holds_everything(only, [*STARTS[2]])
    same(only, "update", [*STARTS[2]], [*STARTS[2]])
    assert only["note/at"][0] == (4, [4, "ß"])


def test_trackio_has_the_numbers_of_the_jsonl(run_path: Path) -> None:
    runs = trackio_runs(run_path / "trackio")
    assert set(runs) == {"airfoil", "airfoil-2"}
    holds_everything(runs["airfoil"], [*STARTS[0], *STARTS[1]])
    holds_everything(runs["airfoil-2"], [*STARTS[2]])
    assert runs["airfoil-2"]["note"][0] == (4, {"at": [4, "ß"]})


def mlflow_value(value: Any) -> float:
    """Return what MLflow's SQLite store keeps: binary64, its infinities as the largest finite numbers."""
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else float(value)


def test_mlflow_has_the_numbers_of_the_jsonl(run_path: Path) -> None:
    runs = mlflow_runs(run_path / "mlflow")
    assert set(runs) == {"airfoil", "airfoil-2"}
    for name, updates in {"airfoil": [*STARTS[0], *STARTS[1]], "airfoil-2": [*STARTS[2]]}.items():
        assert runs[name]["status"] == "FINISHED"
        metrics = runs[name]["metrics"]
        for key in logged(1):
            same(metrics, metric_name(key), updates, [mlflow_value(logged(update)[key]) for update in updates])
        same(metrics, "epoch", updates, [float(update // 3) for update in updates])
        same(metrics, "sample", updates, [update * 8.0 for update in updates])
        assert runs[name]["tags"]["note"] == str({"at": [updates[-1], "ß"]})


def single(value: Any) -> float:
    """Return what TensorBoard keeps: binary32."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def newest(starts: list[Series], key: str) -> list[tuple[int, Any]]:
    """Return one key's points over several starts, each taking the place of what the ones before had from its first on."""
    points: list[tuple[int, Any]] = []
    for series in starts:
        first = series[key][0][0]
        points = [point for point in points if point[0] < first] + series[key]
    return points


def test_each_tool_s_own_reader_gives_the_numbers_of_one_jsonl(run_path: Path) -> None:
    """All four tools followed one run; each number is bit by bit the JSONL's, in the format that the tool keeps."""
    series = read_run(run_path).series
    wandb = [start for starts in sorted(wandb_runs(run_path).values(), key=len, reverse=True) for start in starts]
    trackio, mlflow = trackio_runs(run_path / "trackio"), mlflow_runs(run_path / "mlflow")
    curves = tensorboard_series(run_path / "tensorboard")
    for key in logged(1):
        updates, values = [point.update for point in series[key]], [point.value for point in series[key]]
        assert updates == list(range(1, 10))
        same({key: newest(wandb, key)}, key, updates, values)
        same({key: newest([trackio["airfoil"], trackio["airfoil-2"]], key)}, key, updates, values)
        metrics = [mlflow[name]["metrics"] for name in ("airfoil", "airfoil-2")]
        name = metric_name(key)
        same({name: newest(metrics, name)}, name, updates, [mlflow_value(value) for value in values])
        same(curves, key, updates, [single(value) for value in values])


def test_nothing_is_outside_the_run_directory(run_path: Path) -> None:
    assert {path.name for path in run_path.iterdir()} == {"metrics", "tensorboard", *TOOLS}
    assert [path.name for path in run_path.parent.iterdir()] == ["airfoil"]


def test_one_run_is_flushed_twice_for_one_update(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter, trackers=make_trackers(["wandb", "trackio"], tmp_path))
    counter.next_update()
    writer.add_scalar("first", 1.5)
    writer.flush()
    writer.add_scalar("second", 2.5)
    writer.close(time_limit=120)
    (directories,) = wandb_runs(tmp_path).values()
    (trackio,) = trackio_runs(tmp_path / "trackio").values()
    for series in (directories[0], trackio):
        assert (series["first"], series["second"]) == ([(1, 1.5)], [(1, 2.5)])


def test_options_are_given_by_a_mapping_or_to_the_class(tmp_path: Path) -> None:
    by_mapping = {"kind": "trackio", "project": "airfoil", "name": "mapped"}
    start(tmp_path / "a", range(1, 3), [by_mapping])
    start(tmp_path / "b", range(1, 3), [TrackioTracker(tmp_path / "b" / "store", project="airfoil", name="made")])
    assert set(trackio_runs(tmp_path / "a" / "trackio", "airfoil")) == {"mapped"}
    assert set(trackio_runs(tmp_path / "b" / "store", "airfoil")) == {"made"}


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ({"project": "airfoil"}, "has no kind"),
        ({"kind": "wandbb"}, r"Did you mean 'wandb'\?"),
        (
            {"kind": "mlflow", "project": "airfoil"},
            "mlflow tracker got 'project', which it does not take; its options are 'experiment', 'name'",
        ),
        ({"kind": "wandb", "mode": "on"}, "mode='on'; expected 'offline' or 'online'"),
        ({"kind": "wandb", "resume": "never"}, r"\['resume'\], which it sets itself"),
        ({"kind": "wandb", "config": {"f": object()}}, "cannot be sent to its process"),
        ({"kind": "trackio", "directory": "elsewhere"}, "'directory'"),
    ],
)
def test_wrong_options_are_refused_at_once(tmp_path: Path, tracker: Any, message: str) -> None:
    with pytest.raises(NoetherError, match=message):
        make_trackers([tracker], tmp_path)


@pytest.mark.parametrize(
    ("make", "package", "extra"),
    [(WandbTracker, "wandb", "wandb"), (TrackioTracker, "trackio", "trackio"), (MlflowTracker, "alembic", "mlflow")],
)
def test_a_tool_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"needs {package}.*pip install '\.\[{extra}\]'"):
        make(tmp_path)


def test_a_folder_named_like_a_tool_is_not_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "just_a_folder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError, match="just_a_folder"):
        require("the wandb tracker", "just_a_folder")


def test_making_a_tracker_imports_no_tool(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from noether_core.emit.trackers import make_trackers
make_trackers({TOOLS}, Path({str(tmp_path)!r}))
assert not {{"wandb", "trackio", "mlflow", "sqlalchemy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_names_for_mlflow_differ_and_are_allowed() -> None:
    keys = [
        "a",
        "a[0]",
        "a(0)",
        "a:5b:",
        "a[",
        "../x",
        "/x",
        "x",
        "a//b",
        "a/b",
        "a/./b",
        "a" * 251,
        "a" * 252,
        "",
        "🧪",
        "\0",
    ]
    names = [metric_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    script = """
import json, sys
from mlflow.utils.validation import _validate_metric_name
for name in json.load(sys.stdin):
    _validate_metric_name(name)
"""
    subprocess.run([sys.executable, "-c", script], input=json.dumps(names), text=True, check=True, timeout=60)
