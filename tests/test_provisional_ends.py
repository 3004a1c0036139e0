"""What a run's end gives out of an interval that is not over stands until the run goes on from there, and then no longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.emit.jsonl import decode_line
from noether_core.reduce.threads import ThreadExchange, run_threads

both = pytest.mark.parametrize("front_end", [noether_jax, noether_torch], ids=lambda module: module.__name__)
CONFIG: dict[str, Any] = {"every_n_updates": 10, "keys": ["loss"], "reduce": ["mean", "count"], "save_output": True}
COUNT = "loss/count/U10"


def train(run: Any, until: int) -> None:
    while run.counter.update < until:
        run.step({"loss": float(run.counter.update + 1)})


def contents(path: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    read = read_run(path)
    assert read.problems == []
    arrays = {str(file.iteration): {name: array.item() for name, array in file.load().items()} for file in read.arrays}
    return read.entries, arrays


def whole(front_end: Any, path: Path, until: int) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    with front_end.Run(path, [CONFIG]) as run:
        train(run, until)
    return contents(path)


def counts(path: Path) -> list[tuple[int, int]]:
    return [(point.update, point.value) for point in read_run(path).series[COUNT]]


def by_end(run: Any) -> None:
    run.finish()


def by_exception(run: Any) -> None:
    with pytest.raises(ZeroDivisionError), run_entered(run):
        raise ZeroDivisionError


class run_entered:
    """Leave a run that has been entered."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None:
        self._run.__exit__(*error)


@both
@pytest.mark.parametrize("end", [by_end, by_exception])
@pytest.mark.parametrize("is_saved_after", [False, True])
def test_a_run_that_goes_on_is_the_uninterrupted_one(
    front_end: Any, end: Callable[[Any], None], is_saved_after: bool, tmp_path: Path
) -> None:
    run = front_end.Run(tmp_path / "run", [CONFIG])
    run.start()
    train(run, 25)
    state = run.state_dict()
    end(run)
    if is_saved_after:
        state = run.state_dict()
    assert counts(tmp_path / "run") == [(10, 10), (20, 10), (25, 5)]
    assert contents(tmp_path / "run") == whole(front_end, tmp_path / "25", 25)
    with front_end.Run(tmp_path / "run", [CONFIG]) as run:
        run.load_state_dict(state)
        train(run, 27)
        run.log({"mine": 1.0})  # from here on the point at 25 is superseded
        run.log_writer.disk.wait()
        assert [at for at, _ in counts(tmp_path / "run")] == [10, 20]
        train(run, 50)
    entries, arrays = contents(tmp_path / "run")
    assert [entry for entry in entries if "mine" not in entry] == whole(front_end, tmp_path / "50", 50)[0]
    assert arrays == contents(tmp_path / "50")[1]
    read = read_run(tmp_path / "run")
    assert [file.iteration.update for file in read.superseded_arrays] == [25]
    assert read.superseded == 1


@both
def test_the_lines_of_whole_intervals_are_those_of_the_uninterrupted_run(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path / "run", [CONFIG]) as run:
        train(run, 25)
        state = run.state_dict()
    with front_end.Run(tmp_path / "run", [CONFIG]) as run:
        run.load_state_dict(state)
        train(run, 40)
    whole(front_end, tmp_path / "one", 40)
    lines = [(tmp_path / "run" / "metrics" / f"{number}.jsonl").read_bytes() for number in (1, 2)]
    assert b"".join(lines) == (tmp_path / "one" / "metrics" / "1.jsonl").read_bytes()
    provisional = (tmp_path / "run" / "metrics" / "1.provisional.jsonl").read_bytes()
    assert decode_line(provisional)[COUNT] == 5


@both
def test_a_run_that_does_not_carry_the_interval_leaves_what_was_given_out_of_it(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [CONFIG]) as run:
        train(run, 25)
    with front_end.Run(tmp_path, [CONFIG], start={"update": 25}) as run:  # and no state: its interval begins here
        train(run, 27)
        state = run.state_dict()
    with front_end.Run(tmp_path, [CONFIG]) as run:
        run.load_state_dict(state)
        train(run, 40)
    assert counts(tmp_path) == [(10, 10), (20, 10), (25, 5), (30, 5), (40, 10)]
    assert [file.iteration.update for file in read_run(tmp_path).arrays] == [10, 20, 25, 30, 40]


@both
def test_a_run_that_goes_on_and_comes_to_nothing_leaves_the_newest_value(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [CONFIG]) as run:
        train(run, 25)
        state = run.state_dict()
    with front_end.Run(tmp_path, [CONFIG]) as run:
        run.load_state_dict(state)
        run.log({"mine": 1.0})
    assert counts(tmp_path) == [(10, 10), (20, 10), (25, 5)]
    assert read_run(tmp_path).entries[-1] == {
        "epoch": 0,
        "update": 25,
        "sample": 25,
        COUNT: 5,
        "loss/mean/U10": 23.0,
        "mine": 1.0,
    }


@both
def test_an_update_has_whole_and_provisional_values(front_end: Any, tmp_path: Path) -> None:
    """Of the former none is superseded with the latter."""
    configs = [CONFIG, {"every_n_updates": 5, "keys": ["loss"]}]
    with front_end.Run(tmp_path, configs) as run:
        train(run, 15)
        state = run.state_dict()
    assert read_run(tmp_path).entries[-1] == {
        "epoch": 0,
        "update": 15,
        "sample": 15,
        "loss/U5": 13.0,
        COUNT: 5,
        "loss/mean/U10": 13.0,
    }
    with front_end.Run(tmp_path, configs) as run:
        run.load_state_dict(state)
        train(run, 16)
    assert read_run(tmp_path).entries[-2] == {"epoch": 0, "update": 15, "sample": 15, "loss/U5": 13.0}


def test_a_stop_in_an_updates_middle_after_an_interval_leaves_that_interval(tmp_path: Path) -> None:
    config = {"every_n_updates": 2, "keys": ["loss"]}
    with noether_torch.Run(tmp_path, [config], accumulation_steps=2) as run:
        for value in range(5):
            run.step({"loss": float(value)})
        state = run.state_dict()
    with noether_torch.Run(tmp_path, [config], accumulation_steps=2) as run:
        run.load_state_dict(state)
        run.log({"mine": 1.0})
        run._is_just_loaded = False  # as after a step that was refused
    assert read_run(tmp_path).entries == [{"epoch": 0, "update": 2, "sample": 2, "loss/U2": 1.5, "mine": 1.0}]


def test_several_processes_end_provisionally(tmp_path: Path) -> None:
    """One that ends early gives what it has to the interval that the others end: that one is whole."""

    def body(exchange: ThreadExchange) -> None:
        for until in (12 + 4 * exchange.index, 23):
            with noether_torch.Run(tmp_path, [CONFIG], processes=exchange) as run:
                if until == 23:
                    run.load_state(tmp_path / "state")
                train(run, 12)
                if until != 23:
                    run.save_state(tmp_path / "state")
                train(run, until)

    run_threads(2, body, time_limit=20.0)
    assert counts(tmp_path) == [(10, 20), (20, 20), (23, 6)]
    assert [file.iteration.update for file in read_run(tmp_path).arrays] == [10, 20, 23]
    assert np.isclose(read_run(tmp_path).series["loss/mean/U10"].value[1], 15.5)


def test_what_is_superseded_and_who_logged_what_can_be_listed(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [CONFIG]) as run:
        train(run, 12)
    with noether_torch.Run(tmp_path, [{**CONFIG, "every_n_updates": 4}]) as run:
        train(run, 8)
        state = run.state_dict()
        train(run, 14)
    with noether_torch.Run(tmp_path, [{**CONFIG, "every_n_updates": 4}]) as run:
        run.load_state_dict(state)
        train(run, 20)
    read = read_run(tmp_path)
    listed = [(number, entry["update"]) for number, entry in read.iter_superseded()]
    assert listed == [(1, 10), (1, 12), (2, 12), (2, 14)]
    assert read.superseded == len(listed)
    assert [file.iteration.update for file in read.superseded_arrays] == [10, 12, 12, 14]
    assert [(start.number, start.after, start.until) for start in read.starts] == [
        (1, -1, -1),
        (2, -1, 8),
        (3, 8, np.inf),
    ]
    logged = {at: read.start_of(at) for at in read.series["loss/mean/U4"].update.tolist()}
    assert {at: start and start.number for at, start in logged.items()} == {4: 2, 8: 2, 12: 3, 16: 3, 20: 3}
    assert all(start and start.record["callbacks"][0]["every_n_updates"] == 4 for start in logged.values())
    assert list(read.series) == ["loss/mean/U4", "loss/count/U4"]  # no series of the experiment before


@both
def test_a_run_that_goes_on_with_other_callbacks_says_so(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [{**CONFIG, "id": "mine"}]) as run:
        train(run, 5)
        state = run.state_dict()
    with front_end.Run(tmp_path, [{**CONFIG, "id": "mine", "every_n_updates": 4}]) as run:
        with pytest.warns(
            UserWarning, match=r"with other callbacks than start 1 had.*now .*\"every_n_updates\": 4.*then .* 10"
        ):
            run.load_state_dict(state)
        train(run, 8)
    with (
        pytest.warns(UserWarning, match="with other callbacks than start 2 had"),
        front_end.Run(tmp_path, [CONFIG], start={"update": 8}),
    ):
        pass
    with front_end.Run(
        tmp_path, [{**CONFIG, "id": "mine", "every_n_updates": 4}], start={"update": 8}, end={"update": 10}
    ):
        pass  # the same, only with another end: nothing is said
