"""What was probed outlives kills, is superseded as a log is, says what is damaged, and is read by columns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probed_trainings import train_torch
from typer.testing import CliRunner

import noether_torch
from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.cli import app
from noether_core.config.loop import ProbeCallbackConfig
from noether_core.emit.array_reader import ArrayReader
from noether_core.parity import read_recording
from noether_core.parity.check import check_run
from noether_core.probes import ProbeCallback, Probed, read_training
from noether_core.probes.callback import MOST_OF_ARRAYS
from noether_torch.backend import BACKEND

EVERY = {"every_n_updates": 1, "arrays": 6, "arrays_at": [9]}


class Callback(ProbeCallback):
    backend: Any = BACKEND
    framework = "torch"


def probed(values: dict[str, Any], arrays: tuple[str, ...] = ()) -> Probed:
    tensors = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in values.items()}
    found = noether_torch.ProbeCallback.measured(tensors, noether_torch.probes.Due(True))
    found.arrays, found.limit = {key: tensors[key] for key in arrays}, 2**20
    return found


def run_of(path: Path, steps: list[Probed], **fields: Any) -> Callback:
    """Save what was probed of updates."""
    counter = UpdateCounter()
    writer = LogWriter(path, update_counter=counter)
    callback = Callback(ProbeCallbackConfig(**fields), log_writer=writer, output_path=path)
    callback.before_training(update_counter=counter)
    for step in steps:
        callback.track_after_accumulation_step(update_counter=counter, update_outputs={"probes": step})
        counter.next_update()
        callback.track_after_update_step(update_counter=counter)
    callback.after_training(update_counter=counter)
    writer.close()
    return callback


def test_a_resumed_run_has_each_update_once_as_the_whole_one_has(tmp_path: Path) -> None:
    train_torch(tmp_path / "whole", EVERY)
    train_torch(tmp_path / "a", EVERY, last=8)
    before = read_training(tmp_path / "a")
    assert before.updates() == list(range(1, 9))
    train_state = tmp_path / "state"  # after update 4, of the second training
    train_torch(tmp_path / "a", EVERY, resume=train_state, last=12)
    whole, resumed = read_training(tmp_path / "whole"), read_training(tmp_path / "a")
    assert resumed.updates() == whole.updates() == list(range(1, 13))
    assert resumed.problems == []
    assert resumed.array_updates() == whole.array_updates() == [*range(1, 7), 9]
    updates, columns = resumed.statistics_columns("data/x")
    assert updates.tolist() == list(range(1, 13))
    np.testing.assert_array_equal(columns.fingerprint, whole.statistics_columns("data/x")[1].fingerprint)
    for update in range(1, 5):  # of the first start, in a file whose later rows are superseded
        assert resumed.statistics(update, "param/0.weight") == before.statistics(update, "param/0.weight")
    # the second one's weights are new ones, so what it computed from update 5 on is its own
    assert resumed.statistics(5, "param/0.weight") != before.statistics(5, "param/0.weight")
    assert check_run(tmp_path / "a").is_clean


CHILD = """
import sys, time, torch, noether_torch
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with noether_torch.Run(sys.argv[1], [{"kind": "ProbeCallback", "every_n_updates": 1, "arrays": 2}]) as run:
    run.probe(model, optimizer)
    while True:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        run.step({})
        print(run.counter.update, time.monotonic(), flush=True)
        time.sleep(0.02)
"""


def test_a_killed_run_has_what_it_probed_up_to_two_seconds_before(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = []
        begun = time.monotonic()
        for line in child.stdout:
            lines.append((int(line.split()[0]), float(line.split()[1])))
            if time.monotonic() - begun > 4 and len(lines) > 20:
                break
        os.kill(child.pid, signal.SIGKILL)
    training = read_training(tmp_path)
    settled = [update for update, at in lines if at < lines[-1][1] - 2.5]
    assert training.updates()[: len(settled)] == settled
    assert training.array_updates()[:2] == [1, 2]
    assert training.array(2, "grad/weight") is not None


def test_keys_that_come_and_go_and_those_of_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noether_core.probes.callback.MOST_ROWS", 4)
    steps = [probed({"loss/a": update, **({"grad/b": [update, 1.0]} if update % 3 else {})}) for update in range(1, 12)]
    run_of(tmp_path, steps)
    training = read_training(tmp_path)
    assert len(list(tmp_path.rglob("statistics/*.safetensors"))) == 3
    updates, columns = training.statistics_columns("loss/a")
    assert updates.tolist() == columns.mean.tolist() == list(range(1, 12))
    updates, columns = training.statistics_columns("grad/b")
    assert updates.tolist() == [update for update in range(1, 12) if update % 3]
    assert columns.max.tolist() == updates.tolist()
    assert columns.count.tolist() == [2] * len(updates)
    assert training.keys(3) == ["loss/a"]
    assert training.keys(4) == ["loss/a", "grad/b"]
    assert training.statistics(3, "grad/b") is None
    assert training.statistics(1, "nothing/there") is None
    assert training.all_keys == ("loss/a", "grad/b")


def test_arrays_are_split_over_files_and_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noether_core.probes.callback.MOST_OF_ARRAYS", 100)
    values = {f"grad/{at}": np.arange(10.0) + at for at in range(5)}
    run_of(tmp_path, [probed(values, tuple(values))])
    files = [file for file in read_run(tmp_path).arrays if "arrays" in file.interval]
    assert [len(file.headers()) - 1 for file in files] == [2, 2, 1]
    training = read_training(tmp_path)
    for key, value in values.items():
        np.testing.assert_array_equal(training.array(1, key), value.astype(np.float32))
        assert training.shape(1, key) == (10,)
        assert training.places(1, key) is None
    assert training.array(1, "grad/9") is None
    assert MOST_OF_ARRAYS < 3 * 2**26  # of what waits for the disk


def test_what_is_damaged_is_left_out_and_told(tmp_path: Path) -> None:
    values = {"loss/a": 1.0, "grad/b": np.arange(8.0)}
    run_of(tmp_path / "a", [probed(values, ("grad/b",))] * 3)
    files = {file.interval: file.path for file in read_run(tmp_path / "a").arrays}
    path = files["probes/statistics"]
    data = bytearray(path.read_bytes())
    place = ArrayReader(path)._header[0]["reals"]
    data[place.begin + 5] ^= 4
    path.write_bytes(data)
    training = read_training(tmp_path / "a")
    assert training.statistics(1, "loss/a") is None
    assert any("the array 'reals' is damaged: its CRC-32 does not match" in problem for problem in training.problems)
    assert training.array(1, "grad/b") is not None  # which is in a file of its own
    assert not check_run(tmp_path / "a").is_clean


def test_what_is_no_file_of_probes_is_told(tmp_path: Path) -> None:
    from noether_core.emit.arrays import write_arrays

    run_of(tmp_path, [probed({"loss/a": 1.0})])
    folder = tmp_path / "update_outputs" / "probes" / "statistics"
    about = np.frombuffer(b'{"probes":1,"keys":["elsewhere/a"]}', np.uint8)
    write_arrays(folder / "E0_U5_S5.safetensors", {"about": about})
    write_arrays(folder / "E0_U6_S6.safetensors", {"updates": np.arange(3)})
    write_arrays(folder / "E0_U7_S7.safetensors", {"about": np.frombuffer(b'{"probes":1,"keys":["loss/a"]}', np.uint8)})
    (folder / "E0_U8_S8.safetensors").write_bytes(b"nonsense")
    training = read_training(tmp_path)
    assert training.updates() == [1]
    told = "\n".join(training.problems)
    assert "holds no probes, or damaged ones (its keys are no list of `stage/name`, each once)" in told
    assert "E0_U6_S6.safetensors, byte 8: it holds no probes" in told
    assert "E0_U7_S7.safetensors, byte 8: it lacks the statistics" in told
    assert "E0_U8_S8.safetensors is not a readable safetensors file" in told


def test_show_has_a_row_for_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # which libraries set
    run_of(tmp_path, [probed({"loss/a\x1b[31m": float(at), "grad/b": [at, 4.0]}, ("grad/b",)) for at in range(1, 4)])
    screen = CliRunner().invoke(app, ["show", str(tmp_path)]).output
    assert "probes: 2 keys at 3 updates (1 to 3), arrays at 3 (1 to 3)" in screen
    assert "\x1b[31m" not in screen
    assert "loss/a\\x1b[31m" in screen
    row = next(line for line in screen.splitlines() if "grad/b" in line)
    assert [cell.strip() for cell in row.split("│")[1:10]] == ["grad/b", "3", "2", "3.5", "0.5", "5", "3", "4", "▁▄█"]
    assert "saved arrays" not in screen


def test_show_says_nothing_of_probes_that_are_all_superseded(tmp_path: Path) -> None:
    run_of(tmp_path, [probed({"loss/a": 1.0})])
    with noether_torch.Run(tmp_path, [{"every_n_updates": 1, "keys": ["loss"]}]) as run:
        run.step({"loss": 1.0})
    screen = CliRunner().invoke(app, ["show", str(tmp_path)]).output
    assert "loss/U1" in screen
    assert "probes" not in screen
    training = read_training(tmp_path)
    assert (training.updates(), training.array(1, "loss/a"), training.statistics(1, "loss/a")) == ([], None, None)


def test_other_callbacks_and_a_recording_leave_probes_alone(tmp_path: Path) -> None:
    callbacks = [{"kind": "ProbeCallback"}, {"every_n_updates": 1, "patterns": ["loss"]}]
    with noether_torch.Run(tmp_path / "run", callbacks, record=tmp_path / "recording") as run:
        for number in range(3):
            step = noether_torch.probe(run.probes_due, losses=1.0, grads={"w": torch.ones(3)})
            run.step({"loss": torch.tensor(float(number)), **step})
    assert set(read_run(tmp_path / "run").series) == {"loss/U1"}
    assert [list(step or {}) for step in read_recording(tmp_path / "recording")] == [["loss"]] * 3
    assert read_training(tmp_path / "run").updates() == [1, 2, 3]
