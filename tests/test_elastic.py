"""A run's state, saved by some processes in mid-interval, goes on in as many others or not, as if nothing had stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_merge import shown as shown_run
from test_merge_ends import drawn_configs, outputs_of
from test_merged_positions import accumulator, accumulator_of, add, drawn_steps, finished
from test_state_file import shown

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.emit.state_file import read_state, write_state
from noether_core.errors import NoetherError, ProcessesMissingError, RunFormatError
from noether_core.reduce.elastic import merged_states
from noether_core.reduce.partial import merge_all
from noether_core.reduce.state import pack, unpack
from noether_core.reduce.threads import ThreadExchange, run_threads

EXTRA = {"reached": 0, "position": [1, 1], "steps": 0, "matched": []}


def state_of(callback: dict[str, Any], **others: Any) -> dict[str, Any]:
    state = {"iteration": {"epoch": 0, "update": 3, "sample": 9}, "accumulated": 1, "samples": -1, "start": "s"}
    return state | {"callbacks": {"0:x": callback | EXTRA, "1:best": {"best": 0.5, "reached": 3}}} | others


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(12))
def test_states_of_some_processes_go_on_in_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(4):
        before, after = (int(count) for count in rng.integers(1, 7, 2))
        steps = drawn_steps(rng, max(before, after))
        cut = int(rng.integers(0, len(steps) + 1))
        whole, first = accumulator(), [accumulator() for _ in range(before)]
        for step in steps:
            add(whole, step)
        for step in steps[:cut]:
            add(first[step[2] % before], (*step[:2], 0, step[3]))
        states = [state_of(pack(part.partials())) for part in first]
        second = [accumulator_of(unpack(merged_states(states, at)["callbacks"]["0:x"])) for at in range(after)]
        in_order = sorted(steps[:cut], key=lambda step: (step[:2], step[2] % before))
        in_order += sorted(steps[cut:], key=lambda step: (step[:2], step[2] % after))
        expected = accumulator()
        for step in in_order:
            add(expected, step)
        for step in steps[cut:]:
            add(second[step[2] % after], step)
        update = max([step[0] for step in steps if step[3]], default=1)
        merged = finished(merge_all([part.partials() for part in second]), update)
        without = {name: value for name, value in merged.items() if not name.endswith(("/last", "/stack"))}
        assert without.items() <= finished(whole.partials(), update).items()  # whoever had which step
        assert merged == finished(expected.partials(), update)


def test_the_first_process_gets_all_and_the_others_an_empty_interval() -> None:
    parts = [accumulator() for _ in range(2)]
    for at, part in enumerate(parts):
        part.add(("x",), (np.float32(at),), 1, 0)
    states = [state_of(pack(part.partials())) for part in parts]
    states[0]["callbacks"]["0:x"] |= {"steps": 1, "matched": ["a"]}
    states[1]["callbacks"]["0:x"] |= {"steps": 2, "matched": ["b"]}
    states[1]["callbacks"]["1:best"]["best"] = 7.0
    kept = [shown(state) for state in states]
    main, other = merged_states(states, 0), merged_states(states, 1)
    assert [shown(state) for state in states] == kept
    assert unpack(main["callbacks"]["0:x"]).elements.tolist() == [2]
    assert unpack(other["callbacks"]["0:x"]).keys == ()
    for state in (main, other):
        assert (state["iteration"], state["accumulated"]) == (states[0]["iteration"], 1)
        assert (state["callbacks"]["0:x"]["steps"], state["callbacks"]["0:x"]["matched"]) == (2, ["a", "b"])
        assert state["callbacks"]["1:best"]["best"] == 0.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"iteration": {"epoch": 0, "update": 4, "sample": 9}}, "process 1 has the iteration"),
        ({"accumulated": 0}, "process 1 has the accumulation steps 0, that of process 0 1"),
        ({"callbacks": {}}, r"process 1 has the callbacks \[\]"),
        ({"callbacks": None}, "incomplete"),
        ({"accumulated": "many"}, "incomplete"),
        ({"iteration": 3}, "incomplete"),
    ],
)
def test_states_that_do_not_belong_together_are_refused(changed: dict[str, Any], message: str) -> None:
    state = state_of(pack(accumulator().partials()))
    with pytest.raises(NoetherError, match=message):
        merged_states([state, state | changed], 0)


# ---------------------------------------------------------------------- runs

CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 4, "keys": ["x"], "reduce": ["mean", "std", "sum", "min", "max", "count"], "id": "a"},
    {"every_n_updates": 3, "keys": ["n"], "reduce": "stack", "log_output": False, "save_output": True},
    {"kind": "OnlineLossCallback", "every_n_updates": 4},
]
CONVERT: dict[Any, Callable[[Any], Any]] = {noether_torch: torch.tensor, noether_jax: np.asarray}


def train(front_end: Any, path: Path, steps: range, exchange: ThreadExchange | None, load: Any, save: Any) -> None:
    """Make these accumulation steps, two an update, each of 12 values that the processes share."""
    index, count = (0, 1) if exchange is None else (exchange.index, exchange.count)
    run = front_end.Run(path, CONFIGS, accumulation_steps=2, processes=exchange or 1)
    run.start()
    if load is not None:
        run.load_state(load)
    for number in steps:
        values = np.random.default_rng(number).normal(size=12).astype(np.float32)
        for value in np.split(values, count)[index : index + 1]:
            run.step({"x": CONVERT[front_end](value), "n": number}, losses=CONVERT[front_end](value[0] * 0 + 1))
    if save is None:
        run.finish()
    else:
        run.save_state(save)
        run.log_writer.close()


@pytest.mark.parametrize("front_end", [noether_torch, noether_jax])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("cut", [5, 8])
def test_a_run_goes_on_in_another_number_of_processes(
    front_end: Any, before: int, after: int, cut: int, tmp_path: Path
) -> None:
    def part(count: int, steps: range, load: Any, save: Any) -> None:
        if count == 1:
            train(front_end, tmp_path / "parts", steps, None, load, save)
        else:
            run_threads(count, lambda exchange: train(front_end, tmp_path / "parts", steps, exchange, load, save))

    train(front_end, tmp_path / "whole", range(16), None, None, None)
    part(before, range(cut), None, tmp_path / "state")
    part(after, range(cut, 16), tmp_path / "state", None)
    parts, whole = read_run(tmp_path / "parts"), read_run(tmp_path / "whole")
    assert parts.entries == whole.entries
    stacks = [[file.load()["n"].tolist() for file in read.arrays] for read in (parts, whole)]
    assert [sorted(set(stack)) for stack in stacks[0]] == stacks[1]
    assert all(stack == sorted(stack) for stack in stacks[0])  # in the order of the steps


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.sweep(10)
@pytest.mark.parametrize("seed", range(40))
def test_as_many_processes_go_on_each_with_its_own(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    front_end, configs = (
        [noether_torch, noether_jax][seed % 2],
        [each | {"missing": "skip"} for each in drawn_configs(rng)],
    )
    count, per_update = (int(each) for each in rng.integers(2, 4, 2))
    steps = per_update * int(rng.integers(3, 9))
    cut = int(rng.integers(1, steps))

    def part(path: Path, start: int, end: int) -> None:
        def body(exchange: ThreadExchange) -> None:
            run = front_end.Run(path, configs, accumulation_steps=per_update, processes=exchange)
            run.start()
            if start:
                run.load_state(tmp_path / "state")
            for number in range(start, end):
                outputs = outputs_of(number, exchange.index)
                kept = np.random.default_rng([seed, number]).random(len(outputs)) < 0.7
                run.step({key: value for (key, value), keep in zip(outputs.items(), kept, strict=True) if keep})
            if end < steps:
                run.save_state(tmp_path / "state")
                run.log_writer.close()
            else:
                run.finish()

        run_threads(count, body)

    part(tmp_path / "whole", 0, steps)
    part(tmp_path / "parts", 0, cut)
    part(tmp_path / "parts", cut, steps)
    assert shown_run(tmp_path / "parts")[:3] == shown_run(tmp_path / "whole")[:3]


def test_a_file_of_one_process_is_its_state_dict(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, CONFIGS, processes=1) as run:
        run.step({"x": torch.ones(2), "n": 1}, losses=1.0)
        run.save_state(tmp_path / "state")
        assert shown(read_state(tmp_path / "state")) == shown(noether_torch.state.as_arrays(run.state_dict()))


def test_what_the_main_process_cannot_read_is_an_error_everywhere(tmp_path: Path) -> None:
    def load(exchange: ThreadExchange) -> str:
        run = noether_torch.Run(tmp_path / "run", CONFIGS, processes=exchange)
        run.start()
        with pytest.raises(RunFormatError) as error:
            run.load_state(tmp_path / "absent")
        return str(error.value)

    first, second = run_threads(2, load)
    assert "absent cannot be read" in first
    assert "process 0 could not read the state" in second


def test_what_the_main_process_cannot_write_is_an_error_everywhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def save(exchange: ThreadExchange) -> str:
        run = noether_torch.Run(tmp_path / "run", CONFIGS, processes=exchange)
        run.start()
        with pytest.raises((NoetherError, OSError)) as error:
            run.save_state(tmp_path / "file" / "state")
        return str(error.value)

    first, second = run_threads(2, save)
    assert "file" in first
    assert "process 0 could not write the state" in second


def test_a_process_that_does_not_save_is_named(tmp_path: Path) -> None:
    def save(exchange: ThreadExchange) -> None:
        run = noether_torch.Run(tmp_path / "run", CONFIGS, processes=exchange)
        run.start()
        if exchange.index == 0:
            with pytest.raises(ProcessesMissingError, match=r"1 did not come .* save the state"):
                run.save_state(tmp_path / "state")

    run_threads(2, save, time_limit=1)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("state", [{"processes": []}, {"processes": 3}, {"processes": [np.zeros(3, np.uint8)]}, {}])
def test_a_file_without_states_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    write_state(tmp_path / "state", state)
    with (
        noether_torch.Run(tmp_path / "run", CONFIGS, processes=1) as run,
        pytest.raises(NoetherError, match="give"),
    ):
        run.load_state(tmp_path / "state")
