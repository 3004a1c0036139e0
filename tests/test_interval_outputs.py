"""What comes out at an interval's end: messages, files, plain numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hook_cases import FRONT_ENDS, NAN, array, each_front_end, every, losses, saved_and_logged, tracker, train

from noether_core import UpdateCounter, read_run


@each_front_end
def test_verbose_tells_the_callbacks_logger(front_end: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = train(front_end, tmp_path, [every(2, verbose=True), every(1)], losses(front_end, 1, 2))
    name = "TrackAdditionalOutputsCallback(every_n_updates=2, keys=['loss'], patterns=[])"
    assert str(run.callbacks[0]) == name
    ours = [record for record in caplog.records if record.name.startswith("TrackAdditional")]
    assert [(record.name, record.levelno, record.getMessage()) for record in ours] == [
        (name, logging.INFO, "loss/U2: 1.50000")
    ]


@pytest.mark.parametrize(("fields", "directory"), [({}, "U2"), ({"id": "mine"}, "mine/U2")])
@each_front_end
def test_saved_output_is_a_file_an_interval(
    front_end: Any, fields: dict[str, Any], directory: str, tmp_path: Path
) -> None:
    config = every(2, keys=["loss", "field"], save_output=True, log_output=False, **fields)
    config["reduce"] = {"loss": ["mean", "last"], "field": "last"}
    steps = [
        {"loss": array(front_end, n), "field": array(front_end, [[n, 2 * n]], ml_dtypes.bfloat16)} for n in range(3)
    ]
    run = train(front_end, tmp_path, [config], steps)
    saved = tmp_path / "update_outputs" / directory
    assert run.callbacks[0].out == saved
    assert sorted(file.name for file in saved.iterdir()) == ["E0_U2_S2.safetensors", "E0_U3_S3.safetensors"]
    first, rest = (file.load() for file in read_run(tmp_path).arrays)
    assert {name: (value.dtype, value.shape) for name, value in first.items()} == {
        "field": (ml_dtypes.bfloat16, (1, 2)),
        "loss/last": (np.float32, ()),
        "loss/mean": (np.float32, ()),
    }
    assert [first["loss/mean"], first["loss/last"], rest["loss/mean"]] == [0.5, 1.0, 2.0]
    assert first["field"].astype(float).tolist() == [[1, 2]]
    assert run.log_writer.log_entries == []


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.uint64, np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
@each_front_end
def test_a_saved_last_keeps_its_dtype_and_bits(front_end: Any, dtype: Any, tmp_path: Path) -> None:
    value = np.asarray([0, 1, 1.5, 3], dtype)
    config = every(1, reduce="last", save_output=True, log_output=False)
    train(front_end, tmp_path, [config], [{"loss": array(front_end, value, dtype)}])
    (file,) = read_run(tmp_path).arrays
    found = file.load()["loss"]
    assert (found.dtype, found.tobytes()) == (value.dtype, value.tobytes())


def test_both_front_ends_write_the_same_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(7, 2, 3)).astype(np.float32)
    config = every(2, keys=["a/b", "c"], reduce={"a/b": ["mean", "last"]}, log_output=False, save_output=True)
    for front_end in FRONT_ENDS:
        steps = [{"a": {"b": array(front_end, value)}, "c": array(front_end, value[0, 0])} for value in values]
        train(front_end, tmp_path / front_end.__name__, [config, every(3, keys=["c"])], steps)
    first, second = (saved_and_logged([tmp_path / front_end.__name__]) for front_end in FRONT_ENDS)
    assert len(first) == 5
    assert first == second


@each_front_end
def test_a_writer_of_the_users_own_gets_plain_python_numbers(front_end: Any) -> None:
    class Mine:
        def __init__(self) -> None:
            self.logged: list[tuple[str, Any]] = []

        def add_scalar(self, key: str, value: Any, logger: Any = None, format_str: Any = None) -> None:
            self.logged.append((key, value))

    mine, counter = Mine(), UpdateCounter()
    callback = tracker(
        front_end, mine, **every(1, keys=["loss", "ok"], reduce={"loss": "mean", "ok": "last"}, nonfinite="skip")
    )
    callback.before_training(update_counter=counter)
    outputs = {"loss": array(front_end, [0.5, NAN]), "ok": array(front_end, True, np.bool_)}
    callback.track_after_accumulation_step(update_counter=counter, update_outputs=outputs)
    counter.next_update()
    callback.after_update(update_counter=counter)
    assert mine.logged == [("loss/mean/U1", 0.5), ("loss/nonfinite/U1", 1), ("ok/last/U1", True)]
    assert [type(value) for _, value in mine.logged] == [float, int, bool]
