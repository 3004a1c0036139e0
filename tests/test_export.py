"""`noether-parity export` fills each tool from a run directory: every key and update once, and again when asked again."""

from __future__ import annotations

import csv
import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tool_readers import mlflow_runs, tensorboard_series, trackio_runs, wandb_runs

from noether_core import LogWriter, MissingDependencyError, NoetherError, UpdateCounter, read_run
from noether_core.cli import main
from noether_core.emit.export import export_run

VALUES = [0.1, 1 / 3, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 2.0**53, -1e-17]


def write(path: Path, updates: range, keys: tuple[str, ...] = ("loss/U1",)) -> None:
    counter = UpdateCounter(effective_batch_size=8)
    writer = LogWriter(path, update_counter=counter)
    for update in range(1, updates.stop):
        counter.add_samples(8)
        counter.next_update()
        if update in updates:
            for key in keys:
                writer.add_scalar(key, VALUES[update % len(VALUES)])
            if update % 3 == 0:
                writer.add_scalar("third", update)
            writer.flush()
    writer.close()


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    """Return a run that was taken up from an older checkpoint."""
    write(tmp_path / "airfoil", range(1, 31), ("loss/U1", "gone"))
    write(tmp_path / "airfoil", range(11, 41))
    return tmp_path / "airfoil"


def same(left: float, right: float) -> bool:
    return struct.pack("<d", left) == struct.pack("<d", right) or (left != left and right != right)


def equal(points: list[tuple[int, Any]], expected: list[tuple[int, Any]]) -> bool:
    return len(points) == len(expected) and all(
        a[0] == b[0] and same(a[1], b[1]) for a, b in zip(points, expected, strict=True)
    )


def expected(path: Path, key: str = "loss/U1") -> list[tuple[int, Any]]:
    return [(point.update, point.value) for point in read_run(path).series[key]]


def single(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def mlflow_value(value: float) -> float:
    finite = math.copysign(sys.float_info.max, value) if math.isinf(value) else float(value)
    return finite + 0.0  # SQLite has no -0.0


def test_each_tool_gets_each_update_once_even_when_exported_twice(run_path: Path) -> None:
    for _ in range(2):
        paths = {tool: export_run(run_path, tool).path for tool in ("tensorboard", "wandb", "trackio", "mlflow")}
    assert all(path == run_path / "exports" / tool for tool, path in paths.items())
    ((wandb,),) = wandb_runs(paths["wandb"]).values()
    trackio = trackio_runs(paths["trackio"])
    mlflow = mlflow_runs(paths["mlflow"])
    assert list(trackio) == list(mlflow) == ["airfoil"]
    curves = tensorboard_series(paths["tensorboard"])
    for key in ("loss/U1", "gone", "third"):
        exact = expected(run_path, key)
        assert equal(wandb[key], exact)
        assert equal(trackio["airfoil"][key], exact)
        assert equal(mlflow["airfoil"]["metrics"][key], [(update, mlflow_value(value)) for update, value in exact])
        assert equal(curves[key], [(update, single(value)) for update, value in exact])
    assert len(expected(run_path)) == 40
    assert [update for update, _ in expected(run_path, "gone")] == list(range(1, 11))


def test_csv_reads_back_to_the_same_bits(run_path: Path) -> None:
    path = export_run(run_path, "csv").path
    assert path == run_path / "exports" / "metrics.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "update", "sample", "loss/U1", "gone", "third"]
    assert [(int(row["epoch"]), int(row["update"]), int(row["sample"])) for row in rows] == [
        (0, update, 8 * update) for update in range(1, 41)
    ]
    assert equal([(int(row["update"]), float(row["loss/U1"])) for row in rows], expected(run_path))
    assert [(int(row["update"]), int(row["third"])) for row in rows if row["third"]] == expected(run_path, "third")
    before = path.read_bytes()
    assert export_run(run_path, "csv").path.read_bytes() == before


def test_parquet_reads_back_to_the_same_bits(run_path: Path) -> None:
    path = export_run(run_path, "parquet").path
    table = pyarrow.parquet.read_table(path)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        *((name, "int64") for name in ("epoch", "update", "sample")),
        ("loss/U1", "double"),
        ("gone", "double"),
        ("third", "int64"),
    ]
    rows = table.to_pylist()
    for key in ("loss/U1", "gone", "third"):
        assert equal([(row["update"], row[key]) for row in rows if row[key] is not None], expected(run_path, key))


def test_tables_never_round_and_keep_what_is_no_number(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, update_counter=(counter := UpdateCounter()))
    columns: dict[str, list[Any]] = {
        "flag": [True, False],
        "mixed": [1, 0.5],
        "too wide": [2**53 + 1, 0.5],
        "huge": [10**400, 1],
        "text": ['a,"b"\n', "-1+1"],
        "list": [[1, 0.5], {"ß": True}],
    }
    for at in range(2):
        counter.next_update()
        for key, values in columns.items():
            (writer.add_scalar if isinstance(values[at], bool | int | float) else writer.add_nonscalar)(key, values[at])
        writer.flush()
    writer.close()
    table = pyarrow.parquet.read_table(export_run(tmp_path, "parquet").path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types | {"flag": "bool", "mixed": "double"} == types
    assert table["flag"].to_pylist() == [True, False]
    assert table["mixed"].to_pylist() == [1.0, 0.5]
    with export_run(tmp_path, "csv").path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for read in (rows, table.to_pylist()):
        assert [row["too wide"] for row in read] == ["9007199254740993", "0.5"]
        assert [int(row["huge"]) for row in read] == [10**400, 1]
        assert [row["text"].removeprefix("'") for row in read] == columns["text"]
        assert [json.loads(row["list"]) for row in read] == columns["list"]
    assert [row["flag"] for row in rows] == ["True", "False"]


def test_a_directory_that_no_export_wrote_is_left_alone(run_path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "mine" / "events"
    precious.parent.mkdir()
    precious.write_text("precious")
    with pytest.raises(NoetherError, match="is no earlier export, so it is left as it is; give a new directory"):
        export_run(run_path, "tensorboard", precious.parent)
    with pytest.raises(NoetherError, match="is no earlier export"):
        export_run(run_path, "tensorboard", precious)
    assert precious.read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert export_run(run_path, "tensorboard", tmp_path / "empty").entries == 40
    with pytest.raises(NoetherError, match="is a directory, which a new file would replace"):
        export_run(run_path, "csv", tmp_path / "empty")
    assert export_run(run_path, "csv", tmp_path / "new" / "table.csv").path.is_file()


def test_what_cannot_be_exported_is_one_message(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoetherError, match=r"cannot export to 'tensorbord'.*Did you mean 'tensorboard'\?"):
        export_run(run_path, "tensorbord")
    with pytest.raises(NoetherError, match="does not exist"):
        export_run(tmp_path / "absent", "csv")
    (tmp_path / "bare" / "metrics").mkdir(parents=True)
    with pytest.raises(NoetherError, match="nothing to export"):
        export_run(tmp_path / "bare", "csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[parquet\]'"):
        export_run(run_path, "parquet")
    assert not (run_path / "exports").exists()


def test_the_command_says_what_it_wrote_and_what_is_damaged(
    run_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run_path / "metrics" / "2.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    out = run_path.parent / "table.csv"
    monkeypatch.setattr(sys, "argv", ["noether-parity", "export", str(run_path), "--to", "csv", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == 0
    assert captured.out == f"39 entries: {out}\n"
    assert captured.err.startswith(f"damaged, left out: {file}, byte ")
    assert len(out.read_text().splitlines()) == 40


def test_tensorboard_gets_the_times_of_the_training(run_path: Path, tmp_path: Path) -> None:
    export_run(run_path, "tensorboard", tmp_path / "board")
    accumulator = EventAccumulator(str(tmp_path / "board"), size_guidance={"scalars": 0}).Reload()
    series = read_run(run_path).series
    for tag in accumulator.Tags()["scalars"]:
        times = dict(zip(series[tag].update.tolist(), series[tag].time.tolist(), strict=True))
        for event in accumulator.Scalars(tag):
            assert event.wall_time == pytest.approx(times[event.step], abs=1e-5)
