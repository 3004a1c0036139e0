"""A tracker may sleep, lock or raise: training does not wait, and neither the JSONL nor another tracker lacks anything."""

from __future__ import annotations

import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.emit.export import export_run
from noether_core.emit.trackers import Tracker, make_trackers
from noether_core.emit.trackers.feed import QUEUE_SIZE
from noether_core.emit.trackers.tensorboard import TensorBoardTracker


class Kept:
    """Keep the entries and the thread they came on; sleep before each."""

    def __init__(self, sleep: float = 0.0, inline: bool = False) -> None:
        self.entries: list[dict[str, Any]] = []
        self.threads: set[str] = set()
        self.is_closed = False
        self.inline = inline
        self._sleep = sleep

    def log(self, entry: Mapping[str, Any]) -> None:
        time.sleep(self._sleep)
        self.threads.add(threading.current_thread().name)
        self.entries.append(dict(entry))

    def close(self) -> None:
        self.is_closed = True


class Locked:
    """Take nothing until it is let go."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entries = 0

    def log(self, entry: Mapping[str, Any]) -> None:
        self.release.wait()
        self.entries += 1

    def close(self) -> None:
        pass


class Flaky(TensorBoardTracker):
    """Fail in one call of ten."""

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__(directory)
        self._random = random.Random(seed)

    def log(self, entry: Mapping[str, Any]) -> None:
        if self._random.random() < 0.1:
            raise ConnectionError("the server is gone")
        super().log(entry)


class Greedy(Kept):
    """Change what it is given."""

    def log(self, entry: Mapping[str, Any]) -> None:
        super().log(entry)
        assert isinstance(entry, dict)
        entry.clear()


def train(path: Path, trackers: list[Tracker], updates: int) -> tuple[LogWriter, np.ndarray]:
    """Log one value an update; return the writer, not yet closed, and the seconds of each update."""
    counter = UpdateCounter(effective_batch_size=8)
    writer = LogWriter(path, update_counter=counter, trackers=trackers)
    seconds = np.empty(updates)
    for at in range(updates):
        begin = time.perf_counter()
        counter.add_samples(8)
        counter.next_update()
        writer.add_scalar("loss/U1", counter.update / 3)
        writer.flush()
        seconds[at] = time.perf_counter() - begin
    return writer, seconds


def tensorboard_curve(directory: Path) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars("loss/U1")]


def expected_curve(updates: int) -> list[tuple[int, float]]:
    return [(update, float(np.float32(update / 3))) for update in range(1, updates + 1)]


def test_training_does_not_wait_for_a_tracker_that_sleeps_a_second_a_call(tmp_path: Path) -> None:
    updates = 2 * QUEUE_SIZE
    differences = []
    for attempt in range(3):  # another process may have had the machine meanwhile
        without, seconds = train(tmp_path / f"without{attempt}", [], updates)
        without.close()
        sleeping = Kept(sleep=1.0)
        writer, seconds_with = train(tmp_path / f"with{attempt}", [sleeping], updates)
        with pytest.warns(RuntimeWarning, match="which met a full queue") as caught:
            writer.close(time_limit=0.1)
        differences.append(np.percentile(seconds_with, 99) - np.percentile(seconds, 99))
        assert sum(seconds_with) < 20
        (dropped,) = writer.dropped_entries.values()
        assert updates - QUEUE_SIZE - 25 <= dropped <= updates - QUEUE_SIZE
        path = tmp_path / f"with{attempt}"
        assert len(read_run(path).entries) == updates
        (message,) = [str(warning.message) for warning in caught]
        left = re.search(r"did not take the last (\d+) entries within 0.1 s", message)
        assert left is not None
        assert dropped + int(left[1]) + len(sleeping.entries) == updates
        assert f"missed {dropped} entries" in message
        assert f"`noether-parity export {path} --to csv` writes them all" in message
        if differences[-1] < 0.001:
            break
    assert min(differences) < 0.001


def test_what_a_slow_tool_missed_an_export_completes(tmp_path: Path) -> None:
    class Slow(TensorBoardTracker):
        def log(self, entry: Mapping[str, Any]) -> None:
            time.sleep(0.05)
            super().log(entry)

    writer, _ = train(tmp_path, [Slow(tmp_path / "tensorboard")], 50)
    with pytest.warns(RuntimeWarning, match="--to tensorboard`"):
        writer.close(time_limit=0.5)
    shown = tensorboard_curve(tmp_path / "tensorboard")
    assert 0 < len(shown) < 50
    assert shown == expected_curve(len(shown))
    assert tensorboard_curve(export_run(tmp_path, "tensorboard").path) == expected_curve(50)


def test_closing_gives_every_tracker_the_time_it_needs(tmp_path: Path) -> None:
    trackers = [*(Kept(sleep=0.02) for _ in range(6)), Kept(inline=True)]
    writer, _ = train(tmp_path, [*trackers], 50)
    assert len(trackers[-1].entries) == 50
    begin = time.monotonic()
    writer.close()
    assert time.monotonic() - begin < 5.5  # all at the same time; one after the other they take 6 s
    assert all(tracker.entries == read_run(tmp_path).entries for tracker in trackers)
    assert all(tracker.is_closed for tracker in trackers)
    assert trackers[-1].threads == {threading.current_thread().name}
    assert trackers[0].threads.isdisjoint(trackers[-1].threads)
    assert writer.dropped_entries == {repr(tracker): 0 for tracker in trackers}


def test_a_tracker_that_locks_costs_no_other_anything(tmp_path: Path) -> None:
    locked, other = Locked(), Kept()
    writer, _ = train(tmp_path, [locked, other], 50)
    begin = time.monotonic()
    with pytest.warns(RuntimeWarning, match="did not take the last 50 entries within 0.2 s") as caught:
        writer.close(time_limit=0.2)
    assert time.monotonic() - begin < 5
    assert len(caught) == 1
    assert other.is_closed
    assert other.entries == read_run(tmp_path).entries
    locked.release.set()


def test_a_tracker_that_was_given_up_takes_no_more(tmp_path: Path) -> None:
    locked = Locked()
    before = set(threading.enumerate())
    writer, _ = train(tmp_path, [locked], 50)
    with pytest.warns(RuntimeWarning, match="did not take"):
        writer.close(time_limit=0.1)
    (thread,) = set(threading.enumerate()) - before
    locked.release.set()
    thread.join(10)
    assert not thread.is_alive()
    assert locked.entries == 1


def test_a_tracker_that_does_not_close_is_named(tmp_path: Path) -> None:
    class Reluctant(Kept):
        def close(self) -> None:
            release.wait()

    release = threading.Event()
    writer, _ = train(tmp_path, [Reluctant()], 5)
    with pytest.warns(RuntimeWarning, match=r"did not close within 0\.2 s"):
        writer.close(time_limit=0.2)
    release.set()


def test_a_tracker_that_fails_in_a_tenth_of_its_calls_can_be_refilled(
    tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    for seed in sized(range(20 if full else 3), "runs with a tracker that fails"):
        path = tmp_path / str(seed)
        other = Kept()
        with pytest.warns(RuntimeWarning) as caught:  # noqa: PT031 -- one warning from all of it
            writer, _ = train(path, [Flaky(path / "tensorboard", seed), other], 200)
            writer.close()
        (warning,) = caught
        assert "ConnectionError('the server is gone')" in str(warning.message)
        assert f"`noether-parity export {path} --to tensorboard`" in str(warning.message)
        assert other.entries == read_run(path).entries
        assert len(other.entries) == 200
        assert tensorboard_curve(export_run(path, "tensorboard").path) == expected_curve(200)


def test_no_tracker_changes_what_another_gets(tmp_path: Path) -> None:
    trackers = [Greedy(inline=True), Greedy(), Kept()]
    writer, _ = train(tmp_path, [*trackers], 20)
    writer.close()
    assert trackers[2].entries == writer.log_entries == read_run(tmp_path).entries
    assert writer.log_entries[0]["loss/U1"] == 1 / 3


def test_without_a_run_directory_the_warning_names_no_export() -> None:
    counter = UpdateCounter()
    locked = Locked()
    writer = LogWriter(update_counter=counter, trackers=[locked])
    writer.add_scalar("loss", 1.0)
    with pytest.warns(RuntimeWarning) as caught:
        writer.close(time_limit=0.1)
    locked.release.set()
    assert "export" not in str(caught[0].message)


def test_a_tracker_that_drops_and_then_fails_is_warned_about_once(tmp_path: Path) -> None:
    class LockedThenFailing(Locked):
        def log(self, entry: Mapping[str, Any]) -> None:
            super().log(entry)
            raise ConnectionError("the server is gone")

    failing = LockedThenFailing()
    writer, _ = train(tmp_path, [failing], QUEUE_SIZE + 50)
    assert writer.disk.wait()
    failing.release.set()
    with pytest.warns(RuntimeWarning, match="the server is gone") as caught:
        writer.close()
    assert len(caught) == 1
    assert max(writer.dropped_entries.values()) >= 49


def test_nothing_logged_starts_no_thread_and_closes_the_tracker(tmp_path: Path) -> None:
    before = threading.active_count()
    tracker = Kept()
    writer = LogWriter(tmp_path, update_counter=UpdateCounter(), trackers=[tracker])
    assert threading.active_count() == before
    writer.close()
    assert tracker.is_closed


def test_a_warning_made_an_error_goes_to_logging_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Kept):
        inline = True

        def log(self, entry: Mapping[str, Any]) -> None:
            raise ConnectionError("the server is gone")

    failing, other = Failing(inline=True), Kept()
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter, trackers=[failing, other])
    writer.add_scalar("loss", 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.flush()
        writer.close()
    assert "the server is gone" in caplog.text
    assert "--to csv` writes them all" in caplog.text
    assert other.entries == read_run(tmp_path).entries
    assert len(other.entries) == 1


def test_a_tool_whose_process_dies_is_dropped_and_named(tmp_path: Path) -> None:
    (tmp_path / "trackio").write_text("a file where the store's directory should be")
    trackers = [*make_trackers(["trackio"], tmp_path), other := Kept()]
    with pytest.warns(RuntimeWarning, match=r"TrackioTracker.* failed and gets no more.*--to trackio`") as caught:  # noqa: PT031
        writer, _ = train(tmp_path, trackers, 20)
        writer.close()
    assert len(caught) == 1
    assert other.entries == read_run(tmp_path).entries
