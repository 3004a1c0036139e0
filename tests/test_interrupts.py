"""Ctrl-C between any two lines of our code: what was under way counts wholly or not at all, and nothing else changes."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from interrupting import Interrupter

import noether_jax
import noether_torch
from noether_core import NoetherError, read_run

CONFIGS: list[dict[str, Any]] = [
    {
        "every_n_updates": 3,
        "keys": ["loss", "field"],
        "reduce": {"loss": ["mean", "last", "std"], "field": ["mean", "stack"]},
        "save_output": True,
    },
    {"every_n_updates": 1, "patterns": ["grad/"], "id": "each"},
    {"every_n_epochs": 1, "keys": ["loss"], "reduce": "sum", "id": "epoch"},
    {"kind": "OnlineLossCallback", "every_n_updates": 3},
    {"kind": "LearningRateCallback", "every_n_updates": 3, "key": "grad"},
    {"kind": "ThroughputCallback", "every_n_updates": 3},
    {
        "kind": "BestMetricCallback",
        "every_n_updates": 3,
        "source_metric_key": "loss/mean/U3",
        "higher_is_better": True,
    },
    {
        "kind": "MetricEarlyStopCallback",
        "every_n_updates": 3,
        "source_metric_key": "loss/mean/U3",
        "higher_is_better": True,
        "patience": 50,
    },
]
TIMELESS = [each for each in CONFIGS if each.get("kind") != "ThroughputCallback"]
FUSED = [{**CONFIGS[0], "reduce": {"loss": ["mean", "last", "std"], "field": "mean"}}, *CONFIGS[1:3]]
ARGUMENTS = {"effective_batch_size": 4, "updates_per_epoch": 6}
EXAMPLE = {"loss": jnp.float32(0), "field": jnp.zeros(20, jnp.float32), "grad/a": jnp.float32(0)}
LOGGED = {"a": 1.0, "b": {"c": "text", "d": [1, 2]}}
Call = Callable[[Callable[[], Any]], bool]  # calls a function; tells whether it was interrupted


class Kept:
    def __init__(self) -> None:
        self.entries: list[Any] = []

    def log(self, entry: Any) -> None:
        self.entries.append(dict(entry))

    def close(self) -> None:
        pass


def outputs(number: int, array: Any = torch.tensor) -> dict[str, Any]:
    field = array(np.arange(20, dtype=np.float32) * number)
    return {"loss": array(np.float32(number)), "field": field, "grad/a": 1.5 * number}


def arguments(number: int) -> dict[str, Any]:
    times = {"data": 0.25, "update": 1.0 * number}
    return {"update_outputs": outputs(number), "losses": torch.tensor(2.0 * number), "times": times}


def stands(run: Any) -> tuple[int, int, int, int]:
    return run.counter.epoch, run.counter.update, run.counter.sample, run.accumulated


def open_run(path: Path, configs: Any = CONFIGS, **more: Any) -> Any:
    run = noether_torch.Run(path, configs, trackers=[Kept()], **ARGUMENTS, **more)
    run.start()
    return run


def again(run: Any, call: Call, function: Callable[[], Any]) -> None:
    """Call; where that was interrupted and has not counted, call again."""
    before = stands(run)
    if call(function) and stands(run) == before:
        function()


# ---------------------------------------------------------------------- the calls that are interrupted


def a_step(path: Path, call: Call, at: int = 6, accumulation_steps: int = 1) -> Any:
    run = open_run(path, accumulation_steps=accumulation_steps)
    for number in range(1, 9 * accumulation_steps + 1):
        again(run, call if number == at else lambda function: function(), lambda: run.step(**arguments(number)))  # noqa: B023
    run.finish()
    return run


def a_step_of_two(path: Path, call: Call) -> Any:
    return a_step(path, call, at=12, accumulation_steps=2)


def a_step_in_mid_update(path: Path, call: Call) -> Any:
    return a_step(path, call, at=11, accumulation_steps=2)


def many_steps(path: Path, call: Call) -> Any:
    run = open_run(path, TIMELESS)
    given = [outputs(number) for number in range(1, 9)]
    if call(lambda: run.step(given, losses=torch.tensor(2.0))):
        run.step(given[run.counter.update :], losses=torch.tensor(2.0))
    run.finish()
    return run


def finishing(path: Path, call: Call) -> Any:
    run = open_run(path)
    for number in range(1, 9):
        run.step(**arguments(number))
    if call(run.finish):
        run.finish()
    return run


def an_epochs_end(path: Path, call: Call) -> Any:
    run = open_run(path)
    for number in range(1, 7):
        run.step(**arguments(number), ends_epoch=False)
    again(run, call, run.end_epoch)
    run.step(**arguments(7))
    run.finish()
    return run


def logging(path: Path, call: Call) -> Any:
    run = open_run(path)
    for number in range(1, 8):
        run.step(**arguments(number))
        if number == 6 and call(lambda: run.log(LOGGED)) and "a" not in run.log_writer.current_values():
            run.log(LOGGED)
    run.finish()
    return run


def an_evaluation(path: Path, call: Call) -> Any:
    run = open_run(path)
    for number in range(1, 8):
        run.step(**arguments(number))
        if number == 6:

            def evaluate() -> None:
                with run.evaluate():
                    run.step(**arguments(60))

            if call(evaluate) and "eval/loss/mean" not in run.log_writer.current_values():
                evaluate()
    run.finish()
    return run


def saving(path: Path, call: Call) -> Any:
    run = open_run(path)
    for number in range(1, 9):
        run.step(**arguments(number))
        if number == 5:
            before = run.state_dict()
            if call(lambda: run.save_state(path / "state")):
                assert repr(run.state_dict()) == repr(before)
                run.save_state(path / "state")
    run.load_state(path / "state")
    for number in range(6, 9):
        run.step(**arguments(number))
    run.finish()
    return run


def loading(path: Path, call: Call) -> Any:
    run = open_run(path)
    for number in range(1, 9):
        run.step(**arguments(number))
        if number == 5:
            run.save_state(path / "state")
            saved = run.state_dict()
    before = run.state_dict()
    if call(lambda: run.load_state(path / "state")):
        found = run.state_dict()
        if found["iteration"] == before["iteration"]:
            assert repr(found) == repr(before)
            run.load_state(path / "state")
        else:
            assert repr({**found, "start": ""}) == repr({**saved, "start": ""})
    for number in range(6, 9):
        run.step(**arguments(number))
    run.finish()
    return run


def hooks_in_jax(path: Path, call: Call) -> Any:
    run = noether_jax.Run(path, TIMELESS, trackers=[Kept()], **ARGUMENTS)
    run.start()
    for number in range(1, 9):
        once = call if number == 6 else lambda function: function()
        again(run, once, lambda: run.step(outputs(number, jnp.asarray), losses=jnp.float32(number)))  # noqa: B023
    run.finish()
    return run


@cache
def compiled(steps: int, directory: Path) -> Any:
    """Return `run.track` compiled, for all runs of these configs."""
    run = noether_jax.Run(directory, FUSED, **ARGUMENTS)
    run.init(EXAMPLE, steps_per_call=steps)
    return jax.jit(run.track)


def fused(path: Path, call: Call, steps: int = 1) -> Any:
    run = noether_jax.Run(path, FUSED, trackers=[Kept()], **ARGUMENTS)
    run.start()
    tracked, track = run.init(EXAMPLE, steps_per_call=steps), compiled(steps, path.parent / "compiled")
    for begin in range(0, 12, steps):
        for number in range(begin + 1, begin + steps + 1):
            given = outputs(number, np.asarray)
            tracked = track(tracked, given | {"grad/a": np.float32(given["grad/a"])})
        before, new = stands(run), []
        once = call if begin <= 5 < begin + steps else lambda function: function()
        if once(lambda: new.append(run.step(tracked, steps=steps))) and stands(run) == before:  # noqa: B023
            new.append(run.step(tracked, steps=steps))
        tracked = new[0] if new else run.tracked
    run.finish()
    return run


def fused_over_several(path: Path, call: Call) -> Any:
    return fused(path, call, steps=4)


def left(run: Any, path: Path) -> dict[str, Any]:
    """Return what a run left."""
    read = read_run(path)
    lines = [
        file.read_bytes().splitlines()
        for file in sorted((path / "metrics").glob("*.jsonl"))
        if ".time" not in file.name
    ]
    arrays = [
        (str(each.iteration), each.interval, repr(each.load())) for each in [*read.arrays, *read.superseded_arrays]
    ]
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    trackers = [feed.tracker.entries for feed in run.log_writer._feeds._all]
    return {
        "lines": lines,
        "arrays": arrays,
        "files": files,
        "problems": read.problems,
        "trackers": trackers,
        "entries": run.log_writer.log_entries,
        "counter": stands(run),
    }


CALLS = (
    a_step,
    a_step_of_two,
    a_step_in_mid_update,
    many_steps,
    finishing,
    an_epochs_end,
    logging,
    an_evaluation,
    saving,
    loading,
    hooks_in_jax,
    fused,
    fused_over_several,
)


def positions(counter: Interrupter, full: bool) -> list[int]:
    """Return where to interrupt: at each line as it is executed first and last, and at others; or at a few."""
    drawn = random.sample(range(1, counter.count + 1), min(counter.count, 300 if full else 10))
    return sorted({*drawn, *(at for ends in counter.ends.values() for at in ends if full)})


# what is opened and not yet anybody's is closed when it is collected
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("interrupted", CALLS, ids=lambda function: function.__name__)
def test_an_interrupted_call_counts_wholly_or_not_at_all(
    interrupted: Callable[[Path, Call], Any], full: bool, tmp_path: Path, sized: Callable[..., Iterator[Any]]
) -> None:
    for name in ("warm", "wanted"):
        counter = Interrupter()
        run = interrupted(tmp_path / name, counter.run)
    wanted = left(run, tmp_path / "wanted")
    for at in sized(positions(counter, full), "interrupted lines"):
        interrupter = Interrupter(at)
        run = interrupted(tmp_path / "run", interrupter.run)
        assert interrupter.place
        found = left(run, tmp_path / "run")
        for name, value in wanted.items():
            assert repr(found[name]) == repr(value), f"{name}, interrupted at line {at}, {interrupter.place}"
        shutil.rmtree(tmp_path / "run")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_wherever_a_start_is_interrupted_another_run_may_begin_there(full: bool, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever earlier tests left

    def interrupted(at: int) -> Interrupter:
        run, interrupter = noether_torch.Run(tmp_path, CONFIGS[:1], **ARGUMENTS), Interrupter(at)
        interrupter.run(run.start)
        assert run._state != "training" or not at, interrupter.place
        run.finish()
        try:
            with noether_torch.Run(tmp_path, CONFIGS[:1], **ARGUMENTS):  # while somebody still has the first
                assert run is not None
        except NoetherError as error:
            raise AssertionError(interrupter.place) from error
        return interrupter

    interrupted(0)
    count = interrupted(0).count
    for at in range(1, count - 5) if full else random.sample(range(1, count - 5), 30):
        interrupter = interrupted(at)
        assert interrupter.place
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, interrupter.place
    signal.signal(signal.SIGINT, before)


def test_wherever_an_evaluation_is_interrupted_the_steps_after_it_are_training_steps(
    full: bool, tmp_path: Path
) -> None:
    def interrupted(at: int) -> Interrupter:
        run, interrupter = open_run(tmp_path / uuid4().hex, TIMELESS), Interrupter(at)

        def evaluate() -> None:
            with run.evaluate():
                run.step(outputs(60), losses=torch.tensor(2.0))

        interrupter.run(evaluate)
        run.step(outputs(1), losses=torch.tensor(2.0))
        assert run.counter.update == 1, interrupter.place
        with run.evaluate():
            run.step(outputs(2), losses=torch.tensor(2.0))
        run.finish()
        return interrupter

    interrupted(0)  # what the first one makes, others have
    count = interrupted(0).count
    places = sorted({*range(1, 30), *range(30, count, 29), *range(count - 60, count - 5)})
    for at in places if full else random.sample(places, 40):
        assert interrupted(at).place


def test_a_step_of_an_evaluation_counts_for_all_callbacks_or_for_none(tmp_path: Path) -> None:
    configs = [{"every_n_updates": 9, "keys": [key], "reduce": ["mean", "count"]} for key in ("loss", "field")]
    for at in range(1, 2000, 23):
        run = open_run(tmp_path / str(at), configs)
        interrupter = Interrupter(at)
        with run.evaluate():
            run.step(outputs(1))
            is_interrupted = interrupter.run(lambda run=run: run.step(outputs(2)))
        (entry,) = run.log_writer.log_entries
        assert entry["eval/field/count"] == 20 * entry["eval/loss/count"], interrupter.place
        run.finish()
        if not is_interrupted:
            return
    raise AssertionError("a step has more lines")


def test_a_load_that_is_interrupted_costs_no_later_entry(tmp_path: Path) -> None:
    for at in (*range(1, 40), *range(40, 3000, 97)):
        run = open_run(tmp_path / str(at), [{"every_n_updates": 1, "keys": ["loss"]}])
        run.step(outputs(1))
        state = run.state_dict()
        run.log_writer.add_scalar("pending", 1.0)
        is_interrupted = Interrupter(at).run(lambda run=run, state=state: run.load_state_dict(state))
        for number in range(2, 5):
            run.step(outputs(number))
        run.finish()
        assert read_run(tmp_path / str(at)).series["loss/U1"].update.tolist() == [1, 2, 3, 4], at
        if not is_interrupted:
            return
    raise AssertionError("a load has more lines")
