from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tool_readers import tensorboard_series

from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.emit.export import export_run
from noether_core.emit.trackers import make_trackers
from noether_torch import Run

Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence what tensorboardX and tensorboard log about NaN and about tags."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def events(path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def curves(path: Path) -> Curves:
    """Return what TensorBoard shows: (update, value) for each tag."""
    return tensorboard_series(path / "tensorboard")


def logged(path: Path) -> Curves:
    """Return what the JSONL has, its numbers as float32."""
    series = read_run(path).series
    with np.errstate(over="ignore"):
        return {key: [(p.update, float(np.float32(p.value))) for p in points] for key, points in series.items()}


def test_the_curves_are_those_of_the_jsonl(tmp_path: Path) -> None:
    callbacks = [
        {"every_n_updates": 2, "keys": ["loss"], "patterns": ["grad/"], "reduce": {"loss": ["mean", "last"]}},
        {"every_n_epochs": 1, "keys": ["wide", "flag", "count"], "reduce": "last"},
    ]
    with Run(tmp_path, callbacks=callbacks, updates_per_epoch=3, trackers=["tensorboard"]) as run:
        for step in range(8):
            outputs = {"loss": torch.tensor(step / 3), "wide": step / 3, "flag": step % 2 == 0, "count": 2**24 + step}
            run.step(update_outputs={**outputs, "grad": {"norm-1.x": torch.tensor([step, 0.1])}})
    expected = logged(tmp_path)
    assert curves(tmp_path) == expected
    assert list(expected) == ["loss/mean/U2", "loss/last/U2", "grad/norm-1.x/mean/U2", "wide/E1", "flag/E1", "count/E1"]
    assert [update for update, _ in expected["loss/mean/U2"]] == [2, 4, 6, 8]
    assert [update for update, _ in expected["wide/E1"]] == [3, 6, 8]
    assert expected["count/E1"][0] == (3, 2.0**24 + 2)


def test_nan_and_the_infinities_are_told_apart(tmp_path: Path) -> None:
    values = [math.nan, math.inf, -math.inf, -0.0, 1e300, -1e300, 1e-300, 3.4028234663852886e38, 1e-45]
    callbacks = [{"every_n_updates": 1, "keys": ["v"], "reduce": "last"}]
    with Run(tmp_path, callbacks=callbacks, trackers=["tensorboard"]) as run:
        for value in values:
            run.step(update_outputs={"v": value})
    shown, expected = curves(tmp_path), logged(tmp_path)
    assert [point.value for point in read_run(tmp_path).series["v/U1"]][3:] == values[3:]
    assert repr(shown) == repr(expected)  # repr tells -0.0 from 0.0, and NaN is like NaN
    assert repr([value for _, value in shown["v/U1"]][:6]) == "[nan, inf, -inf, -0.0, inf, -inf]"
    assert shown["v/nonfinite/U1"] == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_a_value_that_is_no_number_is_text(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter, trackers=make_trackers(["tensorboard"], tmp_path))
    counter.next_update()
    writer.add_nonscalar("note", "hello")
    writer.add_nonscalar("names", ["a", "ß"])
    writer.close()
    accumulator = events(tmp_path)
    assert curves(tmp_path) == {}
    texts = {tag: accumulator.Tensors(tag) for tag in accumulator.Tags()["tensors"]}
    shown = {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in found] for tag, found in texts.items()}
    assert shown == {"note/text_summary": [(1, "hello")], "names/text_summary": [(1, "['a', 'ß']")]}


def test_any_key_is_a_tag_as_it_is(tmp_path: Path) -> None:
    keys = ["head[0] loss", "größe/µ", "<script>", "🧪", "../x", "a" * 300]
    with Run(tmp_path, callbacks=[{"every_n_updates": 1, "keys": keys}], trackers=["tensorboard"]) as run:
        run.step(update_outputs=dict.fromkeys(keys, 1.0))
    (file,) = (tmp_path / "tensorboard").iterdir()
    values = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    assert [value.tag for value in values] == [f"{key}/U1" for key in keys]


@pytest.mark.parametrize("keys", [("a b", "a_b"), ("x[0]", "x(0)"), ("/x", "x")])
def test_two_keys_are_two_curves(tmp_path: Path, keys: tuple[str, str]) -> None:
    with Run(tmp_path, callbacks=[{"every_n_updates": 1, "keys": keys}], trackers=["tensorboard"]) as run:
        run.step(update_outputs=dict(zip(keys, (1.0, 2.0), strict=True)))
    assert sorted(curves(tmp_path).values()) == [[(1, 1.0)], [(1, 2.0)]]


def test_a_restart_within_a_second_keeps_the_events_before_it(tmp_path: Path) -> None:
    for start in range(5):
        callbacks = [{"every_n_updates": 1, "keys": [f"start{start}"]}]
        with Run(tmp_path, callbacks=callbacks, trackers=["tensorboard"]) as run:
            run.step(update_outputs={f"start{start}": 1.0})
    assert set(curves(tmp_path)) == {f"start{start}/U1" for start in range(5)}


def test_a_restart_from_an_older_update_takes_the_place_of_what_followed_it(tmp_path: Path) -> None:
    for start, updates in enumerate([range(1, 9), range(5, 8), range(7, 12)]):
        counter = UpdateCounter()
        writer = LogWriter(tmp_path, update_counter=counter, trackers=make_trackers(["tensorboard"], tmp_path))
        for update in updates:
            while counter.update < update:
                counter.next_update()
            writer.add_scalar("loss", start + update / 100)
            writer.flush()
        writer.close()
    assert curves(tmp_path) == logged(tmp_path)
    assert [update for update, _ in curves(tmp_path)["loss"]] == list(range(1, 12))


# Fork a training loop for each directory, and kill it at a random moment after a random number of entries.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import tensorboardX
from noether_torch import Run

def train(path):
    callbacks = [{"every_n_updates": 1, "patterns": ["key"]}]
    with Run(path, callbacks=callbacks, trackers=["tensorboard"]) as run:
        while True:
            update = run.counter.update + 1
            run.step(update_outputs={f"key/{n}": update / (n + 1) for n in range(5)})
            time.sleep(0.002)

for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            train(path)
        finally:
            os._exit(1)
    lines, wanted = Path(path, "metrics", "1.jsonl"), random.randrange(1, 150)
    while not lines.exists() or lines.read_bytes().count(b"\\n") < wanted:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def test_after_a_kill_the_curves_are_a_part_of_the_jsonl_and_an_export_completes_them(
    tmp_path: Path, full: bool
) -> None:
    """The JSONL comes first. The event file has the same numbers in the same order, and may lack those not yet taken."""
    paths = [tmp_path / str(trial) for trial in range(100 if full else 10)]
    subprocess.run([sys.executable, "-c", KILLED, *map(str, paths)], check=True, timeout=300)
    lengths = []
    for path in paths:
        expected = [(e["update"], key, value) for e in read_run(path).entries for key, value in e.items() if "/" in key]
        files = sorted((path / "tensorboard").glob("events.*"))
        loaded = [event for file in files for event in EventFileLoader(str(file)).Load()]
        values = [(event.step, value) for event in loaded for value in event.summary.value]
        shown = [(step, value.tag, value.tensor.float_val[0]) for step, value in values]
        assert shown == [(update, key, float(np.float32(value))) for update, key, value in expected[: len(shown)]]
        lengths.append(len(shown))
        exported = export_run(path, "tensorboard")
        assert curves(path / "exports") == logged(path)
        assert exported.entries == len(read_run(path).entries)
    assert sum(lengths) > 50 * len(lengths)  # 5 values an entry; about 75 entries each, but for those not yet taken


def test_without_tensorboardx_the_error_names_what_to_install(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["tensorboardX"] = None  # importing it raises ImportError
from noether_torch import Run
callbacks = [{{"every_n_updates": 1, "keys": ["v"]}}]
with Run({str(tmp_path / "plain")!r}, callbacks=callbacks) as run:
    run.step(update_outputs={{"v": 1.0}})
Run({str(tmp_path / "tracked")!r}, callbacks=callbacks, trackers=["tensorboard"])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("noether_core.errors.MissingDependencyError: the tensorboard tracker needs tensorboardX")
    assert "pip install '.[tensorboard]'" in message
    assert read_run(tmp_path / "plain").series["v/U1"].value[0] == 1.0
    assert not (tmp_path / "tracked").exists()
