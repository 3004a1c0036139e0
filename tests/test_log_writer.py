from __future__ import annotations

import gc
import logging
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noether_core import DuplicateKeyError, LogWriter, NoetherError, RunFormatError, UpdateCounter, read_run
from noether_core.emit.trackers import make_trackers
from noether_core.emit.trackers.console import ConsoleTracker


class Kept:
    """Keep the entries, and fail from a given one on."""

    def __init__(self, fail_at: int | None = None, fail_close: bool = False) -> None:
        self.entries: list[dict[str, Any]] = []
        self.calls = 0
        self.is_closed = False
        self._fail_at, self._fail_close = fail_at, fail_close

    def log(self, entry: Mapping[str, Any]) -> None:
        self.calls += 1
        if self._fail_at is not None and self.calls >= self._fail_at:
            raise ConnectionError("the server is gone")
        self.entries.append(dict(entry))

    def close(self) -> None:
        self.is_closed = True
        if self._fail_close:
            raise ConnectionError("the server is gone")


def advance(counter: UpdateCounter) -> None:
    counter.add_samples(counter.effective_batch_size)
    counter.next_update()


def test_one_flush_is_one_entry_in_the_order_of_logging(tmp_path: Path) -> None:
    counter = UpdateCounter(effective_batch_size=8)
    writer = LogWriter(tmp_path, update_counter=counter)
    for _ in range(3):
        advance(counter)
        writer.add_scalar("z", counter.update / 2)
        writer.add_scalar("a", counter.update)
        writer.flush()
    writer.close()
    expected = [{"epoch": 0, "update": n, "sample": 8 * n, "z": n / 2, "a": n} for n in (1, 2, 3)]
    assert writer.log_entries == expected
    assert list(writer.log_entries[0]) == ["epoch", "update", "sample", "z", "a"]
    assert read_run(tmp_path).entries == expected
    assert [list(entry) for entry in read_run(tmp_path).entries] == [list(entry) for entry in expected]
    assert writer.get_all_metric_values("z") == [0.5, 1.0, 1.5]
    assert writer.get_all_metric_values("absent") == []


def test_nothing_logged_writes_nothing(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, update_counter=UpdateCounter())
    writer.flush()
    writer.close()
    assert writer.log_entries == []
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ many at once

MANY: list[dict[Any, Any]] = [
    {},
    {"a": 0.5, "b": 1, "c": True, "d": -math.inf},
    {"a": np.float32(0.1), "b": np.array([2]), "c": 2**70},
    {"new": 1.0, "known": 2.0, "other": 3.0, "flushed": 4.0, "last": 5},
    {"update": 1.0, "a": "text", "b": 2.0},
    {"a": 1.0, 3: 2.0, "crc32": 1, "b": None, "c": np.zeros(2), "d": 4},
]


@pytest.mark.parametrize("is_bound", [False, True])
@pytest.mark.parametrize("logger", [None, logging.getLogger("loop")])
@pytest.mark.parametrize("values", MANY, ids=repr)
def test_many_at_once_are_as_one_by_one(
    tmp_path: Path, values: dict[Any, Any], logger: Any, is_bound: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for way in ("at once", "one by one"):
        caplog.clear()
        writer = LogWriter(tmp_path / way, update_counter=UpdateCounter())
        source = writer.bind("me") if is_bound else writer
        writer.add_scalar("flushed", 0.0)
        writer.flush()
        writer.bind("another").add_scalar("known", 0.0)
        errors = []
        with caplog.at_level(logging.INFO, logger="loop"):
            if way == "at once":
                try:
                    source.add_scalars(values, logger, None if logger is None else ".3f")
                except NoetherError as error:
                    errors.append(repr(error))
            else:
                for key, value in values.items():
                    try:
                        source.add_scalar(key, value, logger, None if logger is None else ".3f")
                    except NoetherError as error:
                        errors.append(repr(error))
        with pytest.raises(DuplicateKeyError) as caught:
            writer.add_scalar("a" if "a" in writer.current_values() else "known", 0.0)
        shown = [record.getMessage() for record in caplog.records]
        writer.close()
        file = (tmp_path / way / "metrics" / "1.jsonl").read_bytes()
        found.append((file, repr(writer.log_entries), errors[:1], str(caught.value), shown))
    assert found[0] == found[1]
    assert bool(found[0][2]) == (values not in MANY[:3])


def test_what_is_given_at_once_may_change_afterwards() -> None:
    writer = LogWriter(update_counter=UpdateCounter())
    values = {"a": 1.0}
    writer.add_scalars(values)
    values["a"] = 2.0
    writer.add_scalars({"b": 2.0})
    assert writer.current_values() == {"a": 1.0, "b": 2.0}
    writer.flush()
    writer.add_scalars({})
    writer.flush()
    assert writer.log_entries == [{"epoch": 0, "update": 0, "sample": 0, "a": 1.0, "b": 2.0}]


def test_many_of_an_update_that_was_not_flushed_stay_with_it(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    for _ in range(3):
        writer.add_scalars({"a": float(counter.update), "b": 1})
        advance(counter)
    assert writer.current_values() == {}
    writer.close()
    assert [(entry["update"], entry["a"]) for entry in read_run(tmp_path).entries] == [(0, 0.0), (1, 1.0), (2, 2.0)]


# ------------------------------------------------------------------ what is kept


def log_many(writer: LogWriter, counter: UpdateCounter, updates: int) -> list[Any]:
    odd = [0.1, math.nan, 2**70, -0.0, True, 1e-5, -math.inf, 10**16]
    for _ in range(updates):
        advance(counter)
        writer.add_scalars({"loss": odd[counter.update % 8], "n": counter.update})
        writer.flush()
        if counter.update % 3 == 0:
            writer.add_nonscalar("third", f"at {counter.update}")
            writer.flush()
    return [odd[update % 8] for update in range(1, updates + 1)]


@pytest.mark.parametrize("updates", [1000, 1001, 2500])
def test_with_a_run_directory_the_newest_thousand_are_kept_and_every_value_is_to_be_had(
    tmp_path: Path, updates: int
) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    logged = log_many(writer, counter, updates)
    assert [entry["update"] for entry in writer.log_entries] == [*range(updates - 999, updates + 1)]
    for _ in range(2):  # open and closed
        assert repr(writer.get_all_metric_values("loss")) == repr(logged)
        assert writer.get_all_metric_values("n") == [*range(1, updates + 1)]
        assert writer.get_all_metric_values("third") == [f"at {update}" for update in range(3, updates + 1, 3)]
        assert writer.get_all_metric_values("absent") == []
        writer.close()
    assert read_run(tmp_path).entries[-1000:][-1] == writer.log_entries[-1]


def test_without_one_all_are_kept() -> None:
    counter = UpdateCounter()
    writer = LogWriter(update_counter=counter)
    logged = log_many(writer, counter, 2500)
    assert len(writer.log_entries) == 2500
    assert repr(writer.get_all_metric_values("loss")) == repr(logged)


def test_values_whose_file_is_gone_or_damaged_are_not_made_up(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    log_many(writer, counter, 1500)
    assert writer.disk.wait()
    file = tmp_path / "metrics" / "1.jsonl"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunFormatError, match=r"1\.jsonl, byte .*what was logged there is lost"):
        writer.get_all_metric_values("loss")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        writer.get_all_metric_values("loss")
    writer.close()


def test_memory_does_not_grow_with_the_updates_that_are_logged(tmp_path: Path, full: bool) -> None:
    updates = 1_000_000 if full else 20_000
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    held = []
    tracemalloc.start()
    try:
        for update in range(1, updates + 1):
            advance(counter)
            writer.add_scalars({f"key{at}": update / (at + 3) for at in range(10)})
            writer.flush()
            if update % (updates // 10) == 0:
                assert writer.disk.wait()
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    writer.close()
    assert max(held) - held[0] < 20_000  # an entry of ten numbers takes a thousand bytes


def test_two_flushes_of_one_update_are_one_entry(tmp_path: Path) -> None:
    counter = UpdateCounter(effective_batch_size=8)
    writer = LogWriter(tmp_path, update_counter=counter)
    advance(counter)
    writer.add_scalar("first", 1)
    writer.flush()
    writer.add_scalar("second", 2)
    writer.flush()
    advance(counter)
    writer.add_scalar("first", 3)
    writer.close()
    expected = [
        {"epoch": 0, "update": 1, "sample": 8, "first": 1, "second": 2},
        {"epoch": 0, "update": 2, "sample": 16, "first": 3},
    ]
    assert writer.log_entries == expected
    assert read_run(tmp_path).entries == expected


def test_values_of_an_update_that_was_not_flushed_stay_with_it(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    writer.add_scalar("loss", 1.0)
    advance(counter)
    writer.add_scalar("loss", 2.0)
    writer.close()
    assert [(entry["update"], entry["loss"]) for entry in read_run(tmp_path).entries] == [(0, 1.0), (1, 2.0)]


@pytest.mark.parametrize("flushed_between", [False, True])
def test_a_key_logged_twice_names_the_key_and_who_was_first(flushed_between: bool) -> None:
    counter = UpdateCounter()
    writer = LogWriter(update_counter=counter)
    writer.bind("the first callback").add_scalar("loss/U1", 1.0)
    if flushed_between:
        writer.flush()
    with pytest.raises(
        KeyError, match=r"'loss/U1' is logged twice for update 0.*first by the first callback"
    ) as caught:
        writer.bind("another").add_scalar("loss/U1", 2.0)
    assert isinstance(caught.value, DuplicateKeyError)
    assert not str(caught.value).startswith('"')
    with pytest.raises(DuplicateKeyError):
        writer.bind("another").add_nonscalar("loss/U1", "text")
    writer.flush()
    assert writer.get_all_metric_values("loss/U1") == [1.0]
    advance(counter)
    writer.add_scalar("loss/U1", 3.0)
    writer.flush()
    assert writer.get_all_metric_values("loss/U1") == [1.0, 3.0]


def test_the_first_one_is_named_by_its_logger() -> None:
    writer = LogWriter(update_counter=UpdateCounter())
    writer.add_scalar("loss", 1.0, logger=logging.getLogger("my loop"))
    with pytest.raises(DuplicateKeyError, match="first by my loop"):
        writer.add_scalar("loss", 1.0)


@pytest.mark.parametrize("key", ["epoch", "update", "sample", "crc32", 3, None])
def test_a_key_that_an_entry_needs_itself_is_refused(key: Any) -> None:
    writer = LogWriter(update_counter=UpdateCounter())
    with pytest.raises(NoetherError, match="cannot log under the key"):
        writer.add_scalar(key, 1.0)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float64(0.1), 0.1),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.array([[2.5]]), 2.5),
        (True, True),
        (2**70, 2**70),
        (-math.inf, -math.inf),
    ],
)
def test_a_logged_number_is_a_plain_python_one(tmp_path: Path, value: Any, plain: float | int | bool) -> None:
    writer = LogWriter(tmp_path, update_counter=UpdateCounter())
    writer.add_scalar("v", value)
    writer.close()
    for (entry,) in (writer.log_entries, read_run(tmp_path).entries):
        assert type(entry["v"]) is type(plain)
        assert entry["v"] == plain


@pytest.mark.parametrize("value", ["0.5", None, [1.0], np.zeros(2), np.complex64(1), 1j, object()])
def test_what_is_no_number_is_refused_with_its_type_and_key(value: Any) -> None:
    writer = LogWriter(update_counter=UpdateCounter())
    with pytest.raises(NoetherError, match=rf"{type(value).__name__} for key 'v'"):
        writer.add_scalar("v", value)
    writer.flush()
    assert writer.log_entries == []


def test_text_lists_and_dicts_are_logged_too(tmp_path: Path) -> None:
    value = {"names": ["a", "ß"], "limit": math.inf, "on": True, "none": None}
    writer = LogWriter(tmp_path, update_counter=UpdateCounter())
    writer.add_nonscalar("note", value)
    value["names"] = []
    writer.add_nonscalar("text", "hello")
    writer.close()
    for (entry,) in (writer.log_entries, read_run(tmp_path).entries):
        assert entry["note"] == {"names": ["a", "ß"], "limit": math.inf, "on": True, "none": None}
        assert entry["text"] == "hello"


@pytest.mark.parametrize("value", [object(), {"a": np.zeros(2)}, [b"bytes"], {1, 2}])
def test_a_value_that_no_line_can_hold_is_refused_at_once_and_costs_nothing_else(tmp_path: Path, value: Any) -> None:
    writer = LogWriter(tmp_path, update_counter=UpdateCounter())
    writer.add_scalar("loss", 0.5)
    with pytest.raises(NoetherError, match=rf"{type(value).__name__} for key 'bad'"):
        writer.add_nonscalar("bad", value)
    writer.close()
    assert read_run(tmp_path).entries == [{"epoch": 0, "update": 0, "sample": 0, "loss": 0.5}]


def test_the_given_logger_is_told(caplog: pytest.LogCaptureFixture) -> None:
    writer = LogWriter(update_counter=UpdateCounter())
    with caplog.at_level(logging.INFO, logger="loop"):
        writer.add_scalar("loss/U1", 0.123456789, logger=logging.getLogger("loop"), format_str=".5f")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("loop", "loss/U1: 0.12346")]


def test_trackers_get_the_entries_and_are_closed(tmp_path: Path) -> None:
    counter, trackers = UpdateCounter(), [Kept(), Kept()]
    writer = LogWriter(tmp_path, update_counter=counter, trackers=trackers)
    for _ in range(3):
        advance(counter)
        writer.add_scalar("loss", float(counter.update))
        writer.flush()
    writer.close()
    assert [tracker.entries for tracker in trackers] == [writer.log_entries] * 2
    assert all(tracker.is_closed for tracker in trackers)


def test_a_failing_tracker_is_warned_about_once_and_costs_no_entry(tmp_path: Path) -> None:
    counter, failing, other = UpdateCounter(), Kept(fail_at=2), Kept()
    writer = LogWriter(tmp_path, update_counter=counter, trackers=[failing, other])
    with pytest.warns(RuntimeWarning) as caught:  # noqa: PT031 -- one warning from all of it
        for _ in range(5):
            advance(counter)
            writer.add_scalar("loss", float(counter.update))
            writer.flush()
        writer.close()
    (warning,) = caught
    assert "the server is gone" in str(warning.message)
    assert "the entries are in the run directory" in str(warning.message)
    assert failing.calls == 2
    assert other.entries == writer.log_entries == read_run(tmp_path).entries
    assert len(other.entries) == 5


def test_a_tracker_that_fails_to_close_is_warned_about(tmp_path: Path) -> None:
    failing, other = Kept(fail_close=True), Kept()
    writer = LogWriter(tmp_path, update_counter=UpdateCounter(), trackers=[failing, other])
    writer.add_scalar("loss", 1.0)
    with pytest.warns(RuntimeWarning, match="failed to close"):
        writer.close()
    assert other.is_closed
    assert len(read_run(tmp_path).entries) == 1


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ("console", r"write a list: trackers=\['console'\]"),
        (["tensorbord"], "Did you mean 'tensorboard'"),
        ([object()], "no log and close methods"),
    ],
)
def test_what_is_no_tracker_is_refused(tmp_path: Path, trackers: Any, message: str) -> None:
    with pytest.raises(NoetherError, match=message):
        make_trackers(trackers, tmp_path)


def test_the_console_tracker_prints_one_inert_line_an_entry(capsys: pytest.CaptureFixture[str]) -> None:
    (tracker,) = make_trackers(["console"], Path())
    assert isinstance(tracker, ConsoleTracker)
    tracker.log({"epoch": 1, "update": 2, "sample": 3, "[bold]loss\x1b[31m": 0.5, "n": math.nan, "text": "a\nb"})
    tracker.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == r"E1_U2_S3  [bold]loss\x1b[31m 0.5  n nan  text a\nb"


FULL_DISK = """
import resource, signal, sys, time
from noether_core import LogWriter, UpdateCounter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
counter = UpdateCounter()
writer = LogWriter(sys.argv[1], update_counter=counter)
log = lambda value: writer.add_scalars({"loss/U1": value}) if sys.argv[2] == "at once" else writer.add_scalar("loss/U1", value)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for update in range(1100):
    counter.next_update()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if 10 <= update < 15 else hard, hard))
    log(update / 3)
    writer.flush()
    while update == 14 and writer.disk.trouble is None:
        time.sleep(0.01)
writer.close()
print(writer.get_all_metric_values("loss/U1"))
"""


@pytest.mark.parametrize("way", ["at once", "one by one"])
@pytest.mark.parametrize("warnings", ["error", "default"])
def test_a_disk_that_was_full_for_a_while_costs_nothing(tmp_path: Path, way: str, warnings: str) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": warnings}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.count("the disk does not take what this run logs: [Errno 27] File too large") == 1
    run = read_run(tmp_path)
    assert [entry["update"] for entry in run.entries] == [*range(1, 1101)]
    assert all(entry["loss/U1"] == (entry["update"] - 1) / 3 for entry in run.entries)
    assert run.problems == []
    assert done.stdout.strip() == repr(run.series["loss/U1"].value.tolist())
